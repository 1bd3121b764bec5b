"""The module's panel: what is typed and clicked becomes calls of the logic, and its news become words and bars."""

import qt
import slicer
import slicer.util

from engine.errors import Cancelled, UserError
from VLSMSegmenterLib.panel import history
from VLSMSegmenterLib.panel.remembered import Remembered
from VLSMSegmenterLib.panel.setup_section import SetupSection
from VLSMSegmenterLib.panel.training_section import TrainingSection
from VLSMSegmenterLib.shared import choices, words
from VLSMSegmenterLib.shared.logic import SegmenterLogic
from VLSMSegmenterLib.shared.worker import Job

COLUMNS = ("Segment", "Presence", "Size")
SLIDER_STEPS = 100
SETTLE_MILLISECONDS = 80  # between a move of the slider and the new segments


class Panel:
    """Shows the logic.

    Args:
        ui_path: of the .ui file.

    Attributes:
        widget: to be put into a layout.
    """

    def __init__(self, logic: SegmenterLogic, ui_path: str):
        self.logic = logic
        self.widget = slicer.util.loadUI(ui_path)
        self.widget.setMRMLScene(slicer.mrmlScene)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.setup = SetupSection(self.ui, logic, self.refresh)
        self.training = TrainingSection(self.ui, logic, self.refresh)
        self.segmentation = None
        self._cards: dict[str, dict] = {}
        self._asking: Job | None = None
        self._settle = qt.QTimer()
        self._settle.setSingleShot(True)
        self._settle.setInterval(SETTLE_MILLISECONDS)
        self._fill_choices()
        self._connect()
        self._show_adapters([], [])
        self._show_results()
        self._show_again([])
        self._show_run()
        self.remembered = Remembered(self.ui, slicer.mrmlScene, self._show_threshold_value)

    def enter(self) -> None:
        """Ask the engine for its adapters when the panel is shown for the first time; it is warm afterwards."""
        if not self._cards and self._asking is None:
            self.refresh()

    def close(self) -> None:
        self._settle.stop()
        self.training.close()
        self.remembered.close()
        self.logic.close()

    def refresh(self) -> None:
        """Ask the engine what it has, in the background."""
        self._say("starting the engine and asking for its adapters …")
        self._asking = self.logic.ask_engine(self._on_catalog)

    def _fill_choices(self) -> None:
        for box, texts in ((self.ui.planeBox, choices.PLANES), (self.ui.windowBox, choices.WINDOWS)):
            box.addItem(choices.OWN)
            box.addItems(list(texts))
        self.ui.table.setHorizontalHeaderLabels(list(COLUMNS))
        self.ui.table.horizontalHeader().setStretchLastSection(True)
        self.ui.table.verticalHeader().setVisible(False)

    def _connect(self) -> None:
        ui = self.ui
        ui.volumeSelector.currentNodeChanged.connect(self._on_volume)
        ui.segmentationSelector.currentNodeChanged.connect(self._on_volume)
        ui.promptEdit.textChanged.connect(self._on_input)
        ui.adapterBox.currentIndexChanged.connect(self._on_adapter)
        ui.suggestionBox.activated.connect(self._on_suggestion)
        ui.thresholdSlider.valueChanged.connect(self._on_threshold)
        self._settle.timeout.connect(self._adjust)
        for button, action in (
            (ui.refreshButton, self.refresh),
            (ui.segmentButton, self._on_segment),
            (ui.replaceButton, lambda: self._run(replace=True)),
            (ui.keepButton, lambda: self._run(replace=False)),
            (ui.backButton, lambda: self._show_again([])),
            (ui.largestBox, self._adjust),
            (ui.holesBox, self._adjust),
            (ui.smoothBox, self._adjust),
            (ui.undoButton, self._on_undo),
            (ui.probabilityButton, self._on_probability),
        ):
            button.clicked.connect(lambda *checked, action=action: action())

    # What was asked of the engine

    def _on_catalog(self, job: Job) -> None:
        self._asking = None
        if job.error:
            self._say(f"{job.error}\nSee Set-up below.", wrong=True)
            self.ui.setupButton.setProperty("collapsed", False)
            return
        with self.remembered.paused():
            self._show_adapters(job.value["adapters"], job.value["bases"])
        self.remembered.show_models()
        self.setup.show_adapters(job.value["adapters"])
        self._say(f"ready, on {words.device(job.value['device'])}")

    def _show_adapters(self, cards: list[dict], bases: list[str]) -> None:
        chosen = self.ui.adapterBox.currentText
        self._cards = {card["name"]: card for card in cards}
        for box, first, names in (
            (self.ui.adapterBox, choices.NO_ADAPTER, self._cards),
            (self.ui.baseBox, choices.OWN, bases),
        ):
            box.blockSignals(True)
            box.clear()
            box.addItem(first)
            box.addItems(list(names))
            box.blockSignals(False)
        self.training.show_bases(bases)
        if cards:
            names = list(self._cards)
            self.ui.adapterBox.setCurrentIndex(1 + (names.index(chosen) if chosen in names else 0))
        self._on_adapter()

    def _on_adapter(self, *index) -> None:
        self._show_card()
        self._show_suggestions()

    def _show_suggestions(self) -> None:
        """Offer what the adapter knows, then what was asked for before."""
        card = self._cards.get(self.ui.adapterBox.currentText)
        prompts = list(dict.fromkeys([*(card["prompts"] if card else []), *history.recent()]))
        self.ui.suggestionBox.clear()
        self.ui.suggestionBox.addItem("add a known or recent prompt …")
        self.ui.suggestionBox.addItems(prompts)
        self.ui.suggestionBox.setVisible(bool(prompts))

    def _show_card(self) -> None:
        card, volume = self._cards.get(self.ui.adapterBox.currentText), self.ui.volumeSelector.currentNode()
        self.ui.cardLabel.setText(choices.card_at_a_glance(card, volume))

    def _on_suggestion(self, *chosen) -> None:
        index = self.ui.suggestionBox.currentIndex  # Qt 5 may give the text instead
        if index < 1:
            return
        prompts = words.split_prompts(self.ui.promptEdit.plainText)
        chosen = self.ui.suggestionBox.itemText(index)
        self.ui.promptEdit.setPlainText("\n".join(dict.fromkeys([*prompts, chosen])))
        self.ui.suggestionBox.setCurrentIndex(0)

    # Running

    def _on_volume(self, *node) -> None:
        self.segmentation = self.ui.segmentationSelector.currentNode()
        self._show_card()
        self._on_input()
        self._show_results()

    def _on_input(self, *text) -> None:
        self._show_again([])
        self._show_run()

    def _on_segment(self) -> None:
        if self.logic.is_busy:
            self._say("cancelling …")
            self.logic.cancel()
            return
        try:
            there = self.logic.already_there(*self._target())
        except UserError as error:
            self._say(str(error), wrong=True)
            return
        if there:
            self._show_again(there)
        else:
            self._run(replace=False)

    def _target(self):
        volume, prompts = self.ui.volumeSelector.currentNode(), self.ui.promptEdit.plainText
        return volume, prompts, self.ui.segmentationSelector.currentNode()

    def _run(self, replace: bool) -> None:
        self._show_again([])
        volume, prompts, segmentation = self._target()
        adapter = self.ui.adapterBox.currentText
        options = {
            name: None if box.currentText in ("", choices.OWN) else box.currentText.strip()
            for name, box in (
                ("plane", self.ui.planeBox),
                ("window", self.ui.windowBox),
                ("base", self.ui.baseBox),
            )
        }
        try:
            self.logic.segment(
                volume,
                prompts,
                adapter if adapter in self._cards else None,
                segmentation,
                on_done=self._on_done,
                on_progress=self._on_progress,
                largest_only=self.ui.largestBox.checked,
                holes_filled=self.ui.holesBox.checked,
                smoothed=self.ui.smoothBox.checked,
                replace=replace,
                roi=self.ui.roiSelector.currentNode(),
                **options,
            )
        except UserError as error:
            self._say(str(error), wrong=True)
        else:
            history.remember(words.split_prompts(prompts))
            self._show_suggestions()
        self._show_run()

    def _on_progress(self, text: str, event: dict) -> None:
        done, total = event.get("done", 0), event.get("total", 0)
        self.ui.progressBar.setMaximum(total)  # 0 moves to and fro
        self.ui.progressBar.setValue(done)
        self._say(text)

    def _on_done(self, job: Job) -> None:
        if job.error is None:
            self.segmentation = job.value
            self._show_threshold()
            self._show_results()
        self._say(self.logic.status, wrong=job.error is not None and not isinstance(job.error, Cancelled))
        self._show_run()

    # Results

    def _on_threshold(self, value: int) -> None:
        self._show_threshold_value()
        self._settle.start()

    def _show_threshold_value(self) -> None:
        self.ui.thresholdLabel.setText(f"{self.ui.thresholdSlider.value / SLIDER_STEPS:.2f}")

    def _adjust(self) -> None:
        self._settle.stop()
        if not self._findings():
            return
        left_alone = self.logic.adjust(
            self.segmentation,
            self.ui.thresholdSlider.value / SLIDER_STEPS,
            self.ui.largestBox.checked,
            self.ui.holesBox.checked,
            self.ui.smoothBox.checked,
        )
        lines = [finding.describe() for finding in self._findings()]
        if left_alone:
            lines.append(f"left as edited: {', '.join(left_alone)}")
        self._say("\n".join(lines))
        self._show_results()

    def _on_undo(self) -> None:
        try:
            self.logic.undo()
        except UserError as error:
            self._say(str(error), wrong=True)
            return
        self._say(self.logic.status)
        self._show_results()
        self._show_run()

    def _on_probability(self) -> None:
        rows = {index.row() for index in self.ui.table.selectionModel().selectedRows()}
        for number, finding in enumerate(self._findings()):
            if not rows or number in rows:
                self.logic.add_probability_volume(self.segmentation, finding.segment_id)

    def _findings(self):
        if self.segmentation is not None and self.segmentation.GetScene() is None:  # it was removed
            self.segmentation = None
        return self.logic.findings(self.segmentation)

    def _show_results(self) -> None:
        findings = self._findings()
        self.ui.resultsButton.setVisible(bool(findings) or self.logic.can_undo)
        self.ui.table.setRowCount(len(findings))
        self._items = []  # an item that nobody holds may be deleted
        for row, finding in enumerate(findings):
            segment = self.segmentation.GetSegmentation().GetSegment(finding.segment_id)
            for column, text in enumerate((segment.GetName(), f"{finding.result.presence:.2f}", finding.answer)):
                item = qt.QTableWidgetItem(text)
                if column == 0:
                    item.setIcon(_swatch(segment.GetColor()))
                self._items.append(item)
                self.ui.table.setItem(row, column, item)
        for column in range(len(COLUMNS) - 1):
            self.ui.table.resizeColumnToContents(column)
        self.ui.probabilityButton.setEnabled(bool(findings))
        self.ui.thresholdSlider.setEnabled(bool(findings))

    def _show_threshold(self) -> None:
        """Put the slider where the segments were made, without making them again."""
        findings = self._findings()
        if findings:
            self.ui.thresholdSlider.blockSignals(True)
            self.ui.thresholdSlider.setValue(round(findings[-1].threshold * SLIDER_STEPS))
            self.ui.thresholdSlider.blockSignals(False)
            self._show_threshold_value()

    def _show_run(self) -> None:
        busy = self.logic.is_busy
        ready = self.ui.volumeSelector.currentNode() and words.split_prompts(self.ui.promptEdit.plainText)
        self.ui.segmentButton.setText("Cancel" if busy else "Segment")
        self.ui.segmentButton.setEnabled(bool(busy or ready))
        self.ui.progressBar.setVisible(busy)
        self.ui.undoButton.setEnabled(self.logic.can_undo and not busy)

    def _show_again(self, prompts: list[str]) -> None:
        """Ask whether prompts that were run before should replace their segments."""
        names = ", ".join(prompts)
        self.ui.againLabel.setText(f"There {'are segments' if prompts[1:] else 'is a segment'} of {names} already.")
        self.ui.againRow.setVisible(bool(prompts))
        self.ui.segmentButton.setVisible(not prompts)

    def _say(self, text: str, wrong: bool = False) -> None:
        self.ui.statusLabel.setText(text)
        self.ui.statusLabel.setStyleSheet("color: #c0392b" if wrong else "")


def _swatch(color: tuple[float, float, float]):
    """Return an icon of one colour."""
    picture = qt.QPixmap(14, 14)
    picture.fill(qt.QColor(*(round(255 * value) for value in color)))
    return qt.QIcon(picture)
