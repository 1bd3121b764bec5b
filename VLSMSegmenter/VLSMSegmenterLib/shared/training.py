"""Train an adapter from the scene: volumes and segmentations become a data set, `engine.train` runs outside Slicer,
and what it leaves on the disk tells how far it is.

    training = Training(logic)
    training.start([Pair(volume, segmentation), Pair(another, its_segmentation)], Settings("my-adapter"))

Everything here belongs to the main thread; the job of a training asks it for one volume after another.
"""

import json
import queue
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engine.client.launching import end_tree, interrupt
from engine.errors import Cancelled, UserError
from engine.files import write_text
from engine.imaging.formats import SEGMENTATION_SUFFIX
from engine.imaging.writing import write_segments, write_volume
from engine.models.places import SHIPPED_MODELS, user_models
from engine.training.run_files import CHECKPOINT, CURVES, read_progress
from VLSMSegmenterLib.shared import words
from VLSMSegmenterLib.shared.engines import LocalEngine
from VLSMSegmenterLib.shared.labels import Pair, check_pairs, study_of
from VLSMSegmenterLib.shared.logic import SegmenterLogic
from VLSMSegmenterLib.shared.worker import Job, poll_by_timer

METHODS = ("dense", "shallow", "telescopic", "lora", "decoder")  # those that a CLIPSeg takes and a CPU can train
NAME = re.compile(r"[^\W_][\w.-]*")
SETTINGS, OUTPUT, SPLITS = "training.json", "output.txt", "splits.json"
VALIDATION_SHARE = 0.1  # of the patients, one at least
LOOK_SECONDS = 0.5
SAVE_SECONDS = 120  # in which a training that was stopped finishes its step and saves
LAST_WORDS = 2000


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
        name: of the adapter and of its folders.
        epochs: at most.
    """

    name: str
    method: str = METHODS[0]
    base: str = "mini"
    epochs: int = 50


class Training:
    """Trains adapters on this computer, one at a time.

    Args:
        logic: whose engine's Python is used.

    Attributes:
        status: what is going on or was last done, in words.
    """

    def __init__(self, logic: SegmenterLogic):
        self.status = ""
        self.job: Job | None = None
        self._logic = logic
        self._process: subprocess.Popen | None = None

    @property
    def is_busy(self) -> bool:
        return self.job is not None and not self.job.finished

    def is_taken(self, name: str) -> bool:
        """Whether there is an adapter, or a training, of that name: ask before `replace`."""
        folders = (_adapter(name), data_folder(name), SHIPPED_MODELS / name)
        return bool(NAME.fullmatch(name)) and any(folder.exists() for folder in folders)

    def can_resume(self, name: str) -> bool:
        """Whether a training of that name was started and not removed."""
        return bool(NAME.fullmatch(name)) and (data_folder(name) / SETTINGS).is_file()

    def curves(self, name: str) -> Path | None:
        """Return the picture of a training's curves, once its first epoch is over."""
        path = _adapter(name) / "run" / CURVES
        return path if path.is_file() else None

    def start(
        self,
        pairs: Sequence[Pair],
        settings: Settings,
        replace: bool = False,
        on_done: Callable[[Job], None] | None = None,
        on_progress: Callable[[str, dict], None] = lambda words, event: None,
    ) -> "str | Job":
        """Write the data set, and train. The segments' names are the prompts.

        The data set, a copy of the voxels without any name, stays in `data_folder(name)` for `resume`. A tenth of
        the patients, one at least, is kept for validation.

        Args:
            replace: whether an adapter of that name may be replaced, with its data set.
            on_done: when given, the call returns at once, and this is called later with the job, whose `error` says
                what went wrong.
            on_progress: called with what is going on, in words and as an event with "done" and "total".

        Returns:
            the adapter's name, or the running job where `on_done` is given.

        Raises:
            UserError: the pairs, the name or the engine cannot be used, or the training failed.
            Cancelled: it was stopped; `resume` goes on.
        """
        self._check(settings.name)
        check_pairs(pairs)
        if self.is_taken(settings.name) and not replace:
            raise UserError(f"there is an adapter or a training '{settings.name}' already; choose another name")
        pairs, engine = list(pairs), self._logic.engine

        def work(job: Job) -> str:
            self._write_data_set(job, pairs, settings)
            shutil.rmtree(_adapter(settings.name) / "run", ignore_errors=True)  # of an adapter that is replaced
            return self._train(job, engine, settings)

        return self._run(work, pairs, on_done, on_progress)

    def resume(
        self,
        name: str,
        epochs: int | None = None,
        on_done: Callable[[Job], None] | None = None,
        on_progress: Callable[[str, dict], None] = lambda words, event: None,
    ) -> "str | Job":
        """Go on with a training that was stopped or is over, with its settings and data set of then; see `start`.

        Args:
            epochs: at most, with those that are done; as many as then when None.
        """
        self._check(name)
        try:
            settings = Settings(**json.loads((data_folder(name) / SETTINGS).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"there is no training '{name}' to go on with; start it") from error
        engine, settings = self._logic.engine, replace(settings, epochs=epochs or settings.epochs)
        return self._run(lambda job: self._train(job, engine, settings), [], on_done, on_progress)

    def cancel(self) -> None:
        """Stop the training after its step; it saves, and `resume` goes on."""
        if self.is_busy:
            self.status = "stopping: the step is finished and saved …"
            self.job.cancel()

    def close(self) -> None:
        """Stop the training without waiting for it."""
        self.cancel()
        self._interrupt()

    def _check(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise UserError(f"'{name}' is no name for an adapter; use letters, digits, - and _, such as my-adapter")
        if self.is_busy:
            raise UserError("another training is running; wait for it, or stop it")
        if not isinstance(self._logic.engine, LocalEngine):
            raise UserError("trainings run on this computer alone; choose it as the place of the engine in Set-up")

    def _run(self, work, pairs: list[Pair], on_done, on_progress) -> "str | Job":
        def progress(event: dict) -> None:
            if "answer" in event:
                event.pop("answer").put(_study_or_error(pairs[event["done"]], event["name"]))
            self.status = words.training(event)
            on_progress(self.status, event)

        def end(job: Job) -> None:
            self.status = _last_status(job)
            if on_done is not None:
                on_done(job)

        self.job = Job(work, progress, end)
        if on_done is not None:
            poll_by_timer(self.job)
            return self.job
        try:
            self.job.wait()
        except BaseException:  # Ctrl-C in a console
            self.close()
            self.job.wait()  # until it has saved; nobody else polls it
            raise
        if self.job.error:
            raise self.job.error
        return self.job.value

    def _write_data_set(self, job: Job, pairs: list[Pair], settings: Settings) -> None:
        """Write the pairs in the layout of `engine.data.pairs`, a folder for each patient; called in the thread."""
        patients = list(dict.fromkeys(pair.patient for pair in pairs))
        names = {patient: f"patient-{number:03}" for number, patient in enumerate(patients, 1)}
        target = data_folder(settings.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as temporary:
            folder = Path(temporary) / target.name
            for number, pair in enumerate(pairs):
                name = f"volume-{number + 1:03}"
                volume, segments = _ask(job, number, len(pairs), name)
                part = folder / names[pair.patient]
                part.mkdir(parents=True, exist_ok=True)
                write_volume(part / f"{name}.nrrd", volume)
                write_segments(part / f"{name}{SEGMENTATION_SUFFIX}", segments, volume)
            write_text(folder / SPLITS, json.dumps(_splits([*names.values()]), indent=1) + "\n")
            write_text(folder / SETTINGS, json.dumps(asdict(settings), indent=1) + "\n")
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)

    def _train(self, job: Job, engine: LocalEngine, settings: Settings) -> str:
        """Run `engine.train` to its end; called in the thread."""
        run, output = _adapter(settings.name) / "run", data_folder(settings.name) / OUTPUT
        job.report({"state": "starting"})
        with output.open("wb") as log:
            command = _command(settings, resume=(run / CHECKPOINT).is_file())
            process = self._process = engine.run(command, log)
        try:
            while process.poll() is None:
                progress = read_progress(run, settings.epochs)
                done = progress.epochs_done if progress else 0
                event = {"state": "training", "done": done, "total": settings.epochs, "progress": progress}
                job.report(event | {"name": settings.name})
                time.sleep(LOOK_SECONDS)
        except Cancelled:
            self._interrupt()
            _wait_for_end(process)
            raise
        if process.returncode:
            raise UserError(f"the training of '{settings.name}' stopped: {_last_words(output)}")
        return settings.name

    def _interrupt(self) -> None:
        """Interrupt the process once: at a second time it would end without saving."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            interrupt(process)


def data_folder(name: str) -> Path:
    """Return where the data set of a training is: beside the user's models."""
    return user_models().parent / "training" / name


def _adapter(name: str) -> Path:
    return user_models() / name


def _ask(job: Job, number: int, total: int, name: str):
    """Have the main thread copy a pair out of the scene, and wait for it."""
    answer: queue.SimpleQueue = queue.SimpleQueue()
    job.report({"state": "writing", "done": number, "total": total, "name": name, "answer": answer})
    while True:
        try:
            study = answer.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            if job.cancelled:
                raise Cancelled from None
            continue
        if isinstance(study, Exception):
            raise study
        return study


def _study_or_error(pair: Pair, name: str):
    try:
        return study_of(pair, name)
    except Exception as error:  # raised again in the thread, which ends by it
        return error


def _splits(patients: list[str]) -> dict[str, list[str]]:
    """Return which patients are for training and which for validation: evenly chosen, one at least."""
    count = max(1, round(VALIDATION_SHARE * len(patients)))
    chosen = {patients[(2 * number + 1) * len(patients) // (2 * count)] for number in range(count)}
    return {"train": [p for p in patients if p not in chosen], "val": [p for p in patients if p in chosen]}


def _command(settings: Settings, resume: bool) -> list[str]:
    return [
        "engine.train",
        *("--data", str(data_folder(settings.name)), "-o", str(_adapter(settings.name))),
        *("--method", settings.method, "--base", settings.base, "--epochs", str(settings.epochs)),
        "--resume" if resume else "--overwrite",
    ]


def _wait_for_end(process: subprocess.Popen) -> None:
    """Let an interrupted training save, and end it where that takes too long."""
    try:
        process.wait(SAVE_SECONDS)
    except subprocess.TimeoutExpired:
        end_tree(process)


def _last_status(job: Job) -> str:
    if isinstance(job.error, Cancelled):
        return "stopped; Resume goes on"
    return str(job.error) if job.error else f"{job.value} is trained, and is among the adapters"


def _last_words(output: Path) -> str:
    """Return the last line of what a training said."""
    lines = output.read_text(encoding="utf-8", errors="replace")[-LAST_WORDS:].split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("error: ") if said else "it said nothing"
