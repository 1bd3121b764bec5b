"""DICOM series: found by their UIDs among the files of folders."""

import filecmp
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pydicom
from pydicom.uid import (
    UID,
    CornealTopographyMapStorage,
    EnhancedUSVolumeStorage,
    MediaStorageDirectoryStorage,
    OphthalmicThicknessMapStorage,
    ParametricMapStorage,
    RawDataStorage,
    RTDoseStorage,
)

from engine.errors import UserError
from engine.imaging.dicom.files import UNREADABLE, read_header
from engine.imaging.dicom.mosaics import COUNT_TAGS
from engine.imaging.dicom.pixels import check_size, declared_bytes
from engine.imaging.dicom.telling import TELLING

HEADER_TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "SeriesDate",
    "SeriesTime",
    "StudyDate",
    "StudyTime",
    "SeriesNumber",
    "InstanceNumber",
    "Modality",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "SequenceOfUltrasoundRegions",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "DoseGridScaling",
    "WindowCenter",
    "WindowWidth",
    "VOILUTSequence",
    "GridFrameOffsetVector",
    "DetectorInformationSequence",
    "SliceVector",
    "TimeSlotVector",
    "RRIntervalVector",
    "EnergyWindowVector",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "DimensionIndexSequence",
    *COUNT_TAGS,
    *TELLING,
)
# Classes of images that are not called "… Image Storage"; of all others that the standard names, objects hold none.
OTHER_IMAGES = (
    RTDoseStorage,
    EnhancedUSVolumeStorage,
    ParametricMapStorage,
    OphthalmicThicknessMapStorage,
    CornealTopographyMapStorage,
)

UID_FORM = re.compile(r"[0-9.]{7,64}")
UID_END = 6  # characters of a UID that are enough to name it
DETAILS = {  # what may tell series of one title apart; nothing that names a patient
    "of": "SeriesDate",
    "study of": "StudyDate",
    "at": "SeriesTime",
    "study at": "StudyTime",
    "acquired at": "AcquisitionTime",
    "kernel": "ConvolutionKernel",
    "thickness": "SliceThickness",
    "echo time": "EchoTime",
    "image type": "ImageType",
}


@dataclass(frozen=True)
class Series:
    """The files of one SeriesInstanceUID (0020,000E), each with its header."""

    uid: str
    files: tuple[Path, ...]
    headers: tuple[pydicom.Dataset, ...]

    @property
    def number(self) -> str:
        return str(self.headers[0].get("SeriesNumber", "") or "")

    @property
    def description(self) -> str:
        return str(self.headers[0].get("SeriesDescription", "") or "")

    @property
    def folder(self) -> Path:
        """The innermost folder with all its files."""
        return Path(os.path.commonpath([file.parent for file in self.files]))

    @property
    def title(self) -> str:
        """Number, description, modality and size, for people."""
        header = self.headers[0]
        size = f"{header.get('Columns')}×{header.get('Rows')}, {len(self.files)} files"
        return f"{self.number or '-'}: {self.description or 'no description'} ({header.get('Modality')}, {size})"

    @property
    def details(self) -> dict[str, str]:
        """What may tell it from another of the same title, for people."""
        header = self.headers[0]
        facts = {name: header.get(keyword) for name, keyword in DETAILS.items()}
        return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def is_dicom(path: Path) -> bool:
    """Return whether a file carries DICOM's mark "DICM" after its preamble, or begins like one without either."""
    head = _head(path)
    return head[128:] == b"DICM" or _is_bare(head)


def is_scan(path: Path) -> bool:
    """Return whether a DICOM file may be (a slice of) a scan: no directory, segmentation, report, spectrum or
    other object that the standard knows as none."""
    try:
        return _is_image_class(_class_of(read_header(path, ["SOPClassUID"], force=True)))
    except UNREADABLE:
        return True


def kind_of(path: Path) -> str:
    """Return what the standard calls objects of a file's class, such as "MR Spectroscopy"."""
    return UID(_class_of(read_header(path, ["SOPClassUID"], force=True))).name.removesuffix(" Storage")


def is_directory(path: Path) -> bool:
    """Return whether a DICOM file is a DICOMDIR, which lists what lies beside it."""
    return _class_of(read_header(path, ["SOPClassUID"], force=True)) == MediaStorageDirectoryStorage


def find_series(folder: Path, wanted: str | None = None, source: Path | None = None) -> Series:
    """Return the series of a folder that is meant; those in the folder itself go before those below it.

    Args:
        wanted: its UID or the end of it, its number, or a part of its description; needed where there are several.
        source: named in messages; the folder when None.

    Raises:
        UserError: no DICOM images; several series and none was chosen; a damaged header.
    """
    source = source or folder
    found = _series_of_uid(folder, wanted) if wanted and UID_FORM.fullmatch(wanted) else []
    found = found or list_series(folder)
    if not found:
        raise UserError(f"{source} holds no DICOM images; name an image file, or a folder with a DICOM series")
    own = [s for s in found if s.folder == folder]
    chosen = (own or found) if wanted is None else _meant(own, wanted) or _meant(found, wanted)
    if len(chosen) != 1:
        reason = "several series" if chosen else f"no series '{wanted}'"
        listing = "; ".join(titles(found))
        ways = "--series NUMBER, UID or DESCRIPTION, or all with --each-series"
        raise UserError(f"{source} holds {reason}; choose one with {ways}: {listing}")
    return chosen[0]


def titles(found: Sequence[Series]) -> list[str]:
    """Return the titles of series; those of the same number or title with what differs, and the end of the UID."""
    names = []
    for series in found:
        like = [s for s in found if s.number == series.number]
        differing = [
            f"{name} {series.details.get(name, '-')}"
            for name in DETAILS
            if len({s.details.get(name) for s in like if s.title == series.title}) > 1
        ]
        end = [f"UID …{uid_end(series.uid, found)}"] if len(like) > 1 and series.uid else []
        names.append(", ".join([series.title, *differing, *end]))
    return names


def uid_end(uid: str, found: Sequence[Series]) -> str:
    """Return the shortest end of a UID, of at least `UID_END` characters, that no other series has."""
    others = [series.uid for series in found if series.uid != uid]
    return next((uid[-n:] for n in range(UID_END, len(uid)) if not any(o.endswith(uid[-n:]) for o in others)), uid)


def list_series(folder: Path) -> list[Series]:
    """Return the series with images in a folder and the folders below it, by number."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and is_dicom(path))
    found = group_by_series(files)
    return sorted(found, key=lambda series: (len(series.number), series.number, series.uid))


def _series_of_uid(folder: Path, uid: str) -> list[Series]:
    """Return the series of a UID; of the other files only the UID is read, and only once. Damaged files may be
    slices of it."""
    found = group_by_series(
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and is_dicom(path) and _uid_of(path, path.stat().st_mtime_ns) in (uid, "")
    )
    return [series for series in found if series.uid == uid]


@lru_cache(1 << 20)
def _uid_of(path: Path, _mtime_ns: int) -> str:
    """Return the SeriesInstanceUID of a file; "" where it has none, or cannot be read."""
    try:
        return str(read_header(path, ["SeriesInstanceUID"], force=True).get("SeriesInstanceUID", ""))
    except UNREADABLE:
        return ""


def series_folders(files: Iterable[Path]) -> set[Path]:
    """Return the innermost folder with all files of each series; for damaged files their own."""
    places: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        try:
            header = read_header(path, ["SeriesInstanceUID"], force=True)
            uid = str(header.get("SeriesInstanceUID", ""))
        except UNREADABLE:
            uid = ""
        places[uid or str(path.parent)].append(path.parent)
    return {Path(os.path.commonpath(folders)) for folders in places.values()}


def group_by_series(files: Iterable[Path]) -> list[Series]:
    """Return the series of the files that are scans, in the order in which each is met first."""
    groups: dict[str, list[tuple[Path, pydicom.Dataset]]] = defaultdict(list)
    damaged: list[Path] = []
    for path in files:
        bare = _is_bare(_head(path))
        try:
            header = read_header(path, HEADER_TAGS, force=bare)
            kind = _class_of(header)
            if not _is_image_class(kind):
                continue
            known = UID(kind).name != kind
            is_image = bool(header.get("Rows") and header.get("Columns") and (known or header.get("BitsAllocated")))
            lost = not header.get("SOPClassUID") or known
        except UNREADABLE:
            is_image, lost = False, is_scan(path)
        if is_image:
            check_size(path, header)
            groups[str(header.get("SeriesInstanceUID", ""))].append((path, header))
        elif lost and not bare:
            damaged.append(path)
    if damaged and groups:
        raise UserError(f"{damaged[0]} is damaged, and may be a slice of the series beside it; get it again")
    return [Series(uid, *map(tuple, zip(*_without_copies(m), strict=True))) for uid, m in groups.items()]


def pixel_bytes(path: Path) -> int:
    """Return how many bytes the voxels of a DICOM file take once they are read, as its header says.

    Raises:
        UserError: the header cannot be read.
    """
    try:
        header = read_header(path, HEADER_TAGS, force=True)
        colours = 3 if header.get("PhotometricInterpretation") == "PALETTE COLOR" else 1
        return declared_bytes(header) * colours * (1 if "RescaleSlope" not in header else 2)
    except UNREADABLE as error:
        raise UserError(f"{path} has a header that cannot be read; it may be damaged") from error


def _class_of(header: pydicom.Dataset) -> str:
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID", ""))


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(132)
    except OSError:
        return b""


def _is_bare(head: bytes) -> bool:
    """Return whether a file without a preamble begins with group 0008, explicitly typed or with a short length."""
    if len(head) < 132 or head[128:] == b"DICM" or head[:2] != b"\x08\x00" or head[3] != 0:
        return False
    return head[4:6] in (b"UL", b"CS", b"DA", b"UI") or 0 < int.from_bytes(head[4:8], "little") <= 64


def _is_image_class(uid: str) -> bool:
    """Return whether objects of a class may hold an image, as those of makers' own classes may."""
    name = UID(uid).name
    makers_own = name == uid and not uid.startswith(f"{RawDataStorage}.")  # where segmentations are, too
    return makers_own or "Image Storage" in name or uid in OTHER_IMAGES


def _without_copies(members: list[tuple[Path, pydicom.Dataset]]) -> list[tuple[Path, pydicom.Dataset]]:
    """Leave out files that are there twice, bit by bit.

    Raises:
        UserError: two have one SOPInstanceUID (0008,0018) and differ.
    """
    kept: dict[str, tuple[Path, pydicom.Dataset]] = {}
    for path, header in members:
        uid = str(header.get("SOPInstanceUID") or path)
        if uid not in kept:
            kept[uid] = (path, header)
        elif not filecmp.cmp(kept[uid][0], path, shallow=False):
            raise UserError(
                f"{kept[uid][0]} and {path} claim to be the same slice (SOPInstanceUID) and differ; remove one"
            )
    return list(kept.values())


def _meant(found: list[Series], wanted: str) -> list[Series]:
    exact = [series for series in found if wanted in (series.uid, series.number)]
    end = wanted.lstrip("….")
    ending = [series for series in found if len(end) >= UID_END and series.uid.endswith(end)]
    return exact or ending or [series for series in found if wanted.lower() in series.description.lower()]
