"""Files that the page brings, and files that it takes away."""

import io
import re
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from VLSMSegmenterLib.shared import segmentations
from VLSMSegmenterLib.shared.logic import SegmenterLogic
from VLSMSegmenterLib.shared.volumes import grid_of

from engine.errors import UserError
from engine.files import scratch_folder
from engine.imaging.dicom import archive
from engine.imaging.reading import names_other_files, read_volume
from engine.imaging.volumes.segments import Algorithm, Segment
from engine.imaging.volumes.volume import Volume
from engine.imaging.writing import write_segments
from engine.version import __version__
from viewer.scene import Scene

LONGEST_NAME = 100  # signs
KINDS = (".seg.nrrd", ".nii.gz", ".dcm", ".rt.dcm", ".png")
FIELDS = {  # of the page, by what they are called as options of commands
    ", or all with --each-series": "",
    "--series NUMBER, UID or DESCRIPTION": "the field Series by number, UID or description",
    r"--frame (0 … \d+), or --frame all": r"the field Volume: \1",
    "add --resample": "tick Resample",
}
UNKNOWN = Algorithm("unknown", "unknown", "unknown")


@dataclass(frozen=True)
class Choice:
    """Which volume of several, and whether uneven slices are put onto a regular grid (see `read_volume`)."""

    series: str | None = None
    frame: int | None = None
    resample: bool = False


class Unclear(UserError):
    """Something must be chosen of what a file holds."""


class Inbox:
    """What the page brings. It is kept as long as the session: DICOM segmentations are made from their sources."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._unpacked = ExitStack()

    def put(self, batch: int, number: int, name: str, piece: bytes) -> None:
        """Add a piece to a file of a batch; the numbers of its files keep those of equal names apart."""
        folder = self._folder / "inbox" / str(int(batch)) / str(int(number))
        folder.mkdir(parents=True, exist_ok=True)
        plain = Path(name.replace("\\", "/")).name[-LONGEST_NAME:] or "file"
        with (folder / plain).open("ab") as file:
            file.write(piece)

    def path(self, batch: int) -> Path:
        """Return the file of a batch, or the folder where there are several.

        Raises:
            UserError: there is none, or one that would lead to other files of this machine.
        """
        folder = self._folder / "inbox" / str(int(batch))
        files = [path for path in folder.rglob("*") if path.is_file()]
        if not files:
            raise UserError("nothing came: the file is empty, or the folder has no files; choose another")
        for file in files:
            if names_other_files(file):
                raise UserError(f"{file.name} names the files of its voxels; save it as one file")
        return files[0] if len(files) == 1 else folder

    def read(self, path: Path, choice: Choice) -> Volume:
        """Read a volume. Takes seconds: call it in a thread.

        Raises:
            Unclear: there are several volumes, or uneven slices; another choice may do.
            UserError: it cannot be read.
        """
        whole = path
        try:
            if archive.is_archive(path):  # whose files must outlast the reading
                whole = self._unpacked.enter_context(archive.unpacked(path))
            return read_volume(whole, choice.series, choice.frame, choice.resample)
        except UserError as error:
            raise _as_the_page_says_it(error, (whole, path)) from error


def _as_the_page_says_it(error: UserError, paths: tuple[Path, ...]) -> UserError:
    """Return an error without folders that only this machine knows, and with fields instead of options."""
    said = str(error)
    for path in paths:
        said = said.replace(str(path), path.name if path.is_file() else "what was opened")
    with_fields = said
    for option, field in FIELDS.items():
        with_fields = re.sub(option, field, with_fields)
    return UserError(said) if with_fields == said else Unclear(with_fields)


def segments_of(scene: Scene, logic: SegmenterLogic) -> list[Segment]:
    """Return the segments of the scan that is shown.

    Raises:
        UserError: there are none.
    """
    node = scene.segmentation()
    ids = segmentations.segment_ids(node) if node else []
    if not ids:
        raise UserError("there is no segment to save; segment a prompt first")
    made = {finding.segment_id: finding.result for finding in logic.findings(node)}
    grid, inner = grid_of(scene.shown.node), node.GetSegmentation()
    segments = []
    for identifier in ids:
        segment, tags = inner.GetSegment(identifier), segmentations.tags_of(node, identifier)
        mask = segmentations.read_mask(node, identifier, grid)
        algorithm = _algorithm(tags, made.get(identifier))
        segments.append(Segment(segment.GetName(), mask, segment.GetColor(), tags, algorithm))
    return segments


def _algorithm(tags: dict[str, str], result) -> Algorithm:
    """Return what found a segment, as its tags say it: the adapter, or the base without one."""
    name, _, short = tags.get(segmentations.ADAPTER, "none").rpartition(" ")
    if not name:
        name, _, short = tags.get(segmentations.BASE, "").rpartition(" ")
    if not name:
        return UNKNOWN
    return Algorithm(
        name, f"{__version__} {short}", (result.adapter_sha256 or result.base_sha256) if result else short
    )


def written(kind: str, stem: str, segments: list[Segment], volume: Volume) -> tuple[str, bytes]:
    """Return the name and the content of a file with segments. Takes seconds: call it in a thread.

    Label maps of several segments, which may overlap, come as a ZIP file with one for each.

    Raises:
        UserError: the format cannot hold them.
    """
    with scratch_folder() as folder:
        if kind != ".nii.gz" or len(segments) == 1:
            path = folder / f"{stem}{kind}"
            try:
                write_segments(path, segments, volume)
            except UserError as error:
                raise UserError(str(error).replace(str(path), path.name)) from error
            return path.name, path.read_bytes()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for number, segment in enumerate(segments, start=1):
                path = folder / f"{stem}-{number}-{_file_name(segment.name)}{kind}"
                write_segments(path, [segment], volume)
                archive.write(path, path.name)
        return f"{stem}-nifti.zip", packed.getvalue()


def png(scene: Scene) -> bytes:
    """Return what the views show, as PNG."""
    content = io.BytesIO()
    scene.picture().save(content, "PNG", optimize=True)
    return content.getvalue()


def stem_of(name: str) -> str:
    """Return a scan's name without what says its format."""
    for suffix in (".nii.gz", ".seg.nrrd"):
        name = name.removesuffix(suffix)
    return _file_name(Path(name).stem if "." in name else name) or "scan"


def _file_name(text: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "-_" else "-" for sign in text).strip("-")[:LONGEST_NAME]
