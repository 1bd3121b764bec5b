"""Jobs wait in a queue and run one at a time."""

import asyncio
import logging
import secrets
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from engine.errors import Cancelled, UserError
from engine.server.refusal import Refusal
from engine.server.store import HeldVolume

Event = (
    dict  # a line of a job's progress; "state" is waiting, loading, encoding, decoding, done, cancelled or failed
)
FINAL = ("done", "cancelled", "failed")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What is to be segmented, and how; see `Segmenter`."""

    prompts: tuple[str, ...]
    adapter: str | None = None
    base: str | None = None
    plane: str | None = None
    window: str | None = None
    threshold: float | None = None


@dataclass(eq=False)
class Job:
    """A task on a volume, and how far it is.

    Attributes:
        event: the latest.
        changed: set with every event, for the one who follows the job.
        cancelled: read by the thread that computes.
    """

    task: Task
    held: HeldVolume
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    event: Event = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False

    def publish(self, event: Event) -> None:
        self.event = event
        self.changed.set()


class JobQueue:
    """Runs jobs in the order of their coming, in a thread of its own; everything else happens in the event loop.

    Args:
        work: computes a job in the thread, given a function for events; raise `Cancelled` or `UserError` in it.
        finish: makes the last event of what `work` returned, in the event loop.
        limit: how many jobs may wait.
    """

    def __init__(self, work: Callable[[Job, Callable], object], finish: Callable[[Job, object], Event], limit: int):
        self._work, self._finish, self._limit = work, finish, limit
        self._waiting: deque[Job] = deque()
        self._came = asyncio.Event()
        self.running: Job | None = None
        self.thread = ThreadPoolExecutor(1, "segmenting")

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises:
            Refusal: too many wait already.
        """
        if len(self._waiting) >= self._limit:
            raise Refusal(503, f"{self._limit} jobs are waiting already; try again later")
        self._waiting.append(job)
        self._tell_positions()
        self._came.set()

    def find(self, id: str) -> Job | None:
        """Return a job that waits or runs."""
        return next((job for job in (self.running, *self._waiting) if job and job.id == id), None)

    def cancel(self, job: Job) -> None:
        """Stop a job: at once while it waits, after the slices in hand while it runs."""
        job.cancelled = True
        if job in self._waiting:
            self._waiting.remove(job)
            job.publish({"state": "cancelled"})
            self._tell_positions()

    def stop(self) -> None:
        """End all jobs, and say so to those who follow them."""
        for job in filter(None, (self.running, *self._waiting)):
            job.cancelled = True
            job.publish({"state": "failed", "message": "the server was stopped; start it again"})
        self._waiting.clear()

    async def run(self) -> None:
        """Run jobs for ever."""
        while True:
            await self._came.wait()
            self._came.clear()
            while self._waiting:
                self.running = self._waiting.popleft()
                self._tell_positions()
                event = await self._run(self.running)
                self.running.publish(event)
                self.running = None

    async def _run(self, job: Job) -> Event:
        loop = asyncio.get_running_loop()

        def report(event: Event) -> None:
            if job.cancelled:
                raise Cancelled
            loop.call_soon_threadsafe(job.publish, event)

        try:
            answer = await loop.run_in_executor(self.thread, self._work, job, report)
            return {"state": "cancelled"} if job.cancelled else self._finish(job, answer)
        except Cancelled:
            return {"state": "cancelled"}
        except UserError as error:
            return {"state": "failed", "message": str(error)}
        except Exception as error:  # whatever is wrong with one job, others are still wanted
            log_unexpected(error)
            return {"state": "failed", "message": unexpected(error)}

    def _tell_positions(self) -> None:
        running = 1 if self.running else 0
        for number, job in enumerate(self._waiting):
            job.publish({"state": "waiting", "ahead": number + running})


def unexpected(error: BaseException) -> str:
    return f"the server met an unexpected {type(error).__name__}; its log says where"


def log_unexpected(error: BaseException) -> None:
    """Log kind and place of an error, but not its words: they may hold the name of a file, or of a patient."""
    places = "".join(traceback.format_tb(error.__traceback__)[-5:])
    logger.error("unexpected %s\n%s", type(error).__name__, places)
