"""The part of the panel that says where the engine runs, what it lacks, and which adapters it has."""

from collections.abc import Callable

import qt
import slicer.util

from engine.client import Client
from engine.errors import UserError
from VLSMSegmenterLib.panel.adapter_section import AdapterSection
from VLSMSegmenterLib.shared import dependencies, words
from VLSMSegmenterLib.shared.dependencies import Report
from VLSMSegmenterLib.shared.engines import LocalEngine, RemoteEngine, inspect_python, slicers_python
from VLSMSegmenterLib.shared.logic import SegmenterLogic
from VLSMSegmenterLib.shared.worker import Job, ask_in_background

KEY = "VLSMSegmenter/"
LOCAL, REMOTE = "local", "remote"
DEVICES = {"": "whatever is fastest", "cuda": "GPU of NVIDIA", "mps": "GPU of Apple", "cpu": "CPU"}
UNCHANGED = (LOCAL, "", "")


class SetupSection:
    """Chooses the logic's engine. All but the token is kept from one session to the next.

    Args:
        ui: the panel's widgets by name.
        on_changed: called when there is another engine, or other adapters, that should be asked what it has.
    """

    def __init__(self, ui: object, logic: SegmenterLogic, on_changed: Callable[[], None]):
        self._ui, self._logic, self._on_changed = ui, logic, on_changed
        self._job: Job | None = None
        ui.deviceBox.addItems(list(DEVICES.values()))
        self._load()
        self._adapters = AdapterSection(ui, lambda: self._applied[1], on_changed)
        for signal, action in (
            (ui.localButton.toggled, self._apply),
            (ui.pythonEdit.editingFinished, self._apply),
            (ui.deviceBox.currentIndexChanged, self._apply),
            (ui.urlEdit.editingFinished, self._apply),
            (ui.tokenEdit.editingFinished, self._apply),
            (ui.checkButton.clicked, self._check),
            (ui.installButton.clicked, self._look_and_install),
            (ui.testButton.clicked, self._test),
            (ui.stopButton.clicked, self._stop),
        ):
            signal.connect(lambda *values, action=action: action())

    def show_adapters(self, cards: list[dict]) -> None:
        self._adapters.show(cards, local=self._applied[0] == LOCAL)

    def _load(self) -> None:
        kept = {name: qt.QSettings().value(KEY + name, "") or "" for name in ("where", "python", "device", "url")}
        self._ui.pythonEdit.setText(kept["python"])
        self._ui.deviceBox.setCurrentIndex(list(DEVICES).index(kept["device"]) if kept["device"] in DEVICES else 0)
        self._ui.urlEdit.setText(kept["url"])
        self._ui.remoteButton.setChecked(kept["where"] == REMOTE)
        self._applied = self._wanted()
        if self._applied != UNCHANGED:
            self._logic.engine = _engine(self._applied)
        self._show()

    def _save(self) -> None:
        settings = qt.QSettings()
        where, python, device = (self._applied[0], self._ui.pythonEdit.text.strip(), self._device())
        for name, value in (("where", where), ("python", python), ("device", device)):
            settings.setValue(KEY + name, value)
        settings.setValue(KEY + "url", self._ui.urlEdit.text.strip())

    def _wanted(self) -> tuple[str, str, str]:
        """Return where the engine should run: (local, Python, device) or (remote, address, token)."""
        if self._ui.localButton.checked:
            return (LOCAL, self._ui.pythonEdit.text.strip(), self._device())
        return (REMOTE, self._ui.urlEdit.text.strip(), self._ui.tokenEdit.text.strip())

    def _device(self) -> str:
        return list(DEVICES)[max(0, self._ui.deviceBox.currentIndex)]

    def _apply(self) -> None:
        """Give the logic the engine that is described, where it is another one and complete."""
        self._show()
        wanted = self._wanted()
        if wanted == self._applied or (wanted[0] == REMOTE and not all(wanted)):
            return
        if self._logic.is_busy:
            self._say("a segmentation is running; change the engine when it is over, or cancel it")
            return
        self._applied = wanted
        self._logic.engine.stop()
        self._logic.engine = _engine(wanted)
        self._save()
        self._on_changed()

    def _show(self) -> None:
        local = self._ui.localButton.checked
        self._ui.localPart.setVisible(local)
        self._ui.remotePart.setVisible(not local)

    # What is there, and what is missing

    def _check(self) -> None:
        python = self._ui.pythonEdit.text.strip()
        self._background(lambda job: inspect_python(python), lambda report: self._say(_describe(report)))

    def _look_and_install(self) -> None:
        python = self._ui.pythonEdit.text.strip()
        self._background(lambda job: inspect_python(python), lambda report: self._install(python, report))

    def _install(self, python: str, report: Report) -> None:
        """Ask, and install what is missing; into Slicer's own Python alone, others are not ours to change."""
        if not report.missing:
            self._say(_describe(report))
            return
        if python:
            wanted = " ".join(f'"{package.requirement}"' for package in report.missing)
            self._say(f'{_describe(report)}\nIn a terminal: "{python}" -m pip install {wanted}')
            return
        question = f"{_describe(report)}\n\nInstall this into Slicer's Python ({slicers_python()}) now?"
        if not slicer.util.confirmOkCancelDisplay(question, windowTitle="VLSM Segmenter"):
            self._say("Nothing has been installed.")
            return
        self._logic.engine.stop()  # which may hold files that are to be replaced
        try:
            self._say(dependencies.install(report.missing, dependencies.slicers_installer()))
        except UserError as error:
            self._say(str(error))
            return
        self._on_changed()

    # Servers

    def _test(self) -> None:
        url, token = self._ui.urlEdit.text.strip(), self._ui.tokenEdit.text.strip()
        self._background(lambda job: Client(url, token).health(), self._say_health)

    def _say_health(self, health: dict) -> None:
        self._say(f"The server answers: engine {health['engine']}, on {words.device(health['device'])}.")

    def _stop(self) -> None:
        self._logic.cancel()
        self._logic.engine.stop()
        self._say("The engine has stopped; it starts again when it is needed.")

    def _background(self, work: Callable[[Job], object], on_value: Callable[[object], None]) -> None:
        self._job = ask_in_background(work, on_value, self._say)

    def _say(self, text: str) -> None:
        self._ui.setupLabel.setText(text)


def _engine(wanted: tuple[str, str, str]) -> LocalEngine | RemoteEngine:
    where, first, second = wanted
    if where == REMOTE:
        return RemoteEngine(first, second)
    return LocalEngine(first, ("--device", second) if second else ())


def _describe(report: Report) -> str:
    return report.describe(dependencies.needs_nvidia(dependencies.slicers_installer()))
