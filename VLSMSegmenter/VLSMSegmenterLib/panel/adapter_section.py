"""The part of the panel that lists adapters, and installs, verifies and removes those of this computer."""

from collections.abc import Callable

import qt
import slicer.util

from VLSMSegmenterLib.panel import library
from VLSMSegmenterLib.shared import words
from VLSMSegmenterLib.shared.worker import Job, ask_in_background

COLUMNS = ("Adapter", "Method", "Dice", "Trained on")
TITLE = "VLSM Segmenter"
ELSEWHERE = "Adapters of a server are looked after on its own machine: python -m engine.adapters --help"


class AdapterSection:
    """Shows what the engine has; asks before anything is written.

    Args:
        ui: the panel's widgets by name.
        python: returns the Python that the engine runs in, "" for Slicer's own.
        on_changed: called when there are other adapters.
    """

    def __init__(self, ui: object, python: Callable[[], str], on_changed: Callable[[], None]):
        self._ui, self._python, self._on_changed = ui, python, on_changed
        self._cards: list[dict] = []
        self._local, self._job = True, None
        ui.adapterTable.setHorizontalHeaderLabels(list(COLUMNS))
        ui.adapterTable.horizontalHeader().setStretchLastSection(True)
        ui.adapterTable.verticalHeader().setVisible(False)
        ui.adapterTable.itemSelectionChanged.connect(lambda: self._show_buttons())
        for button, action in (
            (ui.addFolderButton, self._add_folder),
            (ui.addZipButton, self._add_zip),
            (ui.addHubButton, self._add_from_hub),
            (ui.verifyButton, self._verify),
            (ui.removeButton, self._remove),
        ):
            button.clicked.connect(lambda *checked, action=action: action())
        self._show_buttons()

    def show(self, cards: list[dict], local: bool) -> None:
        """Show the cards of adapters.

        Args:
            local: they are on this computer.
        """
        self._cards, self._local = cards, local
        table = self._ui.adapterTable
        table.clearSelection()
        table.setRowCount(len(cards))
        self._items = []  # an item that nobody holds may be deleted
        for row, card in enumerate(cards):
            method = f"{card['method']} {card['placement']}".strip()
            for column, text in enumerate((card["name"], method, words.dice(card), card["data_set"])):
                self._items.append(qt.QTableWidgetItem(text))
                table.setItem(row, column, self._items[-1])
        table.resizeColumnsToContents()
        if not local:
            self._say(ELSEWHERE)
        elif self._ui.adapterLabel.text == ELSEWHERE:
            self._say("")
        self._show_buttons()

    def _show_buttons(self) -> None:
        ui = self._ui
        for button in (ui.addFolderButton, ui.addZipButton, ui.addHubButton, ui.verifyButton):
            button.setEnabled(self._local)
        chosen = self._chosen()
        ui.removeButton.setEnabled(self._local and bool(chosen) and not chosen["shipped"])

    def _chosen(self) -> dict | None:
        rows = [index.row() for index in self._ui.adapterTable.selectionModel().selectedRows()]
        return self._cards[rows[0]] if rows and rows[0] < len(self._cards) else None

    def _add_folder(self) -> None:
        self._add(qt.QFileDialog.getExistingDirectory(None, "Folder of an adapter"))

    def _add_zip(self) -> None:
        chosen = qt.QFileDialog.getOpenFileName(None, "Zip file of an adapter", "", "Zip files (*.zip)")
        self._add(chosen if isinstance(chosen, str) else chosen[0])  # as PythonQt and as others give it

    def _add_from_hub(self) -> None:
        said = qt.QInputDialog.getText(
            None, TITLE, "Name on the Hugging Face Hub, such as OWNER/NAME or OWNER/NAME@REVISION"
        )
        name = (said if isinstance(said, str) else said[0]).strip()
        self._add(name and library.HUB + name.removeprefix(library.HUB))

    def _add(self, source: str) -> None:
        if source:
            python = self._python()
            self._background(
                lambda job: library.look_at_adapter(python, source), lambda found: self._ask_and_add(source, found)
            )

    def _ask_and_add(self, source: str, found: dict) -> None:
        card, python = found["card"], self._python()
        question = (
            f"Install the adapter '{found['name']}'?\n\nMethod: {card['method']} {card['placement']}, for the base "
            f"'{card['base']}'\nTrained on: {card['data_set'] or 'not stated'}\n"
            f"Licence: {card['licence'] or 'not stated'}"
        )
        if found["replaces"]:
            question += "\n\nIt replaces your adapter of that name, with all that is in its folder."
        if not slicer.util.confirmOkCancelDisplay(question, windowTitle=TITLE):
            self._say("Nothing was installed.")
            return
        self._background(lambda job: library.install_adapter(python, source, found["replaces"]), self._done)

    def _verify(self) -> None:
        python, chosen = self._python(), self._chosen()
        names = [chosen["name"]] if chosen else []
        self._background(lambda job: library.verify_adapters(python, names), self._say)

    def _remove(self) -> None:
        name, python = self._chosen()["name"], self._python()
        question = f"Remove the adapter '{name}' with all that its folder holds? This cannot be undone."
        if slicer.util.confirmOkCancelDisplay(question, windowTitle=TITLE):
            self._background(lambda job: library.remove_adapter(python, name), self._done)

    def _done(self, said: str) -> None:
        self._say(said)
        self._on_changed()

    def _background(self, work: Callable[[Job], object], on_value: Callable[[object], None]) -> None:
        self._job = ask_in_background(work, on_value, self._say)

    def _say(self, text: str) -> None:
        self._ui.adapterLabel.setText(text)
