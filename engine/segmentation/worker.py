"""A batch on this machine, by a process of its own with one warm segmenter. Where it dies, whatever the reason, the
study in its hands has failed, and another process goes on with the next."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path

from engine.errors import UserError
from engine.segmentation.batch import End, Order, Settings, Study, end_of, work_on

STOP_SECONDS = 1.0
READY, REFUSED, PROGRESS, REPORT, END = range(5)  # what a message says; its content follows


def segment_one_by_one(
    settings: Settings,
    studies: Sequence[Study],
    order: Order,
    on_begin: Callable[[int, int, Study], None] = lambda number, count, study: None,
    on_progress: Callable[[str, int, int], None] = lambda step, done, total: None,
    on_report: Callable[[dict, Path], None] = lambda report, path: None,
) -> Iterator[End]:
    """Segment studies, and yield how each ended.

    Args:
        on_begin: called with each study's number, from 1, how many there are, and the study.
        on_progress, on_report: see `work_on`.

    Raises:
        UserError: a process dies while it loads the models, or cannot have them.
    """
    told = {PROGRESS: on_progress, REPORT: on_report}
    worker = _Worker(settings)
    try:
        for number, study in enumerate(studies, start=1):
            worker = worker if worker.is_alive else _Worker(settings)
            on_begin(number, len(studies), study)
            yield worker.segment(study, order, told)
    finally:
        worker.stop()


class _Worker:
    """The process that works, seen from the one that hands out studies.

    Raises:
        UserError: it does not come to work.
    """

    def __init__(self, settings: Settings):
        spawn = multiprocessing.get_context("spawn")  # what was forked could not use a GPU
        self._connection, other_end = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(other_end, settings), daemon=True)
        with _interrupts_unheard():
            self._process.start()
        other_end.close()
        try:
            kind, *words = self._receive()
        except EOFError:
            words = f"the process that segments ended while it loaded the models ({self._last_word()})"
            raise UserError(f"{words}; close other programs, as it may need more memory") from None
        except BaseException:
            self.stop()
            raise
        if kind == REFUSED:
            raise UserError(*words)

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def segment(self, study: Study, order: Order, told: dict[int, Callable]) -> End:
        """Have a study segmented; `told` is called with what messages hold, by their kinds."""
        try:
            self._send(study, order)
            while True:
                kind, *content = self._receive()
                if kind == END:
                    return content[0]
                told[kind](*content)
        except EOFError:
            words = f"ended the process that worked on it ({self._last_word()})"
            reason = f"{study.path} {words}; it may be damaged, or need more memory than there is"
            return End(study.name, "failed", reason)

    def stop(self) -> None:
        """End the process, which cleans up if it can at once."""
        self._process.terminate()
        self._process.join(STOP_SECONDS)
        if self.is_alive:
            self._process.kill()
            self._process.join()

    def _send(self, *message: object) -> None:
        with _gone_as_end():
            self._connection.send(message)

    def _receive(self) -> tuple:
        with _gone_as_end():
            return self._connection.recv()

    def _last_word(self) -> str:
        self._process.join()
        code = self._process.exitcode
        with suppress(ValueError):
            return signal.Signals(-code).name
        return f"exit code {code}"


def _work(connection: Connection, settings: Settings) -> None:
    """Segment what comes through a connection, until it is closed: the worker's own process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that half-written files are removed
    with suppress(EOFError, KeyboardInterrupt):
        try:
            segmenter = settings.new_segmenter()
        except UserError as error:
            connection.send((REFUSED, str(error)))
            return
        connection.send((READY,))
        while True:
            study, order = connection.recv()
            end = end_of(
                study,
                lambda study=study, order=order: work_on(
                    segmenter,
                    study,
                    order,
                    lambda *step: connection.send((PROGRESS, *step)),
                    lambda *done: connection.send((REPORT, *done)),
                ),
            )
            connection.send((END, end))
    os._exit(0)  # unloading PyTorch takes a second


def _end_with_parent() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


@contextmanager
def _gone_as_end() -> Iterator[None]:
    """Raise EOFError where the process at the other end is gone, also in the middle of a message."""
    try:
        yield
    except OSError as error:
        raise EOFError from error


@contextmanager
def _interrupts_unheard() -> Iterator[None]:
    """Let a process that is started here never hear of Ctrl-C, which its parent tells it in its own way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
