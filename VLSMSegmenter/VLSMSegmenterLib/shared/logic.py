"""Segment volume nodes by prompts, from Python or from the panel.

    logic = slicer.modules.vlsmsegmenter.widgetRepresentation().self().logic  # or SegmenterLogic(), a plain class
    segmentation = logic.segment(volumeNode, "left lung; right lung", adapter="chest-film")

Everything here belongs to the main thread; what takes long runs in a job of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import slicer
import slicer.util

from engine.client import Client, RemoteVolume, Result
from engine.client.protocol import LEVELS
from engine.errors import Cancelled, UserError
from engine.imaging.volumes.segments import segment_colors
from VLSMSegmenterLib.shared import segmentations, words
from VLSMSegmenterLib.shared.engines import LocalEngine, RemoteEngine
from VLSMSegmenterLib.shared.findings import Finding, Request, digest_of
from VLSMSegmenterLib.shared.terminology import terminology_of
from VLSMSegmenterLib.shared.volumes import Box, Grid, add_volume, box_of, grid_of, modality_of, voxels_of
from VLSMSegmenterLib.shared.worker import Job, poll_by_timer


@dataclass(frozen=True, eq=False)
class _Order:
    """A request with the voxels in the box as they were when it was made; `key` changes when they are edited."""

    request: Request
    key: tuple
    voxels: np.ndarray
    grid: Grid
    box: Box
    modality: str | None


@dataclass(frozen=True, eq=False)
class _Sent:
    """A volume that an engine has: `there` is of no use to an engine that was started anew."""

    order: _Order
    client: Client
    there: RemoteVolume


class SegmenterLogic:
    """Segments volume nodes, one job at a time.

    Args:
        engine: where to compute; a process of this machine when None.
        follow: has a job polled, in the main thread, until it is finished; Qt's event loop does it in Slicer.

    Attributes:
        engine: may be changed when no job runs.
        status: what is going on or was last done, in words.
    """

    def __init__(
        self,
        engine: LocalEngine | RemoteEngine | None = None,
        follow: Callable[[Job], None] = poll_by_timer,
    ):
        self.engine = engine or LocalEngine()
        self._follow = follow
        self.status = ""
        self.job: Job | None = None
        self._findings: dict[tuple[str, str], Finding] = {}  # by the ids of segmentation and segment
        self._undo: list[tuple[str, bool, dict[str, segmentations.Snapshot | None]]] = []  # node, was new, before
        self._sent: _Sent | None = None  # the last volume, for the next prompt

    @property
    def is_busy(self) -> bool:
        return self.job is not None and not self.job.finished

    def segment(
        self,
        volume: "slicer.vtkMRMLScalarVolumeNode",
        prompts: str | Sequence[str],
        adapter: str | None = None,
        segmentation: "slicer.vtkMRMLSegmentationNode | None" = None,
        on_done: Callable[[Job], None] | None = None,
        on_progress: Callable[[str, dict], None] = lambda words, event: None,
        **options: object,
    ) -> "slicer.vtkMRMLSegmentationNode | Job":
        """Segment prompts in a volume and write each into a segment of its own.

        Args:
            prompts: a list, or a text with one a line or `;` between them.
            segmentation: where to write; that of the volume, or a new one, when None. Segments that are there are
                left as they are, unless `replace` is True.
            on_done: when given, the call returns at once, and this is called later with the job, whose `value` is
                the segmentation and whose `error` says what went wrong.
            on_progress: called with what is going on, in words and as the client's event.
            options: others of `Request`: base, plane, window, threshold, largest_only, holes_filled,
                smoothed, replace, roi.

        Returns:
            the segmentation node, or the running job where `on_done` is given.

        Raises:
            UserError: something is wrong with the volume, a prompt, an option or the engine. Nothing was written.
            Cancelled: the job was cancelled. Nothing was written.
        """
        given = words.split_prompts(prompts if isinstance(prompts, str) else "\n".join(prompts))
        if not given:
            raise UserError("there is no prompt; write what you want to see, such as: left lung; right lung")
        if self.is_busy:
            raise UserError("another segmentation is running; wait for it, or cancel it")
        request = Request(tuple(given), adapter, **options)
        job = self._start(volume, segmentation, request, on_done, on_progress)
        if on_done is not None:
            self._follow(job)
            return job
        try:
            job.wait(_let_slicer_live)
        except BaseException:  # Ctrl-C in a console
            self.cancel()
            job.wait()  # nobody else polls it, and it would count as running for ever
            raise
        if job.error:
            raise job.error
        return job.value

    def ask_engine(self, on_done: Callable[[Job], None]) -> Job:
        """Ask the engine, starting it where it does not run, what it has; `on_done` gets the job, whose `value` is
        {"adapters": cards, "bases": names, "device": name} or whose `error` says what went wrong."""
        engine = self.engine

        def work(job: Job) -> dict:
            client = engine.client()
            return {"adapters": client.adapters(), "bases": client.bases(), "device": client.health()["device"]}

        job = Job(work, lambda event: None, on_done, engine.stop)
        self._follow(job)
        return job

    def cancel(self) -> None:
        """Stop the running job, if any; nothing is written."""
        if self.is_busy:
            self.job.cancel()
            if self.engine.is_starting:  # it listens to nobody yet
                self.job.give_up_now()

    def close(self) -> None:
        """Cancel what runs and end the engine's process."""
        self.cancel()
        self.engine.stop()
        self._sent = None

    def already_there(
        self,
        volume: "slicer.vtkMRMLScalarVolumeNode",
        prompts: str | Sequence[str],
        segmentation: "slicer.vtkMRMLSegmentationNode | None" = None,
    ) -> list[str]:
        """Return the prompts whose own segments are there: ask before `replace`."""
        node = segmentations.segmentation_for(volume, segmentation)
        given = words.split_prompts(prompts if isinstance(prompts, str) else "\n".join(prompts))
        return [prompt for prompt in given if node and segmentations.segment_of_prompt(node, prompt)]

    def findings(self, segmentation: "slicer.vtkMRMLSegmentationNode | None") -> list[Finding]:
        """Return what was found for the segments that a segmentation still has, in their order."""
        if segmentation is None:
            return []
        keys = ((segmentation.GetID(), identifier) for identifier in segmentations.segment_ids(segmentation))
        return [self._findings[key] for key in keys if key in self._findings]

    def adjust(
        self,
        segmentation: "slicer.vtkMRMLSegmentationNode",
        threshold: float | None = None,
        largest_only: bool | None = None,
        holes_filled: bool | None = None,
        smoothed: bool | None = None,
        segment_ids: Sequence[str] | None = None,
    ) -> list[str]:
        """Make segments anew from their kept probabilities; the engine is not asked.

        Args:
            threshold, largest_only, holes_filled, smoothed: what is None stays as it is.
            segment_ids: which; all of those that this logic made when None.

        Returns:
            the names of the segments that were left as they are: they were edited or moved since they were made.
        """
        clean_up = {"largest_only": largest_only, "holes_filled": holes_filled, "smoothed": smoothed}
        changes = {k: v for k, v in {"threshold": threshold, **clean_up}.items() if v is not None}
        if threshold is not None and not 0 < threshold < 1:
            raise UserError(f"the threshold {threshold:g} is not between 0 and 1; give one such as 0.5")
        left_alone = []
        for finding in self.findings(segmentation):
            if segment_ids is not None and finding.segment_id not in segment_ids:
                continue
            if self._is_edited(segmentation, finding):
                left_alone.append(segmentation.GetSegmentation().GetSegment(finding.segment_id).GetName())
                continue
            self._write(segmentation, replace(finding, **changes))
        return left_alone

    def add_probability_volume(
        self, segmentation: "slicer.vtkMRMLSegmentationNode", segment_id: str
    ) -> "slicer.vtkMRMLScalarVolumeNode":
        """Add a segment's probability to the scene: float32, 0..1, on the volume's grid. Where it reaches t is the
        segment at the threshold t, before it is cleaned up.

        Raises:
            UserError: it is not kept (any more).
        """
        finding = self._findings.get((segmentation.GetID(), segment_id))
        if finding is None:
            raise UserError("the probability of this segment is not kept; segment its prompt again")
        values = np.zeros(finding.grid.shape, np.float32)
        values[finding.box] = finding.result.probability / np.float32(LEVELS)
        name = f"{segmentation.GetSegmentation().GetSegment(segment_id).GetName()} probability"
        return add_volume(values, finding.grid, name, segmentation.GetTransformNodeID())

    @property
    def can_undo(self) -> bool:
        return bool(self._undo)

    def undo(self) -> None:
        """Take back the last run: its new segments go, replaced ones are what they were, others are not touched."""
        if self.is_busy:
            raise UserError("a segmentation is running; wait for it, or cancel it, before undoing")
        while self._undo and not self._undo_one():
            pass

    def _undo_one(self) -> bool:
        """Take back the last run; False where its node was removed by hand."""
        node_id, was_new, before = self._undo.pop()
        node = slicer.mrmlScene.GetNodeByID(node_id)
        if node is None:
            return False
        for identifier, snapshot in before.items():
            self._findings.pop((node_id, identifier), None)
            if snapshot is None:
                node.GetSegmentation().RemoveSegment(identifier)
            else:
                segmentations.restore(node, identifier, snapshot)
        if was_new and not segmentations.segment_ids(node):
            slicer.mrmlScene.RemoveNode(node)
        self.status = "undone: " + ", ".join(before)
        return True

    def _start(self, volume, segmentation, request: Request, on_done, on_progress) -> Job:
        segmentations.segmentation_for(volume, segmentation)  # says what is wrong before anything is computed
        ids = volume.GetID(), segmentation.GetID() if segmentation else None
        order = self._order(volume, request)

        def progress(event: dict) -> None:
            self.status = words.progress(event)
            on_progress(self.status, event)

        def end(job: Job) -> None:
            if job.error is None:
                found, job.value = job.value, None
                try:
                    job.value = self._finish(ids, order, *found)
                except Exception as error:
                    job.error = error
            if job.error is not None:
                self.status = "cancelled" if isinstance(job.error, Cancelled) else str(job.error)
            if on_done is not None:
                on_done(job)

        self.job = Job(lambda job: self._compute(job, order), progress, end, self.engine.stop)
        return self.job

    def _order(self, volume, request: Request) -> "_Order":
        """Return all that the thread needs, which must not touch the scene."""
        grid, voxels, image = grid_of(volume), voxels_of(volume), volume.GetImageData()
        box = box_of(request.roi, volume) if request.roi else tuple(slice(0, size) for size in grid.shape)
        key = (volume.GetID(), image.GetAddressAsString(""), image.GetMTime(), grid, str(box))
        known = self._sent is not None and self._sent.order.key == key
        copy = self._sent.order.voxels if known else np.array(voxels[box])  # the thread must not see edits
        return _Order(request, key, copy, grid, box, modality_of(volume))

    def _compute(self, job: Job, order: "_Order") -> tuple["_Sent", list[Result], dict]:
        """Have the engine segment; called in the thread."""
        job.report({"state": "starting"})
        client = self.engine.client()
        last = self._sent
        if last and last.order.key == order.key and last.client is client:
            there = last.there
        else:
            part = order.grid.cropped(order.box)
            there = client.put_volume(
                order.voxels,
                part.spacing_mm,
                part.origin_lps,
                part.direction_lps,
                order.modality,
                flat=part.shape[0] == 1,
                spacing_known=(part.spacing_known,) * 3,
                on_progress=lambda done, total: job.report({"state": "sending", "done": done, "total": total}),
            )
        request = order.request
        options = {name: getattr(request, name) for name in ("adapter", "base", "plane", "window", "threshold")}
        results = client.segment(
            there, request.prompts, **options, on_progress=job.report, cancelled=lambda: job.cancelled
        )
        return _Sent(order, client, there), results, client.health()["device"]

    def _finish(self, ids, order: "_Order", sent: "_Sent", results: list[Result], device: str):
        """Write what was found; return the segmentation. All is taken back where a part of it fails."""
        self._sent = sent
        volume, chosen = (slicer.mrmlScene.GetNodeByID(identifier) if identifier else None for identifier in ids)
        if volume is None or (ids[1] and chosen is None):
            raise UserError("the volume or its segmentation was removed meanwhile; nothing was written")
        if volume.GetImageData() is None or grid_of(volume) != order.grid:
            raise UserError(f"the volume '{volume.GetName()}' was changed meanwhile; segment again")
        target = segmentations.segmentation_for(volume, chosen)
        node = segmentations.prepare(volume, target)
        before: dict[str, segmentations.Snapshot | None] = {}
        self._undo.append((node.GetID(), target is None, before))
        try:
            made = [self._write(node, self._finding(node, order, result, device, before)) for result in results]
        except Exception:
            self._undo_one()
            raise
        self._forget_what_is_gone()
        warnings = dict.fromkeys(warning for result in results for warning in result.warnings)
        self.status = "\n".join([*(finding.describe() for finding in made), *(f"Careful: {w}" for w in warnings)])
        return node

    def _finding(self, node, order: "_Order", result: Result, device: str, before: dict) -> Finding:
        request = order.request
        return Finding(
            self._segment_for(node, result, request, before),
            result,
            order.grid,
            order.box,
            segmentations.geometry_of(node),
            result.threshold,
            request.largest_only,
            request.holes_filled,
            request.smoothed,
            device=device,
        )

    @staticmethod
    def _segment_for(node, result: Result, request: Request, before: dict) -> str:
        """Return the id of a result's segment, new or to be replaced, with its tags; `before` gets what it was."""
        identifier = segmentations.segment_of_prompt(node, result.prompt) if request.replace else None
        if identifier is None:
            color = _free_color(node, result.prompt)
            identifier = segmentations.add_segment(node, result.prompt, color)
            before[identifier] = None
            tags = {segmentations.TERMINOLOGY: terminology_of(result.prompt)}
            segmentations.set_tags(node, identifier, tags)
        elif identifier not in before:
            before[identifier] = segmentations.snapshot(node, identifier)
        segmentations.set_tags(node, identifier, _tags(result, request))
        return identifier

    def _write(self, node, finding: Finding) -> Finding:
        """Write a finding's mask into its segment, and keep it."""
        mask = finding.mask()
        segmentations.write_mask(node, finding.segment_id, mask, finding.grid)
        clean_up = [name for name in ("smoothed", "largest_only", "holes_filled") if getattr(finding, name)]
        tags = {
            segmentations.THRESHOLD: f"{finding.threshold:g}",
            segmentations.CLEAN_UP: ", ".join(clean_up).replace("_", " ") or "none",
        }
        segmentations.set_tags(node, finding.segment_id, tags)
        finding = replace(finding, voxels=int(mask.sum()), digest=digest_of(mask))
        self._findings[node.GetID(), finding.segment_id] = finding
        return finding

    @staticmethod
    def _is_edited(node, finding: Finding) -> bool:
        if segmentations.geometry_of(node) != finding.geometry:
            return True
        return digest_of(segmentations.read_mask(node, finding.segment_id, finding.grid)) != finding.digest

    def _forget_what_is_gone(self) -> None:
        """Let go of the probabilities of segments that were removed."""
        for node_id, identifier in list(self._findings):
            node = slicer.mrmlScene.GetNodeByID(node_id)
            if node is None or node.GetSegmentation().GetSegment(identifier) is None:
                del self._findings[node_id, identifier]


def _tags(result: Result, request: Request) -> dict[str, str]:
    """Return what a segment was made from, under the names that the engine's own files use."""
    return {
        segmentations.PROMPT: result.prompt,
        segmentations.ADAPTER: f"{request.adapter} {result.adapter_sha256[:12]}" if request.adapter else "none",
        segmentations.BASE: f"{result.base} {result.base_sha256[:12]}",
        segmentations.PRESENCE: f"{result.presence:.3f}",
    }


def _free_color(node, prompt: str) -> tuple[float, float, float]:
    """Return the prompt's own colour, or another where a segment of the node has it."""
    segmentation = node.GetSegmentation()
    names = [segmentation.GetSegment(identifier).GetName() for identifier in segmentations.segment_ids(node)]
    return segment_colors([*names, prompt])[-1]


def _let_slicer_live() -> None:
    """Let Slicer draw and react while Python waits."""
    if hasattr(getattr(slicer, "app", None), "processEvents"):
        slicer.app.processEvents()
