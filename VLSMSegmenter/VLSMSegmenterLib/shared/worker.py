"""Jobs in threads of their own. Slicer's scene and widgets belong to the main thread: a job's news wait in a queue
until that thread asks for them, by a timer where there is Qt, by hand where there is none."""

import queue
import threading
import time
from collections.abc import Callable

from engine.errors import Cancelled

POLL_MILLISECONDS = 50
PATIENCE_SECONDS = 3.0  # after which what does not stop by itself is stopped


class Job:
    """A function that runs in a thread.

    Args:
        work: called with the job, in the thread; it should look at `cancelled` often and may `report`.
        on_event: called by `poll` with what was reported.
        on_end: called by `poll`, once, with the job.
        give_up: called, in another thread, when a cancelled job does not end by itself.

    Attributes:
        value: what `work` returned.
        error: what it raised; `Cancelled` whenever the job was cancelled.
        finished: whether `on_end` was called.
    """

    def __init__(
        self,
        work: Callable[["Job"], object],
        on_event: Callable[[object], None],
        on_end: Callable[["Job"], None],
        give_up: Callable[[], None] = lambda: None,
    ):
        self.value: object = None
        self.error: BaseException | None = None
        self.finished = False
        self._work, self._on_event, self._on_end, self._give_up = work, on_event, on_end, give_up
        self._news: queue.SimpleQueue = queue.SimpleQueue()
        self._cancelled_at: float | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def cancelled(self) -> bool:
        return self._cancelled_at is not None

    def report(self, event: object) -> None:
        """Let `poll` deliver an event.

        Raises:
            Cancelled: the job was cancelled.
        """
        if self.cancelled:
            raise Cancelled
        self._news.put(event)

    def cancel(self) -> None:
        """Ask the job to stop; `on_end` comes when it has, with `Cancelled` even where all was done already."""
        if self._cancelled_at is None:
            self._cancelled_at = time.monotonic()

    def give_up_now(self) -> None:
        """Stop what the job waits for, for a job that was cancelled."""
        self._cancelled_at = time.monotonic()
        threading.Thread(target=self._give_up, daemon=True).start()

    def poll(self) -> bool:
        """Deliver the news; return whether the job is finished. To be called in the main thread."""
        ended = self._ended.is_set()  # asked first: all that was reported is then in the queue
        while not self._news.empty():
            event = self._news.get()
            if not self.cancelled:
                self._on_event(event)
        if self.cancelled and not ended and time.monotonic() - self._cancelled_at > PATIENCE_SECONDS:
            self.give_up_now()
        if ended and not self.finished:
            if self.cancelled:  # also after all was done: who cancelled wants nothing of it
                self.value, self.error = None, Cancelled()
            self.finished = True
            self._on_end(self)
        return self.finished

    def wait(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Poll until the job is finished."""
        while not self.poll():
            meanwhile()
            self._ended.wait(POLL_MILLISECONDS / 1000)

    def _run(self) -> None:
        try:
            self.value = self._work(self)
        except BaseException as error:  # it is raised again, or shown, by the main thread
            self.error = error
        self._ended.set()


def poll_by_timer(job: Job) -> None:
    """Let Qt's event loop poll a job until it is finished."""
    import qt

    timer = qt.QTimer()

    def tick() -> None:
        try:
            over = job.poll()
        except BaseException:
            timer.stop()
            raise
        if over:
            timer.stop()

    timer.timeout.connect(tick)
    timer.start(POLL_MILLISECONDS)
    job.timer = timer  # a timer that nobody holds is deleted


def ask_in_background(
    work: Callable[[Job], object], on_value: Callable[[object], None], say: Callable[[str], None]
) -> Job:
    """Do work in a thread, by Qt's event loop: its value goes to `on_value`, or what went wrong to `say`. The job
    is to be held by the caller."""
    say("one moment …")

    def end(job: Job) -> None:
        if job.error:
            say(str(job.error))
        else:
            on_value(job.value)

    job = Job(work, lambda event: None, end)
    poll_by_timer(job)
    return job
