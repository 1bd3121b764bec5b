"""The part of the panel that says where the engine runs, and what it lacks."""

from collections.abc import Callable

import qt

from engine.client import Client
from VLSMSegmenterLib import words
from VLSMSegmenterLib.engines import LocalEngine, RemoteEngine, missing_packages
from VLSMSegmenterLib.logic import SegmenterLogic
from VLSMSegmenterLib.worker import Job, poll_by_timer

KEY = "VLSMSegmenter/"


class SetupSection:
    """Chooses the logic's engine. Address and Python are kept from one session to the next; the token is not.

    Args:
        ui: the panel's widgets by name.
        on_changed: called when there is another engine that should be asked what it has.
    """

    def __init__(self, ui: object, logic: SegmenterLogic, on_changed: Callable[[], None]):
        self._ui, self._logic, self._on_changed = ui, logic, on_changed
        self._job: Job | None = None
        self._load()
        for signal, action in (
            (ui.localButton.toggled, self._apply),
            (ui.pythonEdit.editingFinished, self._apply),
            (ui.urlEdit.editingFinished, self._apply),
            (ui.tokenEdit.editingFinished, self._apply),
            (ui.checkButton.clicked, self._check),
            (ui.testButton.clicked, self._test),
            (ui.stopButton.clicked, self._stop),
        ):
            signal.connect(lambda *values, action=action: action())

    def _load(self) -> None:
        settings = qt.QSettings()
        self._ui.pythonEdit.setText(settings.value(KEY + "python", "") or "")
        self._ui.urlEdit.setText(settings.value(KEY + "url", "") or "")
        self._applied = self._wanted()
        self._show()

    def _wanted(self) -> tuple[str, ...]:
        if self._ui.localButton.checked:
            return ("local", self._ui.pythonEdit.text.strip())
        return ("remote", self._ui.urlEdit.text.strip(), self._ui.tokenEdit.text.strip())

    def _apply(self) -> None:
        """Give the logic the engine that is described, where it is another one and complete."""
        self._show()
        wanted = self._wanted()
        if wanted == self._applied or (wanted[0] == "remote" and not all(wanted)):
            return
        if self._logic.is_busy:
            self._say("a segmentation is running; change the engine when it is over, or cancel it")
            return
        self._applied = wanted
        self._logic.engine.stop()
        self._logic.engine = LocalEngine(wanted[1]) if wanted[0] == "local" else RemoteEngine(*wanted[1:])
        settings = qt.QSettings()
        settings.setValue(KEY + "python", self._ui.pythonEdit.text.strip())
        settings.setValue(KEY + "url", self._ui.urlEdit.text.strip())
        self._on_changed()

    def _show(self) -> None:
        local = self._ui.localButton.checked
        self._ui.localPart.setVisible(local)
        self._ui.remotePart.setVisible(not local)

    def _check(self) -> None:
        python = self._ui.pythonEdit.text.strip()
        self._background(lambda job: missing_packages(python), self._say_missing)

    def _say_missing(self, missing: list[str]) -> None:
        if missing:
            self._say(f"This Python lacks {', '.join(missing)}. Nothing has been installed.")
        else:
            self._say("Everything that the engine needs is there.")

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
        self._say("one moment …")

        def end(job: Job) -> None:
            if job.error:
                self._say(str(job.error))
            else:
                on_value(job.value)

        self._job = Job(work, lambda event: None, end)
        poll_by_timer(self._job)

    def _say(self, text: str) -> None:
        self._ui.setupLabel.setText(text)
