"""What can be done in the page: its state becomes calls of the module's logic, and their news become state.

All of this runs in one thread, as the scene wants it; what takes long runs in another, and its news are fetched.
"""

import asyncio
from collections.abc import Callable
from functools import wraps
from pathlib import Path

from trame_server.utils.asynchronous import create_task
from VLSMSegmenterLib.shared import choices, segmentations, words
from VLSMSegmenterLib.shared.engines import RemoteEngine
from VLSMSegmenterLib.shared.logic import SegmenterLogic
from VLSMSegmenterLib.shared.volumes import grid_of
from VLSMSegmenterLib.shared.worker import POLL_MILLISECONDS, Job

from engine.errors import Cancelled, UserError
from viewer import files
from viewer.scene import Scan, Scene

SETTLE_SECONDS = 0.3  # between the last move of the threshold and new surfaces
MOST_SUGGESTIONS = 12
PERCENT = 100


def said(method: Callable) -> Callable:
    """Let a method say in the page what the user can mend."""

    @wraps(method)
    def careful(self, *arguments, **named):
        try:
            return method(self, *arguments, **named)
        except UserError as error:
            self.say(str(error), wrong=True)

    return careful


class Actions:
    """What buttons, sliders and keys do.

    Args:
        server: trame's; its state is what the page shows.
        engine: where to compute.
        inbox: of files that the page brings.
    """

    def __init__(self, server, scene: Scene, engine: RemoteEngine, inbox: files.Inbox):
        self._state, self._scene, self._inbox = server.state, scene, inbox
        self._logic = SegmenterLogic(engine, self._follow)
        self._cards: dict[str, dict] = {}
        self._unclear: Path | None = None  # what was opened, and is to be chosen from
        self._wanted_adapter = ""  # until the engine has said what it has
        self._recalled = False
        self._undo: list[Callable[[], str]] = []  # each says what it did
        self._moved: asyncio.Task | None = None
        self._stale = False  # whether the threshold has moved on since segments were made
        self._surfaces: asyncio.Task | None = None
        on = self._state.change
        on("adapter")(lambda **state: self._show_adapter())
        on("scan")(lambda scan, **state: self._choose_scan(scan))
        on("threshold", "largest_only", "holes_filled", "smoothed")(lambda **state: self._adjust_soon())
        on("preset")(lambda **state: self._show_window())
        on("opacity")(lambda **state: self._scene.set_opacity(self._state.opacity / PERCENT))
        on("surfaces")(lambda **state: self._refresh_surfaces(0))
        on("probability", "chosen")(lambda **state: self._show_probability())
        for name, action in {
            "recall": self.recall,
            "receive": self._inbox.put,
            "open": self.open,
            "say": self.say,
            "save": self.save,
            "move": scene.move,
            "cancel": self.cancel,
            "paint": self.paint,
            "rename": self.rename,
        }.items():
            server.trigger(name)(action)

    def begin(
        self, file: str | None, segments: str | None, series: str | None, frame: int | None, adapter: str | None
    ) -> None:
        """Ask the engine what it has, and open what the session begins with."""
        with self._state:
            self._wanted_adapter = adapter or ""
            self.say("asking the engine for its adapters …")
            self._logic.ask_engine(self._on_catalog)
            if file:
                self._open(Path(file), files.Choice(series, frame), Path(segments) if segments else None)

    def recall(self, remembered: dict) -> None:
        """Choose what this browser chose before, once: a page that is loaded anew finds its session as it was."""
        if self._recalled:
            return
        self._recalled, state = True, self._state
        state.dark = bool(remembered.get("dark", state.dark))
        state.recent = [str(prompt) for prompt in remembered.get("recent") or []][: words.MOST_RECENT]
        self._wanted_adapter = self._wanted_adapter or remembered.get("adapter") or ""
        self._choose_adapter()

    def say(self, text: str, wrong: bool = False) -> None:
        self._state.message, self._state.wrong = text, wrong

    # Scans

    @said
    def open(self, batch: int) -> None:
        """Open what the page brought."""
        self._open(self._inbox.path(batch), files.Choice())

    @said
    def open_chosen(self) -> None:
        """Open again what was unclear, now that something was chosen of it."""
        frame = str(self._state.frame or "").strip()
        if frame and not frame.isdecimal():
            raise UserError(f"'{frame}' is no volume; give its number")
        series = (self._state.series or "").strip() or None
        choice = files.Choice(series, int(frame) if frame else None, bool(self._state.resample))
        self._open(self._unclear, choice)

    def _open(self, path: Path, choice: files.Choice, segments: Path | None = None) -> None:
        self._state.opening, self._state.unclear = True, False
        self.say(f"reading {path.name} …")
        create_task(self._read(path, choice, segments))

    async def _read(self, path: Path, choice: files.Choice, segments: Path | None) -> None:
        try:
            volume = await asyncio.to_thread(self._inbox.read, path, choice)
            with self._state:
                scan = self._scene.add(volume)
                if segments:
                    self._scene.load_segments(segments, scan)
                self._show_scans()
                self.say("\n".join([f"{scan.node.GetName()} is open", *(f"Careful: {w}" for w in volume.warnings)]))
        except (UserError, OSError, MemoryError) as error:
            with self._state:
                self._unclear, self._state.unclear = path, isinstance(error, files.Unclear)
                self.say(str(error) or "there is not enough memory for this file", wrong=True)
        with self._state:
            self._state.opening = False

    def close_scan(self) -> None:
        """Close the scan that is shown, with its segments."""
        if not self._logic.is_busy and self._scene.shown:
            self._scene.remove(self._scene.shown)
            self._undo.clear()
            self._show_scans()

    def _choose_scan(self, identifier: str | None) -> None:
        wanted = next((scan for scan in self._scene.scans if scan.node.GetID() == identifier), None)
        if wanted and wanted is not self._scene.shown:
            self._scene.show(wanted)
            self._show_scans()

    def _show_scans(self) -> None:
        shown = self._scene.shown
        self._state.scans = [
            {"value": scan.node.GetID(), "title": scan.node.GetName()} for scan in self._scene.scans
        ]
        self._state.scan = shown.node.GetID() if shown else None
        self._state.facts = _facts(shown) if shown else ""
        self._state.flat = bool(shown) and shown.volume.shape[0] == 1
        self._state.chosen, self._state.preset = [], "auto"
        self._show_window()
        self._show_adapter()
        self._show_segments()
        self._show_threshold()
        self._refresh_surfaces(0)
        self._scene.set_opacity(self._state.opacity / PERCENT)

    # The engine

    def _on_catalog(self, job: Job) -> None:
        with self._state:
            if job.error:
                self.say(str(job.error), wrong=True)
                return
            self._cards = {card["name"]: card for card in job.value["adapters"]}
            self._state.adapters = [choices.NO_ADAPTER, *self._cards]
            self._state.bases = [choices.OWN, *job.value["bases"]]
            self._choose_adapter()
            if not self._state.opening:
                self.say(f"ready, on {words.device(job.value['device'])}")

    def ask_again(self) -> None:
        """Ask the engine anew what it has."""
        self.say("asking the engine for its adapters …")
        self._logic.ask_engine(self._on_catalog)

    def _choose_adapter(self) -> None:
        if self._wanted_adapter in self._state.adapters:
            self._state.adapter, self._wanted_adapter = self._wanted_adapter, ""
        elif self._cards and self._state.adapter not in self._state.adapters:
            self._state.adapter = next(iter(self._cards))
        self._show_adapter()

    def _show_adapter(self) -> None:
        card, shown = self._cards.get(self._state.adapter), self._scene.shown
        self._state.card = choices.card_at_a_glance(card, shown.node if shown else None)
        known = [{"text": text, "recent": False} for text in (card["prompts"] if card else [])]
        recent = [
            {"text": text, "recent": True} for text in self._state.recent if not card or text not in card["prompts"]
        ]
        self._state.suggestions = [*known[:MOST_SUGGESTIONS], *recent][: 2 * MOST_SUGGESTIONS]

    # Segmenting

    def suggest(self, prompt: str) -> None:
        """Put a prompt into the box, beside those that are there; or take it out again."""
        there = words.split_prompts(self._state.prompts or "")
        kept = [text for text in there if text != prompt]
        self._state.prompts = "; ".join(kept if prompt in there else [*there, prompt])

    @said
    def segment(self) -> None:
        """Segment the prompts; ask first where some have segments already."""
        if self._logic.is_busy:
            return
        there = self._logic.already_there(self._node(), self._state.prompts or "")
        if there:
            self._state.again = there
        else:
            self.run(replace=False)

    @said
    def run(self, replace: bool) -> None:
        """Segment the prompts, replacing their own segments or beside them."""
        state, node = self._state, self._node()
        state.again = []
        chosen = {"base": state.base, "plane": state.plane, "window": state.input_window}
        chosen = {name: choice for name, choice in chosen.items() if choice != choices.OWN}
        clean_up = {name: bool(state[name]) for name in ("largest_only", "holes_filled", "smoothed")}
        adapter = state.adapter if state.adapter in self._cards else None
        self._logic.segment(
            node,
            state.prompts or "",
            adapter,
            on_done=self._on_done,
            on_progress=self._on_progress,
            replace=replace,
            **chosen,
            **clean_up,
        )
        state.recent = words.newest_first(words.split_prompts(state.prompts), state.recent)
        state.busy, state.done, state.total = True, 0, 0
        self._show_adapter()

    def cancel(self) -> None:
        """Stop what runs, or take back a question."""
        self._state.again = []
        if self._logic.is_busy:
            self.say("cancelling …")
            self._logic.cancel()

    def _node(self):
        if self._scene.shown is None:
            raise UserError("there is no scan; open one first")
        return self._scene.shown.node

    def _on_progress(self, text: str, event: dict) -> None:
        with self._state:
            self._state.done, self._state.total = event.get("done", 0), event.get("total", 0)
            self.say(text)

    def _on_done(self, job: Job) -> None:
        with self._state:
            self._state.busy = False
            if job.error is None:
                self._undo.append(self._undo_run)
                self._show_segments()
                self._show_threshold()
                self._scene.set_opacity(self._state.opacity / PERCENT)
                self._refresh_surfaces(0)
                self._go_to_last(job.value)
            self.say(self._logic.status, wrong=job.error is not None and not isinstance(job.error, Cancelled))

    def _go_to_last(self, node) -> None:
        if segmentations.segment_ids(node):
            self._scene.go_to(segmentations.segment_ids(node)[-1])

    # Segments

    def _show_segments(self) -> None:
        node = self._scene.segmentation()
        found = {finding.segment_id: finding for finding in self._logic.findings(node)}
        rows = (
            [self._row(node, identifier, found.get(identifier)) for identifier in segmentations.segment_ids(node)]
            if node
            else []
        )
        self._state.segments = rows
        self._state.chosen = [
            identifier for identifier in self._state.chosen if identifier in {row["id"] for row in rows}
        ]
        self._state.adjustable = bool(found)
        self._state.can_undo = bool(self._undo)

    def _row(self, node, identifier: str, finding) -> dict:
        segment, tags = node.GetSegmentation().GetSegment(identifier), segmentations.tags_of(node, identifier)
        return {
            "id": identifier,
            "name": segment.GetName(),
            "color": _hex(segment.GetColor()),
            "presence": f"{finding.result.presence:.2f}" if finding else tags.get(segmentations.PRESENCE, ""),
            "size": finding.answer if finding else self._size(node, identifier),
            "voxels": finding.voxels if finding else None,
            "visible": node.GetDisplayNode().GetSegmentVisibility(identifier),
        }

    def _size(self, node, identifier: str) -> str:
        """Return the size of a segment that was not made here."""
        grid = grid_of(self._scene.shown.node)
        voxels = int(segmentations.read_mask(node, identifier, grid).sum())
        return words.size(voxels, grid.voxel_volume_ml, grid.shape[0] == 1) if voxels else "empty"

    def toggle(self, identifier: str) -> None:
        """Show or hide a segment."""
        display = self._scene.segmentation().GetDisplayNode()
        display.SetSegmentVisibility(identifier, not display.GetSegmentVisibility(identifier))
        self._show_segments()

    def paint(self, identifier: str, color: str) -> None:
        """Give a segment a colour, such as "#00ff00"."""
        segment = self._scene.segmentation().GetSegmentation().GetSegment(identifier)
        if segment:
            segment.SetColor(*(int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)))
            self._show_segments()

    def rename(self, identifier: str, name: str) -> None:
        segment = self._scene.segmentation().GetSegmentation().GetSegment(identifier)
        if segment and name.strip():
            segment.SetName(" ".join(name.split()))
        self._show_segments()

    def choose(self, identifier: str) -> None:
        """Choose a segment for the threshold and the probability, or no longer; go to where it is."""
        chosen = self._state.chosen
        self._state.chosen = [] if identifier in chosen else [identifier]
        if self._state.chosen:
            self._scene.go_to(identifier)
        self._show_threshold()

    def delete(self, identifier: str) -> None:
        """Remove a segment; it can be undone."""
        node = self._scene.segmentation()
        before = segmentations.snapshot(node, identifier)
        node.GetSegmentation().RemoveSegment(identifier)

        def undo() -> str:
            segmentations.restore(node, identifier, before)
            return f"'{before.name}' is back"

        self._undo.append(undo)
        self._show_segments()
        self.say(f"'{before.name}' was deleted; undo brings it back")

    @said
    def undo(self) -> None:
        """Take back the last run or deletion."""
        if self._undo and not self._logic.is_busy:
            self.say(self._undo.pop()())
            self._show_segments()
            self._refresh_surfaces(0)

    def _undo_run(self) -> str:
        self._logic.undo()
        return self._logic.status

    # Threshold

    def _show_threshold(self) -> None:
        """Put the slider where the chosen segments, or the last, were made."""
        findings = self._adjusted()
        if findings:
            self._state.threshold = round(findings[-1].threshold * PERCENT)

    def _adjusted(self) -> list:
        findings = self._logic.findings(self._scene.segmentation())
        chosen = self._state.chosen
        return [finding for finding in findings if not chosen or finding.segment_id in chosen]

    def _adjust_soon(self) -> None:
        """Make the segments anew, but not more often than that takes: a slider says more than can be shown."""
        self._stale = True
        if self._moved is None or self._moved.done():
            self._moved = create_task(self._adjust())

    async def _adjust(self) -> None:
        while self._stale:
            self._stale = False
            with self._state:
                self._adjust_once()
            await asyncio.sleep(0)

    def _adjust_once(self) -> None:
        state = self._state
        wanted = {name: bool(state[name]) for name in ("largest_only", "holes_filled", "smoothed")}
        wanted["threshold"] = min(max(state.threshold / PERCENT, 0.01), 0.99)
        findings = [
            finding for finding in self._adjusted() if any(getattr(finding, k) != v for k, v in wanted.items())
        ]
        if not findings or self._logic.is_busy:
            return
        self._scene.set_surfaces(False)  # to make these at each step takes too long
        ids = [finding.segment_id for finding in findings]
        left_alone = self._logic.adjust(self._scene.segmentation(), segment_ids=ids, **wanted)
        lines = [finding.describe() for finding in self._adjusted()]
        if left_alone:
            lines.append(f"left as edited: {', '.join(left_alone)}")
        self.say("\n".join(lines))
        self._show_segments()
        self._show_probability()
        self._refresh_surfaces(SETTLE_SECONDS)

    # How it looks

    @said
    def _show_window(self) -> None:
        if self._scene.shown:
            self._scene.set_window(self._scene.shown, self._state.preset)

    def _refresh_surfaces(self, seconds: float) -> None:
        """Make surfaces of the segments as they are after a while, if they are wanted and nothing else comes."""
        if self._surfaces is not None:
            self._surfaces.cancel()

        async def later() -> None:
            await asyncio.sleep(seconds)
            self._scene.set_surfaces(bool(self._state.surfaces))

        self._surfaces = create_task(later())

    @said
    def _show_probability(self) -> None:
        findings = self._adjusted()
        if not self._state.probability or not findings:
            self._scene.hide_probability()
            return
        node = self._scene.segmentation()
        self._scene.show_probability(self._logic.add_probability_volume(node, findings[-1].segment_id))

    def reset_views(self) -> None:
        for view in self._scene.views.values():
            view.reset_view()

    # Files for the page

    async def save(self, kind: str) -> list | None:
        """Return the name and the content of a file; None where it cannot be made, which is said."""
        try:
            stem = files.stem_of(self._node().GetName())
            if kind == ".png":
                return [f"{stem}.png", files.png(self._scene)]
            segments, volume = files.segments_of(self._scene, self._logic), self._scene.shown.volume
            name, content = await asyncio.to_thread(files.written, kind, stem, segments, volume)
        except UserError as error:
            self.say(str(error), wrong=True)
            return None
        self.say(f"{name} is saved where the browser puts downloads")
        return [name, content]

    def _follow(self, job: Job) -> None:
        """Poll a job until it is finished."""

        async def poll() -> None:
            while not job.poll():
                await asyncio.sleep(POLL_MILLISECONDS / 1000)

        job.follower = create_task(poll())  # a task that nobody holds may be lost


def _facts(scan: Scan) -> str:
    grid, volume = grid_of(scan.node), scan.source
    size = " × ".join(map(str, grid.shape[::-1]))
    spacing = " × ".join(f"{value:.3g}" for value in grid.spacing_mm)
    kind = f"{volume.modality}, " if volume.modality else ""
    return f"{kind}{size} pixels" if grid.shape[0] == 1 else f"{kind}{size} voxels of {spacing} mm"


def _hex(color: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in color)
