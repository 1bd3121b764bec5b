"""A batch of studies on a Ray cluster: each worker keeps one warm segmenter, and a study whose worker dies is given
to another. Scans never travel: all machines read and write the same file system."""

import os
import platform
import secrets
import shutil
import socket
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.cli import log_what_names_nobody
from engine.errors import UserError
from engine.files import existing_part, left_folders, private_folder
from engine.segmentation.batch import End, Order, Settings, Study, end_of, work_on
from engine.version import __version__

LOCAL = "local"  # in place of an address: a cluster of this machine alone, for as long as the batch lasts
AUTO = "auto"  # the cluster that this machine belongs to
CONNECT_SECONDS = 10.0
MOST_ATTEMPTS = 3  # at a study, and at starting a worker
MARK = ".batch-"  # a folder among the results, by which workers see that theirs is the same file system
OBJECT_STORE_BYTES = 128 << 20  # only paths and ends go through it
WAIT_SECONDS = 1.0
SHORT = "/tmp" if Path("/tmp").is_dir() else None  # a folder for sockets, whose paths must not be long
NO_TELEMETRY = {"RAY_USAGE_STATS_ENABLED": "0"}
# All sockets listen on loopback and ask for a token that nobody else knows; workers wait for no other program. On a
# busy machine Ray's processes take longer to come up than the 30 seconds that Ray would wait.
FOR_THIS_MACHINE_ALONE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_worker_niceness": "0",
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_raylet_start_wait_time_s": "120",
}


def segment_on_cluster(
    address: str,
    workers: int | None,
    settings: Settings,
    studies: Sequence[Study],
    order: Order,
    on_progress: Callable[[int, int], None] = lambda done, working: None,
) -> list[End]:
    """Segment studies, all of whose outputs go into one folder.

    Args:
        address: of a cluster that runs, such as "10.0.0.5:6379", or "local".
        workers: how many, also several a GPU; one a GPU when None, or one a machine where there are none.
        on_progress: called at least every second with the studies that ended, and the workers at work.

    Returns:
        how each study ended, in their order.

    Raises:
        UserError: Ray is missing, the cluster is not there or has not what is asked for, or no worker can start.
    """
    folder = existing_part(studies[0].outputs.segments.parent)
    for left in left_folders(MARK, folder):
        shutil.rmtree(left, ignore_errors=True)
    with private_folder(MARK, folder) as mark, connected(address) as ray:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        count, share = shares(machines, workers, settings.device)
        kind = ray.remote(Worker).options(**share)
        crew = _Crew(ray, lambda: kind.remote(settings, mark, __version__, os.environ.get("VLSM_MODELS")), order)
        return crew.work_off(studies, count, on_progress)


def shares(
    machines: Sequence[Mapping[str, float]], workers: int | None, device: str
) -> tuple[int, dict[str, float]]:
    """Return how many workers there are, and what each takes of its machine, as Ray names it.

    Args:
        machines: the numbers of CPU and GPU of each.

    Raises:
        UserError: there is not enough for so many.
    """
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if device.startswith("cuda") and not gpus:
        raise UserError("no machine of the cluster has a GPU; choose --device cpu or auto")
    if gpus and device != "cpu":
        cpus = min(int(m.get("CPU", 0)) // int(m["GPU"]) for m in machines if m.get("GPU", 0) >= 1)
        count = workers or gpus
        crowd = -(-count // gpus)  # workers at one GPU: one computes while others read and write
        if crowd > max(cpus, 1):
            most = gpus * max(cpus, 1)
            raise UserError(f"the cluster has {cpus} CPU cores for each GPU; choose --workers {most} or fewer")
        return count, {"num_gpus": 1 / crowd, "num_cpus": cpus // crowd}
    count = workers or len(machines)
    cpus = [int(machine.get("CPU", 0)) for machine in machines]
    for share in range(sum(cpus) // count, 0, -1):  # the largest with which all find a place
        if sum(number // share for number in cpus) >= count:
            return count, {"num_cpus": share}
    raise UserError(f"the cluster has {sum(cpus)} CPU cores; choose --workers {sum(cpus)} or fewer")


class Worker:
    """What runs in a process of its own, on a GPU or on its share of the CPUs."""

    def __init__(self, settings: Settings, mark: Path, version: str, models: str | None):
        self._settings, self._mark, self._version = settings, mark, version
        if models:
            os.environ["VLSM_MODELS"] = models
        log_what_names_nobody()

    def start(self) -> str:
        """Load the models; return what the user has to mend first, if anything."""
        here = platform.node()
        if self._version != __version__:
            return f"{here} has engine {__version__}, and not {self._version}; install the same on all machines"
        if not self._mark.is_dir():
            return f"{here} does not see {self._mark.parent}; put scans and results where all machines see them"
        try:
            self._segmenter = self._settings.new_segmenter()
        except UserError as error:
            return f"{error} (on {here})"
        return ""

    def segment(self, study: Study, order: Order) -> End:
        return end_of(study, lambda: work_on(self._segmenter, study, order))


class _Crew:
    """The workers, what each is at, and the studies that nobody is at.

    Args:
        hire: asks the cluster for a further worker.
    """

    def __init__(self, ray: ModuleType, hire: Callable[[], Any], order: Order):
        self._ray, self._hire, self._order = ray, hire, order
        self._tasks: dict[Any, tuple[Any, Study | None]] = {}  # a worker that starts has no study yet
        self._idle: list[Any] = []
        self._waiting: deque[Study] = deque()
        self._attempts: Counter[str] = Counter()
        self._ends: dict[str, End] = {}

    def work_off(self, studies: Sequence[Study], count: int, on_progress: Callable[[int, int], None]) -> list[End]:
        self._waiting.extend(studies)
        for _ in range(min(count, len(studies))):
            self._start_one()
        while len(self._ends) < len(studies):
            ended, _ = self._ray.wait(list(self._tasks), timeout=WAIT_SECONDS)
            for task in ended:
                self._follow_up(task)
            on_progress(len(self._ends), sum(study is not None for _, study in self._tasks.values()))
        return [self._ends[study.name] for study in studies]

    def _start_one(self) -> None:
        worker = self._hire()
        self._tasks[worker.start.remote()] = worker, None

    def _follow_up(self, task: Any) -> None:
        """Take what a worker answers, and give it, or one in its place, what comes next."""
        worker, study = self._tasks.pop(task)
        try:
            answer = self._ray.get(task)
        except self._ray.exceptions.RayError as error:  # it was killed, or its machine is gone
            self._ray.kill(worker)  # so that it does not go on where only the connection broke
            self._take_back(study, type(error).__name__)
            self._start_one()
        else:
            if study:
                self._ends[study.name] = answer
            elif answer:
                raise UserError(answer)
            self._idle.append(worker)
        while self._idle and self._waiting:
            self._give(self._idle.pop(), self._waiting.popleft())

    def _give(self, worker: Any, study: Study) -> None:
        """Give a worker a study; where another died of it, that may have written a part, or all."""
        order = replace(self._order, resume=True) if self._attempts[study.name] else self._order
        self._tasks[worker.segment.remote(study, order)] = worker, study

    def _take_back(self, study: Study | None, reason: str) -> None:
        """Let a study wait again whose worker died, unless that happened too often."""
        name = study.name if study else ""
        self._attempts[name] += 1
        given_up = self._attempts[name] == MOST_ATTEMPTS
        if study is None and given_up:
            raise UserError(f"workers die while they load the models ({reason}); give each more memory")
        if study and given_up:
            words = f"ended {MOST_ATTEMPTS} workers ({reason}); perhaps it needs more memory than one has"
            self._ends[name] = End(name, "failed", f"{study.path} {words}")
        elif study:
            self._waiting.appendleft(study)


@contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """Yield the package Ray, connected to a cluster; a local one ends with this."""
    os.environ.update(NO_TELEMETRY)
    if address == LOCAL:
        os.environ.update(FOR_THIS_MACHINE_ALONE, RAY_AUTH_TOKEN=secrets.token_hex(32))
    elif address != AUTO:
        _check_reachable(address)
    try:
        import ray  # it reads the environment now
    except ModuleNotFoundError as error:
        raise UserError(f"a cluster needs {error.name}; run pip install --editable '.[cluster]'") from error
    with tempfile.TemporaryDirectory(prefix="ray-", dir=SHORT, ignore_cleanup_errors=True) as folder:
        alone = {"num_cpus": _cpus(), "object_store_memory": OBJECT_STORE_BYTES, "_temp_dir": folder}
        where = alone | {"include_dashboard": False} if address == LOCAL else {}
        try:
            ray.init(address, log_to_driver=False, logging_level="error", **where)
        except Exception as error:  # Ray raises many kinds, also where a busy machine is slow to start it
            reason = " ".join(str(error).split())
            raise UserError(f"there is no Ray cluster to work with at {address} ({reason}); see --help") from error
        try:
            yield ray
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse an address where nobody answers; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"no Ray cluster answers at {address} ({error}); give HOST:PORT, auto or local") from error


def _cpus() -> int:
    """Return the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
