"""The part of the panel that trains an adapter with volumes and segmentations of the scene."""

from collections.abc import Callable

import qt

from engine.errors import Cancelled, UserError
from VLSMSegmenterLib.shared import segmentations
from VLSMSegmenterLib.shared.labels import Pair, check_pair
from VLSMSegmenterLib.shared.logic import SegmenterLogic
from VLSMSegmenterLib.shared.training import METHODS, Settings, Training
from VLSMSegmenterLib.shared.worker import Job

COLUMNS = ("Volume", "Prompts")
DEFAULT_BASE = "mini"


class TrainingSection:
    """Shows a training.

    Args:
        ui: the panel's widgets by name.
        on_trained: called when there is a new adapter.
    """

    def __init__(self, ui: object, logic: SegmenterLogic, on_trained: Callable[[], None]):
        self._ui, self._on_trained = ui, on_trained
        self.training = Training(logic)
        self._pairs: list[Pair] = []
        self._shown_curves: tuple = ()
        ui.pairTable.setHorizontalHeaderLabels(list(COLUMNS))
        ui.pairTable.horizontalHeader().setStretchLastSection(True)
        ui.pairTable.verticalHeader().setVisible(False)
        ui.trainMethodBox.addItems(list(METHODS))
        ui.trainVolumeSelector.currentNodeChanged.connect(self._on_volume)
        ui.trainNameEdit.textChanged.connect(self._on_name)
        ui.pairTable.itemSelectionChanged.connect(self._show)
        for button, action in (
            (ui.addPairButton, self._on_add),
            (ui.removePairButton, self._on_remove),
            (ui.trainButton, self._on_train),
            (ui.resumeButton, self._on_resume),
            (ui.replaceAdapterButton, lambda: self._start(replace=True)),
            (ui.keepAdapterButton, lambda: self._show_taken(False)),
        ):
            button.clicked.connect(lambda *checked, action=action: action())
        self._on_volume()
        self._show_taken(False)
        self._show()

    def show_bases(self, bases: list[str]) -> None:
        """Offer the bases that the engine has."""
        chosen = self._ui.trainBaseBox.currentText or DEFAULT_BASE
        self._ui.trainBaseBox.clear()
        self._ui.trainBaseBox.addItems(list(bases))
        self._ui.trainBaseBox.setCurrentIndex(bases.index(chosen) if chosen in bases else 0)
        self._show()

    def close(self) -> None:
        self.training.close()

    # What to train with

    def _on_volume(self, *node) -> None:
        """Choose the segmentation that refers to the volume."""
        volume, selector = self._ui.trainVolumeSelector.currentNode(), self._ui.trainSegmentationSelector
        own = segmentations.of_volume(volume) if volume else []
        if own:
            selector.setCurrentNode(own[-1])
        self._show()

    def _on_add(self) -> None:
        pair = Pair(self._ui.trainVolumeSelector.currentNode(), self._ui.trainSegmentationSelector.currentNode())
        try:
            check_pair(pair)
        except UserError as error:
            self._say(str(error), wrong=True)
            return
        self._pairs = [other for other in self._pairs if other.volume is not pair.volume] + [pair]
        self._say("")
        self._show_pairs()

    def _on_remove(self) -> None:
        self._pairs = [pair for row, pair in enumerate(self._pairs) if row not in self._rows()]
        self._show_pairs()

    def _rows(self) -> set[int]:
        return {index.row() for index in self._ui.pairTable.selectionModel().selectedRows()}

    def _show_pairs(self) -> None:
        table = self._ui.pairTable
        table.setRowCount(len(self._pairs))
        self._items = []  # an item that nobody holds may be deleted
        for row, pair in enumerate(self._pairs):
            for column, text in enumerate((pair.volume.GetName(), "; ".join(pair.prompts))):
                item = qt.QTableWidgetItem(text)
                self._items.append(item)
                table.setItem(row, column, item)
        table.resizeColumnToContents(0)
        table.clearSelection()
        self._show()

    # Running

    def _on_name(self, *text) -> None:
        self._show_taken(False)
        self._show()

    def _on_train(self) -> None:
        if self.training.is_busy:
            self.training.cancel()
            self._say(self.training.status)
        elif self.training.is_taken(self._name):
            self._show_taken(True)
        else:
            self._start(replace=False)

    def _start(self, replace: bool) -> None:
        ui = self._ui
        self._show_taken(False)
        settings = Settings(
            self._name, ui.trainMethodBox.currentText, ui.trainBaseBox.currentText, ui.trainEpochsBox.value
        )
        self._run(lambda news: self.training.start(self._pairs, settings, replace, **news))

    def _on_resume(self) -> None:
        epochs = self._ui.trainEpochsBox.value
        self._run(lambda news: self.training.resume(self._name, epochs, **news))

    def _run(self, begin: Callable[[dict], object]) -> None:
        try:
            begin({"on_done": self._on_done, "on_progress": self._on_progress})
        except UserError as error:
            self._say(str(error), wrong=True)
        self._show()

    def _on_progress(self, text: str, event: dict) -> None:
        self._ui.trainBar.setMaximum(event.get("total", 0))  # 0 moves to and fro
        self._ui.trainBar.setValue(event.get("done", 0))
        self._say(text)
        self._show_curves()

    def _on_done(self, job: Job) -> None:
        self._say(self.training.status, wrong=job.error is not None and not isinstance(job.error, Cancelled))
        self._show()
        if job.error is None:
            self._on_trained()

    @property
    def _name(self) -> str:
        return self._ui.trainNameEdit.text.strip()

    def _show(self) -> None:
        ui, busy = self._ui, self.training.is_busy
        ready = self._pairs and self._name and ui.trainBaseBox.currentText
        ui.addPairButton.setEnabled(ui.trainVolumeSelector.currentNode() is not None)
        ui.removePairButton.setEnabled(bool(self._rows()))
        ui.trainButton.setText("Stop" if busy else "Train")
        ui.trainButton.setEnabled(bool(busy or ready))
        ui.resumeButton.setEnabled(not busy and self.training.can_resume(self._name))
        ui.trainBar.setVisible(busy)
        for box in (ui.trainNameEdit, ui.trainMethodBox, ui.trainBaseBox, ui.trainEpochsBox):
            box.setEnabled(not busy)
        self._show_curves()

    def _show_curves(self) -> None:
        """Show the curves of the training of this name, anew when they were drawn anew."""
        label, path = self._ui.curveLabel, self.training.curves(self._name)
        label.setVisible(path is not None)
        drawn = (path, path.stat().st_mtime_ns, label.width) if path else ()
        if path and drawn != self._shown_curves:
            picture = qt.QPixmap(str(path))
            width = min(picture.width(), max(label.parent().width - 24, 100))
            label.setPixmap(picture.scaledToWidth(width, qt.Qt.SmoothTransformation))
        self._shown_curves = drawn

    def _show_taken(self, taken: bool) -> None:
        """Ask whether an adapter that is there should be replaced."""
        self._ui.takenLabel.setText(f"There is an adapter or a training '{self._name}' already.")
        self._ui.takenRow.setVisible(taken)
        self._ui.trainButton.setVisible(not taken)

    def _say(self, text: str, wrong: bool = False) -> None:
        self._ui.trainLabel.setText(text)
        self._ui.trainLabel.setStyleSheet("color: #c0392b" if wrong else "")
