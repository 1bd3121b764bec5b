"""What is chosen in the panel is kept in the scene, and comes back with it; the last adapter also without one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import qt
import slicer

from VLSMSegmenterLib.panel import parameters

LAST_ADAPTER = "VLSMSegmenter/adapter"


class Remembered:
    """Keeps the panel and the scene's parameter node alike: what the user changes is written, what is loaded shown.

    Args:
        ui: the panel's widgets by name.
        on_loaded: called when other values are shown.
    """

    def __init__(self, ui: object, scene: "slicer.vtkMRMLScene", on_loaded: Callable[[], None]):
        self._ui, self._scene, self._on_loaded = ui, scene, on_loaded
        self._selectors = {
            "volume": ui.volumeSelector,
            "segmentation": ui.segmentationSelector,
            "roi": ui.roiSelector,
        }
        self._boxes = {"plane": ui.planeBox, "window": ui.windowBox}
        self._models = {"adapter": ui.adapterBox, "base": ui.baseBox}  # filled when the engine was asked
        self._checks = {"largest_only": ui.largestBox, "holes_filled": ui.holesBox, "smoothed": ui.smoothBox}
        self._wanted = {"adapter": qt.QSettings().value(LAST_ADAPTER, "") or ""}
        self._paused = False
        signals = [box.currentTextChanged for box in (*self._boxes.values(), *self._models.values())]
        signals += [selector.currentNodeChanged for selector in self._selectors.values()]
        signals += [check.toggled for check in self._checks.values()]
        for signal in (*signals, ui.promptEdit.textChanged, ui.thresholdSlider.valueChanged):
            signal.connect(lambda *values: self.save())
        events = slicer.vtkMRMLScene.EndImportEvent, slicer.vtkMRMLScene.EndRestoreEvent
        self._observers = [scene.AddObserver(event, lambda *arguments: self.load()) for event in events]
        self.load()

    def save(self) -> None:
        """Write what is chosen into the scene's node, which is made when it is first needed."""
        if self._paused or self._scene.IsBatchProcessing():
            return
        ui = self._ui
        values = {name: selector.currentNode() for name, selector in self._selectors.items()}
        values |= {name: box.currentText for name, box in self._boxes.items()}
        for name, box in self._models.items():
            if box.count > 1:  # the engine has said what there is
                values[name] = self._wanted[name] = box.currentText
        values |= {name: str(check.checked).lower() for name, check in self._checks.items()}
        values |= {"prompts": ui.promptEdit.plainText, "threshold": str(ui.thresholdSlider.value)}
        parameters.write(self._scene, values)
        if "adapter" in values:
            qt.QSettings().setValue(LAST_ADAPTER, values["adapter"])

    def load(self) -> None:
        """Show what the scene's node holds; what it does not hold stays as it is."""
        values = parameters.read(self._scene)
        if not values:
            return
        with self.paused():
            for name, selector in self._selectors.items():
                if values[name] is not None:
                    selector.setCurrentNode(values[name])
            for name, check in self._checks.items():
                if name in values:
                    check.setChecked(values[name] == "true")
            if "prompts" in values:
                self._ui.promptEdit.setPlainText(values["prompts"])
            if values.get("threshold", "").isdigit():
                self._ui.thresholdSlider.setValue(int(values["threshold"]))
            self._wanted |= {name: values[name] for name in self._models if name in values}
            for name, box in self._boxes.items():
                _choose(box, values.get(name, ""))
        self.show_models()
        self._on_loaded()

    def show_models(self) -> None:
        """Choose the adapter and the base that were kept, where the engine has them."""
        with self.paused():
            for name, box in self._models.items():
                _choose(box, self._wanted.get(name, ""))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the panel change without keeping that: the user did not change it."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def close(self) -> None:
        for tag in self._observers:
            self._scene.RemoveObserver(tag)


def _choose(box: object, text: str) -> None:
    """Choose an entry of a box by its text; where it is none, write it into one that can be edited."""
    index = box.findText(text)
    if index >= 0:
        box.setCurrentIndex(index)
    elif text and box.editable:
        box.setEditText(text)
