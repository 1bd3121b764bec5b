"""Models that stay warm between jobs, and what they do for one."""

import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from engine.client.protocol import mask_of_levels, to_levels
from engine.errors import UserError
from engine.models.bundle import adapter_names, find_adapter, read_card
from engine.models.places import local_base_names
from engine.segmentation.segmenter import DEFAULT_BASE, Result, Segmenter
from engine.server.jobs import Event, Job, Task
from engine.server.store import HeldResults, HeldVolume

Report = Callable[[Event], None]


class WarmSegmenters:
    """The segmenters that were used last. For one thread alone, but for `names`.

    Args:
        device, precision, batch_size: see `Segmenter`.
        limit: how many stay warm.
    """

    def __init__(self, device: str, precision: str, batch_size: str, limit: int):
        self._settings = {"device": device, "precision": precision, "batch_size": batch_size}
        self._limit = limit
        self._warm: OrderedDict[tuple, Segmenter] = OrderedDict()
        self._set: dict[Segmenter, tuple] = {}  # the volume's id, plane and window that a segmenter has set

    @property
    def names(self) -> list[str]:
        """The adapters, or bases without one, that are warm."""
        return [adapter or base for adapter, base, *_ in tuple(self._warm)]

    def segment(self, job: Job, report: Report) -> tuple[list[dict], HeldResults]:
        """Do a job.

        Args:
            report: called with every step; raise `Cancelled` in it to stop.

        Returns:
            what is said of each prompt, and what is held of it. Its seconds are those since the prompt before, so
            that the first one's hold what the model and the volume took.

        Raises:
            UserError: the task cannot be carried out.
        """
        started = time.monotonic()
        report({"state": "loading"})
        segmenter = self._segmenter(job.task)
        self._set_volume(segmenter, job.held, job.task, report)
        pace, rows, kept = _Pace("decoding", report), [], []
        prompts = job.task.prompts
        for number, prompt in enumerate(prompts):
            step = {"prompt": prompt}
            result = segmenter.segment(
                prompt,
                job.task.threshold,
                lambda done, total, n=number, step=step: pace(n * total + done, len(prompts) * total, step),
            )
            kept.append(to_levels(result.probability))
            seconds, started = time.monotonic() - started, time.monotonic()
            more = {"seconds": seconds, "warnings": list(segmenter.warnings(prompt))}
            rows.append(_row(result, kept[-1]) | _origin(segmenter) | more)
        thresholds, found = tuple(row["threshold"] for row in rows), tuple(row["found"] for row in rows)
        return rows, HeldResults(job.held.id, tuple(kept), thresholds, found)

    def forget(self, volume_id: str) -> None:
        """Let go of a volume wherever it is set."""
        for segmenter, (id, *_) in list(self._set.items()):
            if id == volume_id:
                segmenter.forget_volume()
                del self._set[segmenter]

    def _segmenter(self, task: Task) -> Segmenter:
        key = _key(task)
        if key not in self._warm:
            while len(self._warm) >= self._limit:
                self._set.pop(self._warm.popitem(last=False)[1], None)
            self._warm[key] = Segmenter(task.adapter, task.base, **self._settings)
        self._warm.move_to_end(key)
        return self._warm[key]

    def _set_volume(self, segmenter: Segmenter, held: HeldVolume, task: Task, report: Report) -> None:
        wanted = held.id, task.plane, task.window
        if self._set.get(segmenter) == wanted and segmenter.volume is held.volume:
            return
        self._set.pop(segmenter, None)
        segmenter.cache = held.encodings
        segmenter.set_volume(held.volume, task.plane, task.window, _Pace("encoding", report))
        self._set[segmenter] = wanted


class _Pace:
    """Reports a step's progress with the seconds that are left at the pace so far."""

    def __init__(self, state: str, report: Report):
        self._state, self._report, self._started = state, report, time.monotonic()

    def __call__(self, done: int, total: int, more: dict | None = None) -> None:
        elapsed = time.monotonic() - self._started
        left = round(elapsed / done * (total - done), 1) if done else None
        self._report({"state": self._state, "done": done, "total": total, "seconds_left": left, **(more or {})})


def check_names(task: Task) -> None:
    """Refuse models that are not in the model folders: a request must not name folders of the server's machine,
    nor have it fetch a base.

    Raises:
        UserError: one is not.
    """
    if task.adapter is not None and task.adapter not in adapter_names():
        raise UserError(f"there is no adapter '{task.adapter}'; there are {', '.join(adapter_names()) or 'none'}")
    if task.base is not None and task.base not in local_base_names():
        raise UserError(f"there is no base '{task.base}'; there are {', '.join(local_base_names())}")


def _key(task: Task) -> tuple:
    """Return what tells models apart; an adapter that was trained or calibrated again is another one."""
    card = read_card(find_adapter(task.adapter)) if task.adapter else None
    version = card and (card.sha256, card.presence_threshold)
    return task.adapter, task.base or (None if task.adapter else DEFAULT_BASE), version


def _origin(segmenter: Segmenter) -> dict:
    """Return what a result was made by: the base, and the hashes of its weights and of the adapter's."""
    return {
        "base": segmenter.base.name,
        "base_sha256": segmenter.base.sha256,
        "adapter_sha256": segmenter.card.sha256 if segmenter.card else "",
    }


def _row(result: Result, levels: np.ndarray) -> dict:
    voxels = int(mask_of_levels(levels, result.threshold).sum()) if result.found else 0
    millilitres = result.volume.voxel_volume_ml
    return {
        "prompt": result.prompt,
        "found": result.found,
        "presence": result.presence,
        "threshold": result.threshold,
        "voxels": voxels,
        "volume_ml": None if millilitres is None else voxels * millilitres,
    }
