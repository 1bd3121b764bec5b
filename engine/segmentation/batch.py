"""Studies in, ends out: what is done with each study of many, here or by a worker of a cluster."""

import glob
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.imaging.dicom.archive import is_archive, unpacked
from engine.imaging.dicom.series import Series, is_dicom, is_directory, is_scan, list_series, uid_end
from engine.imaging.reading import find_studies, image_suffix, read_frames, read_volume
from engine.imaging.volumes.volume import Volume
from engine.segmentation.request import Outputs, Request, check_outputs, fingerprint
from engine.segmentation.studies import is_done, segment_study, was_begun

if TYPE_CHECKING:
    from engine.segmentation.segmenter import Segmenter

ALL_FRAMES = "all"
FRAME_DIGITS = 4


@dataclass(frozen=True)
class Settings:
    """What a segmenter is made of; see `Segmenter`."""

    adapter: str | None = None
    base: str | None = None
    device: str = "auto"
    precision: str = "auto"
    batch_size: str = "auto"

    def new_segmenter(self) -> "Segmenter":
        from engine.segmentation.segmenter import Segmenter  # PyTorch takes seconds, and hands out no studies

        return Segmenter(**asdict(self))


@dataclass(frozen=True)
class Study:
    """A scan's file or folder, and what it becomes.

    Attributes:
        series: the UID of the one that is meant, where the folder has several; see `Order` otherwise.
    """

    name: str
    path: Path
    outputs: Outputs
    series: str | None = None


@dataclass(frozen=True)
class Order:
    """What is done with every study.

    Attributes:
        series, frame, resample: how a scan is read (see `read_volume`); the frame may be "all".
        resume: leave out what is done.
        overwrite: replace files that are there.
        store: the DICOMweb server that also gets the segmentations and measurements.
        scans: all inputs, which no output may replace.
    """

    request: Request
    series: str | None = None
    frame: int | str | None = None
    resample: bool = False
    resume: bool = False
    overwrite: bool = False
    store: str | None = None
    scans: tuple[Path, ...] = ()

    def source_of(self, study: Study) -> str:
        """Return the fingerprint of a study's scan, for its report."""
        return fingerprint(study.path, study.series or self.series, self.frame, self.resample)


@dataclass(frozen=True)
class End:
    """How a study of many ended: "done", now or in an earlier run, or "failed" for a reason."""

    study: str
    state: str
    reason: str


def end_of(study: Study, work: Callable[[], None]) -> End:
    """Do the work on a study, and say how it ended: whatever is wrong with one, the others are still wanted."""
    reason = ""
    try:
        work()
    except UserError as error:
        reason = str(error)
    except Exception as error:
        reason = f"{study.path} gave an unexpected {type(error).__name__}: {error}"
    return End(study.name, "failed" if reason else "done", " ".join(reason.split()))


def work_on(
    segmenter: "Segmenter",
    study: Study,
    order: Order,
    on_progress: Callable[[str, int, int], None] = lambda step, done, total: None,
    on_report: Callable[[dict, Path], None] = lambda report, path: None,
) -> None:
    """Segment a study, or each frame of it, as far as that is still to be done.

    Args:
        on_progress: see `segment_study`.
        on_report: called with each report, and the file of the segments.

    Raises:
        UserError: the scan cannot be read or segmented, or an output must not be written.
    """
    source = order.source_of(study)
    for volume, outputs in _to_do(segmenter, study, order, source):
        on_report(segment_study(segmenter, volume, order.request, outputs, on_progress, source), outputs.segments)
        _let_go(segmenter)


def _to_do(segmenter: "Segmenter", study: Study, order: Order, source: str) -> list[tuple[Volume, Outputs]]:
    """Read a study's volume, or all its frames, and return those that are still to be segmented with their outputs.

    Args:
        source: the fingerprint of its scan (see `Order.source_of`).

    Raises:
        UserError: the scan cannot be read, or an output must not be written.
    """
    if order.resume and is_done(study.outputs, segmenter, order.request, source):
        return []
    frames = [
        (volume, outputs)
        for volume, outputs in _frames(study, order)
        if not (order.resume and is_done(outputs, segmenter, order.request, source))
    ]
    for volume, outputs in frames:
        left = order.resume and was_begun(outputs, segmenter, order.request, source)
        check_outputs(order.request, outputs, order.overwrite or left, [*order.scans, *volume.sources])
    return frames


def to_store(study: Study, order: Order) -> list[Path]:
    """Return what is there of a study for a DICOMweb server: segmentations and measurements, of each frame."""
    paths = filter(None, (study.outputs.segments, study.outputs.measurements))
    return [file for path in paths for file in _of_frames(path, order)]


def reports_of(study: Study, order: Order) -> list[Path]:
    """Return the reports that are there of a study: one, or one a frame."""
    return _of_frames(study.outputs.report, order)


def _of_frames(path: Path, order: Order) -> list[Path]:
    if order.frame != ALL_FRAMES:
        return [path]
    return sorted(path.parent.glob(_of_frame(glob.escape(path.name), "[0-9]" * FRAME_DIGITS)))


def _let_go(segmenter: "Segmenter") -> None:
    """Have a segmenter forget a study before the next one is read: none comes twice."""
    segmenter.forget_volume()
    segmenter.cache.clear()


def named_studies(inputs: Iterable[Path]) -> dict[str, Path]:
    """Return the studies in files and folders by the names of their outputs.

    Raises:
        UserError: a folder holds none, or two would get the same name.
    """
    studies: dict[str, Path] = {}
    for root in inputs:
        for path in find_studies(root) if root.is_dir() else [root]:
            suffix = image_suffix(path) or (path.suffix if path.is_file() else "")
            relative = path.relative_to(root) if path != root else Path(path.name or path.resolve().name)
            name = "_".join(relative.parts).removesuffix(suffix)
            if name in studies:
                raise UserError(f"{studies[name]} and {path} would both be written as '{name}'; rename one of them")
            studies[name] = path
    return studies


def named_series(inputs: Iterable[Path]) -> dict[str, tuple[Path, str | None]]:
    """Return the studies in files and folders as `named_studies` does, but each DICOM series for itself: path and
    UID. Those of a folder with several get their number after its name, and the end of the UID where they share it.

    Raises:
        UserError: a folder holds none, or two would get the same name.
    """
    studies: dict[str, tuple[Path, str | None]] = {}
    for name, path in named_studies(inputs).items():
        for own_name, uid in _names_of_series(name, _series_in(path)):
            if own_name in studies:
                raise UserError(
                    f"a series in {path} and {studies[own_name][0]} would both be written as '{own_name}'"
                )
            studies[own_name] = (path, uid)
    return studies


def _names_of_series(name: str, found: list[Series]) -> list[tuple[str, str | None]]:
    if len(found) < 2:
        return [(name, None)]
    numbers = Counter(series.number for series in found)
    ends = ["" if s.number and numbers[s.number] == 1 else uid_end(s.uid, found) for s in found]
    return [("_".join(filter(None, [name, s.number, e])), s.uid) for s, e in zip(found, ends, strict=True)]


def _series_in(path: Path) -> list[Series]:
    """Return the series of a study; none where it has no series, or is damaged, which reading it will say."""
    try:
        if path.is_dir():
            return [series for series in list_series(path) if series.folder == path]
        if is_dicom(path) and not is_scan(path) and is_directory(path):
            return list_series(path.parent)
        if is_archive(path):
            with unpacked(path) as folder:
                return list_series(folder)
    except UserError:
        pass
    return []


def _frames(study: Study, order: Order) -> list[tuple[Volume, Outputs]]:
    """Return the volume that is meant with its outputs; for all frames each one with numbered outputs."""
    series = study.series or order.series
    if order.frame != ALL_FRAMES:
        return [(read_volume(study.path, series, order.frame, order.resample), study.outputs)]
    return [
        (volume, Outputs(**{key: _numbered(path, number) for key, path in vars(study.outputs).items()}))
        for number, volume in enumerate(read_frames(study.path, series, order.resample))
    ]


def _numbered(path: Path | None, number: int) -> Path | None:
    return path and path.with_name(_of_frame(path.name, f"{number:0{FRAME_DIGITS}d}"))


def _of_frame(name: str, number: str) -> str:
    """Return a file's name with a frame's number before its suffixes."""
    stem, dot, suffixes = name.partition(".")
    return f"{stem}_frame{number}{dot}{suffixes}"
