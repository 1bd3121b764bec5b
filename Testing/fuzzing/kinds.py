"""The kinds of input: real files, how each is changed, and what the engine is asked to do with it."""

import copy
import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from conftest import ROOT, ball, make_adapter, make_base
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid
from torch import nn

from engine.choices import SPLITS
from engine.data import open_splits
from engine.data.checking import check
from engine.data.masks import binary, read_grey
from engine.imaging.labels import read_segmentation, segment_names
from engine.imaging.reading import read_frames
from engine.imaging.volumes.intensity import intensity_range
from engine.imaging.volumes.segments import Segment
from engine.imaging.volumes.volume import Volume
from engine.imaging.writing import write_segments
from engine.models.bases import Base, open_base
from engine.models.bundle import CARD, WEIGHTS, card_for_people, load_model, read_card
from engine.models.library import install_adapter, list_adapters
from fuzzing.mutations import mutate_bytes, mutate_json, mutate_text

SHAPE = (4, 12, 14)
LARGEST_SEED = 20_000  # bytes of a real file that is changed
VOXELS_ALONE = (".raw", ".zraw", ".img")  # files that others name
Random = np.random.Generator


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        make: writes a changed input into a folder.
        use: does with it what a command would.
    """

    make: Callable[[Random, Path], None]
    use: Callable[[Path], object]


def all_kinds(seeds: Path, target: Path) -> dict[str, Kind]:
    """Return all kinds of files by name.

    Args:
        seeds: an empty folder for the files that are changed.
        target: the only folder in which the engine may write.
    """
    volume = _volume()
    pictures, adapters = _pictures(), _adapters(seeds / "adapters")
    sets = _data_sets(seeds / "sets", volume)
    return {
        "dicom": Kind(_dicom(seeds / "dicom"), _read_all),
        "nifti": Kind(
            _niftis([*_written(seeds, volume, (".nii", ".nii.gz")), *_odd_niftis(seeds, volume)]), _read_all
        ),
        "nrrd, mha": Kind(
            _headers([*_written(seeds, volume, (".nrrd", ".mha", ".nhdr", ".mhd")), *_in_parts(seeds, volume)]),
            _read_all,
        ),
        "seg.nrrd": Kind(_headers(_segmentations(seeds, volume)), lambda f: _read_segmentation(f, volume)),
        "picture": Kind(_pictures_changed(pictures), _read_all),
        "mask": Kind(_pictures_changed(pictures), _read_mask),
        "bundle": Kind(_bundles(adapters), _bundle_user(seeds / "adapters" / "base")),
        "zip": Kind(_zips(adapters, target), lambda folder: _install(folder / "adapter.zip", target)),
        "data set": Kind(_sets(sets), _open_set),
    }


def _volume() -> Volume:
    voxels = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
    return Volume(voxels, (0.7, 0.8, 2.5), (5.0, -6.0, 7.0))


def _read_all(folder: Path) -> None:
    """Read the one file of a folder, or the folder of DICOM slices."""
    files = sorted(path for path in folder.iterdir() if path.suffix not in VOXELS_ALONE)
    for volume in read_frames(files[0] if len(files) == 1 else folder):
        intensity_range(volume)


def _read_mask(folder: Path) -> None:
    (path,) = folder.iterdir()
    binary(read_grey(path), path)


def _written(seeds: Path, volume: Volume, suffixes: Sequence[str]) -> list[Path]:
    """Return a file of each suffix, compressed and plain where it can be either."""
    paths = []
    for suffix in suffixes:
        for compressed in (False, True):
            folder = seeds / f"{suffix[1:]}-{compressed}"
            folder.mkdir()
            image = sitk.GetImageFromArray(volume.voxels)
            image.SetSpacing(volume.spacing_mm)
            sitk.WriteImage(image, folder / f"scan{suffix}", compressed)
            paths.append(folder / f"scan{suffix}")
    return paths


def _odd_niftis(seeds: Path, volume: Volume) -> list[Path]:
    """Return a vector with a scale, a NIfTI-2, and a header beside its voxels."""
    paths = [
        seeds / f"{name}-nifti" / f"scan{suffix}"
        for name, suffix in zip("abc", (".nii", ".nii", ".hdr"), strict=True)
    ]
    for path in paths:
        path.parent.mkdir()
    vector = nib.Nifti1Image(np.stack([volume.voxels.T] * 3, -1)[:, :, :, None], np.eye(4))
    vector.header["intent_code"] = 1007
    vector.header.set_slope_inter(2, 5)
    for image, path in zip((vector, nib.Nifti2Image(volume.voxels.T, np.eye(4))), paths, strict=False):
        nib.save(image, path)
    nib.save(nib.Nifti1Pair(volume.voxels.T, np.eye(4)), paths[2])
    return paths


def _in_parts(seeds: Path, volume: Volume) -> list[Path]:
    """Return headers that name a file for each slice."""
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 14 12 4\nendian: little\nencoding: raw\ndata file: "
    meta = "NDims = 3\nDimSize = 14 12 4\nElementType = MET_SHORT\nElementDataFile = "
    names = [f"s{number}.raw" for number in range(len(volume.voxels))]
    listed = "".join(f"{name}\n" for name in names)
    texts = {"scan.nhdr": head + "s%d.raw 0 3 1\n", "list.nhdr": f"{head}LIST\n{listed}"}
    texts |= {"scan.mhd": f"{meta}s%d.raw 0 3 1\n", "list.mhd": f"{meta}LIST\n{listed}"}
    for name, text in texts.items():
        folder = seeds / f"in-parts-{name}"
        folder.mkdir()
        (folder / name).write_text(text)
        for file, plane in zip(names, volume.voxels, strict=True):
            (folder / file).write_bytes(plane.tobytes())
    return [seeds / f"in-parts-{name}" / name for name in texts]


def _niftis(paths: Sequence[Path]) -> Callable:
    def make(random: Random, folder: Path) -> None:
        path = paths[random.integers(len(paths))]
        content = path.read_bytes()
        if path.suffix == ".hdr":
            shutil.copy(path.with_suffix(".img"), folder)
        if path.name.endswith(".gz") and random.random() < 0.6:  # inside
            content = gzip.compress(_nifti_changed(random, gzip.decompress(content)), 1)
        else:
            content = _nifti_changed(random, content)
        if random.random() < 0.1:
            content = gzip.compress(content) + random.bytes(int(random.integers(20)))
        (folder / path.name).write_bytes(content)

    return make


def _nifti_changed(random: Random, content: bytes) -> bytes:
    if random.random() < 0.5 or len(content) < 348:
        return mutate_bytes(random, content)
    changed = bytearray(content)
    for _ in range(
        random.integers(1, 4)
    ):  # numbers of its header: dim, datatype, bitpix, pixdim, vox_offset, forms
        offset, form = (
            (40 + 2 * random.integers(8), "h"),
            (70, "h"),
            (72, "h"),
            (76 + 4 * random.integers(8), "f"),
        )[random.integers(4)]
        if random.random() < 0.3:
            offset, form = (
                (108 + 4 * random.integers(3), "f")
                if random.random() < 0.5
                else (252 + 4 * random.integers(19), "f")
            )
        value = random.choice([0, -1, 1, 2, 3, 32767, -32768, 1792, 128, 9999])
        struct.pack_into(
            f"<{form}",
            changed,
            int(offset),
            int(value) if form == "h" else float(random.choice([value, np.nan, np.inf, 1e30, 1e12])),
        )
    return bytes(changed)


def _headers(paths: Sequence[Path]) -> Callable:
    """Change files that start with lines of text; the voxels of a detached header lie beside it."""

    def make(random: Random, folder: Path) -> None:
        path = paths[random.integers(len(paths))]
        for other in path.parent.iterdir():
            if other != path:
                shutil.copy(other, folder)
        content = path.read_bytes()
        if random.random() < 0.6:
            end = _end_of_header(content)
            head = content[:end].decode("latin-1")
            head = mutate_text(random, head).encode("latin-1", "replace")
            content = head + (mutate_bytes(random, content[end:]) if random.random() < 0.2 else content[end:])
        else:
            content = mutate_bytes(random, content)
        (folder / path.name).write_bytes(content)

    return make


def _end_of_header(content: bytes) -> int:
    for mark in (b"\n\n", b"ElementDataFile = LOCAL\n"):
        if mark in content:
            return content.index(mark) + len(mark) - 1
    return len(content)


def _segmentations(seeds: Path, volume: Volume) -> list[Path]:
    masks = [ball(SHAPE, (2, 5, 6), 3), ball(SHAPE, (1, 7, 6), 3)]
    (seeds / "segmentations").mkdir()
    path = seeds / "segmentations" / "scan.seg.nrrd"
    write_segments(
        path, [Segment(n, m, (1, 0, 0)) for n, m in zip(("liver", "spleen"), masks, strict=True)], volume
    )
    return [path]


def _read_segmentation(folder: Path, volume: Volume) -> None:
    path = folder / "scan.seg.nrrd"
    segment_names(path)
    labels = read_segmentation(path, volume)
    for name in labels.places:
        labels.mask(name)


def _pictures() -> dict[str, bytes]:
    grey = np.random.default_rng(1).integers(0, 255, (12, 14)).astype(np.uint8)
    colours = np.stack([grey, grey // 2, grey], axis=-1)
    encoded = {}
    for name, array, options in (
        ("grey.png", grey, {}),
        ("colours.png", colours, {}),
        ("deep.png", grey.astype(np.uint16) * 200, {}),
        ("photo.jpg", colours, {}),
        ("progressive.jpeg", colours, {"progressive": True}),
        ("plain.tif", grey, {}),
        ("packed.tiff", colours, {"compression": "tiff_lzw"}),
        ("deflated.tif", colours, {"compression": "tiff_adobe_deflate"}),
        ("plain.bmp", colours, {}),
    ):
        buffer = io.BytesIO()
        Image.fromarray(array).save(
            buffer, {"jpg": "jpeg", "tif": "tiff"}.get(name[-3:], name.split(".")[1]), **options
        )
        encoded[name] = buffer.getvalue()
    return encoded | _odd_pictures(Image.fromarray(grey))


def _odd_pictures(grey: Image.Image) -> dict[str, bytes]:
    """Pictures that are shown turned, of a palette, of one bit, or with transparency."""
    turned = Image.Exif()
    turned[0x0112] = 6
    encoded = {}
    for name, picture, options in (
        ("turned.jpg", grey, {"exif": turned}),
        ("turned.png", grey, {"exif": turned}),
        ("turned.tif", grey, {"exif": turned}),
        ("palette.png", grey.convert("P"), {}),
        ("palette.tif", grey.convert("P"), {}),
        ("one-bit.bmp", grey.convert("1"), {}),
        ("grey-and-alpha.png", Image.merge("LA", [grey, grey]), {}),
        ("alpha.png", Image.merge("RGBA", [grey] * 4), {}),
    ):
        buffer = io.BytesIO()
        picture.save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(name[-3:], name[-3:]), **options)
        encoded[name] = buffer.getvalue()
    return encoded


def _pictures_changed(pictures: dict[str, bytes]) -> Callable:
    names = sorted(pictures)

    def make(random: Random, folder: Path) -> None:
        name = names[random.integers(len(names))]
        content = pictures[name]
        if name.endswith(".png") and random.random() < 0.5:
            content = _png_changed(random, content)
        else:
            content = mutate_bytes(random, content)
        (folder / name).write_bytes(content)

    return make


def _png_changed(random: Random, content: bytes) -> bytes:
    """Change one chunk, and make its checksum right again."""
    chunks, at = [], 8
    while at < len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    index = 0 if random.random() < 0.6 else int(random.integers(len(chunks)))
    kind, data = chunks[index]
    if kind == b"IHDR" and random.random() < 0.5:
        sides = random.choice([0, 1, 13, 30_000, 200_000, 2**31 - 1], 2)
        chunks[index] = kind, struct.pack(">II", *map(int, sides)) + data[8:]
    else:
        chunks[index] = kind, mutate_bytes(random, data)
    if random.random() < 0.1:
        chunks.insert(1, (b"zTXt", b"a\0\0" + zlib.compress(bytes(2 << 20))))
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return content[:8] + b"".join(parts)


def _dicom(seeds: Path) -> Callable:
    """Change a slice, a multi-frame file, one slice of a series, or real files where there are some."""
    seeds.mkdir()
    single = [_slice(0), _enhanced(), _compressed(), _mosaic(), _ultrasound(), _several_volumes()]
    series = [_slice(n) for n in range(3)]
    real = Path(os.environ.get("VLSM_DATA", ROOT.parent / "shared" / "data")) / "dicom"
    found = sorted(p for p in real.rglob("*") if p.is_file() and p.stat().st_size < LARGEST_SEED)
    files = [_bytes_of(data) for data in single] + [p.read_bytes() for p in found if p.suffix != ".md"]
    slices = [_bytes_of(data) for data in series]

    def make(random: Random, folder: Path) -> None:
        if random.random() < 0.4:
            chosen = int(random.integers(len(slices)))
            for number, content in enumerate(slices):
                if number == chosen:
                    content = _dicom_changed(random, content)
                (folder / f"{number}.dcm").write_bytes(content)
            return
        (folder / "one.dcm").write_bytes(_dicom_changed(random, files[random.integers(len(files))]))

    return make


FIELDS = {
    "Rows": (0, 1, 65535, 40_000),
    "Columns": (0, 1, 65535, 40_000),
    "NumberOfFrames": (0, -1, 2, 10**6, 2**31 - 1, "x", ""),
    "BitsAllocated": (0, 1, 7, 12, 16, 32, 64, 65535),
    "BitsStored": (0, 1, 17, 65535),
    "HighBit": (0, 31, 65535),
    "SamplesPerPixel": (0, 2, 3, 65535),
    "PixelRepresentation": (0, 1, 7),
    "PlanarConfiguration": (0, 1, 2),
    "PhotometricInterpretation": ("", "RGB", "PALETTE COLOR", "YBR_FULL_422", "MONOCHROME1", "x" * 100),
    "PixelSpacing": ([0, 0], [1], [-1, 1], ["nan", 1], [1e308, 1e308], []),
    "ImagePositionPatient": ([0, 0], [0, 0, "inf"], [1e308] * 3, []),
    "ImageOrientationPatient": ([0] * 6, [1, 0, 0, 1, 0, 0], [1e200] * 6, [1]),
    "RescaleSlope": (0, "nan", 1e308, "x", ""),
    "RescaleIntercept": (-(10**12), "inf", ""),
    "WindowCenter": ([], "x", [1, 2], "nan"),
    "WindowWidth": (0, "inf", [3, -1]),
    "SeriesInstanceUID": ("", "x" * 200, "1.2.3"),
    "SOPClassUID": ("", "1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.1.1.4.2", "1.3.12.2.1107.5.9.1", "x"),
    "PixelData": (b"", b"\0", b"\xfe\xff\x00\xe0" * 8),
    "SeriesDescription": ("\0", "é" * 500, "a\nb"),
    "PerFrameFunctionalGroupsSequence": ([], [pydicom.Dataset()]),
    "SharedFunctionalGroupsSequence": ([],),
    "ImageType": (["ORIGINAL", "PRIMARY", "MOSAIC"], "MOSAIC", ["DERIVED", "VFRAME"], []),
    "AcquisitionMatrix": ([0, 64, 64, 0], [12, 0], []),
    "SpacingBetweenSlices": (0, -3, "inf", ""),
    "InstanceNumber": (1, "x", 2**31 - 1, ""),
    "DimensionIndexSequence": ([], [pydicom.Dataset()] * 3),
    "SequenceOfUltrasoundRegions": ([], [pydicom.Dataset()]),
}


def _dicom_changed(random: Random, content: bytes) -> bytes:
    if random.random() < 0.5:
        return mutate_bytes(random, content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(io.BytesIO(content), force=True)
        names = sorted(FIELDS)
        for _ in range(random.integers(1, 3)):
            name = names[random.integers(len(names))]
            if random.random() < 0.15:
                data.pop(name, None)
            else:
                values = FIELDS[name]
                try:
                    setattr(data, name, values[random.integers(len(values))])
                except (ValueError, TypeError, OverflowError):
                    continue
        try:
            return _bytes_of(data)
        except Exception:  # pydicom will not write what it was given; so it is no file
            return mutate_bytes(random, content)


def _slice(number: int) -> pydicom.Dataset:
    data = _image(CTImageStorage, number)
    data.Modality, data.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.ImagePositionPatient, data.ImageOrientationPatient = [1, 2, 3 + 2.5 * number], [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.SliceThickness = [0.8, 0.7], 2.5
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.WindowCenter, data.WindowWidth = [40, 50], [400, 300]
    data.PixelData = np.random.default_rng(number).integers(0, 2000, (12, 14)).astype(np.uint16).tobytes()
    return data


def _enhanced() -> pydicom.Dataset:
    data = _image(EnhancedMRImageStorage, 0)
    data.Modality, data.NumberOfFrames = "MR", 3
    shared = pydicom.Dataset()
    shared.PixelMeasuresSequence = [_item(PixelSpacing=[0.8, 0.7], SliceThickness=2.5)]
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = [
        _item(PlanePositionSequence=[_item(ImagePositionPatient=[0, 0, 2.5 * number])]) for number in range(3)
    ]
    data.PixelData = np.random.default_rng(7).integers(0, 2000, (3, 12, 14)).astype(np.uint16).tobytes()
    return data


def _mosaic() -> pydicom.Dataset:
    """Return four slices as tiles of one picture, as Siemens writes them."""
    data = _slice(6)
    data.Modality, data.ImageType, data.SpacingBetweenSlices = "MR", ["ORIGINAL", "PRIMARY", "MOSAIC"], 3
    data.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 4)
    header = b"SV10\x04\x03\x02\x01" + struct.pack("<2I", 1, 77)
    header += struct.pack("<64si4s3i", b"SliceNormalVector", 3, b"FD", 4, 3, 77)
    for text in (b"0.0\0", b"0.0\0", b"1.0\0"):
        header += struct.pack("<4i", 4, 4, 77, 77) + text
    data.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", header)
    return data


def _ultrasound() -> pydicom.Dataset:
    data = _slice(7)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(data, name)
    scale = {
        "PhysicalDeltaX": 0.02,
        "PhysicalDeltaY": 0.02,
        "PhysicalUnitsXDirection": 3,
        "PhysicalUnitsYDirection": 3,
    }
    data.Modality, data.SequenceOfUltrasoundRegions = "US", [_item(RegionSpatialFormat=1, **scale)]
    return data


def _several_volumes() -> pydicom.Dataset:
    """Return an enhanced image of two gradients at each of two places."""
    data = _enhanced()
    data.NumberOfFrames = 4
    data.PerFrameFunctionalGroupsSequence = [
        _item(
            PlanePositionSequence=[_item(ImagePositionPatient=[0, 0, 2.5 * (number // 2)])],
            FrameContentSequence=[_item(DimensionIndexValues=[1, 1 + number // 2, 1 + number % 2])],
            MRDiffusionSequence=[_item(DiffusionBValue=1000.0 * (number % 2))],
        )
        for number in range(4)
    ]
    data.PixelData = np.random.default_rng(8).integers(0, 2000, (4, 12, 14)).astype(np.uint16).tobytes()
    return data


def _compressed() -> pydicom.Dataset:
    data = _slice(5)
    data.compress(RLELossless, generate_instance_uid=False)
    return data


def _image(sop_class: str, number: int) -> pydicom.Dataset:
    data, meta = pydicom.Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = sop_class, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[f"instance {number}"])
    data.preamble = bytes(128)
    data.file_meta, data.SOPClassUID, data.SOPInstanceUID = meta, sop_class, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID = data.StudyInstanceUID = generate_uid(entropy_srcs=["series"])
    data.PatientName, data.PatientID, data.SeriesNumber, data.InstanceNumber = "Doe^Jane", "1234", 1, number
    data.Rows, data.Columns, data.SamplesPerPixel, data.PixelRepresentation = 12, 14, 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PhotometricInterpretation = "MONOCHROME2"
    return data


def _item(**values) -> pydicom.Dataset:
    item = pydicom.Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item


def _bytes_of(data: pydicom.Dataset) -> bytes:
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=False)
    return buffer.getvalue()


def _adapters(folder: Path) -> list[Path]:
    base = make_base(folder / "base", seed=0)
    return [make_adapter(folder / method, base, method) for method in ("shallow", "dense", "lora")]


def _bundles(adapters: Sequence[Path]) -> Callable:
    """Change the weights, with the card's checksum made right in most cases, or the card."""

    def make(random: Random, folder: Path) -> None:
        chosen = adapters[random.integers(len(adapters))]
        shutil.copytree(chosen, folder, dirs_exist_ok=True)
        card = json.loads((folder / CARD).read_text())
        if random.random() < 0.5:
            content = _safetensors_changed(random, (folder / WEIGHTS).read_bytes())
            (folder / WEIGHTS).write_bytes(content)
            if random.random() < 0.9:
                card["sha256"] = hashlib.sha256(content).hexdigest()
            (folder / CARD).write_text(json.dumps(card))
        else:
            (folder / CARD).write_bytes(mutate_json(random, card))

    return make


def _safetensors_changed(random: Random, content: bytes) -> bytes:
    """Change the header (its length in 8 bytes, then JSON), or any bytes."""
    size = int.from_bytes(content[:8], "little")
    if random.random() < 0.6:
        head = mutate_json(random, json.loads(content[8 : 8 + size]))
        size = int(random.choice([len(head), len(head), len(head), 10**12, 0]))
        return size.to_bytes(8, "little") + head + content[8 + int.from_bytes(content[:8], "little") :]
    return mutate_bytes(random, content)


class _LoadedBase(Base):
    """A base that is read once, for the sake of speed."""

    @cached_property
    def _network(self) -> nn.Module:
        return super().load_network()

    def load_network(self) -> nn.Module:
        return copy.deepcopy(self._network)


def _bundle_user(base_folder: Path) -> Callable[[Path], None]:
    base = _LoadedBase(**vars(open_base(str(base_folder))))

    def use(folder: Path) -> None:
        card = read_card(folder)
        card_for_people(card)
        load_model(base, folder, card)

    return use


def _zips(adapters: Sequence[Path], target: Path) -> Callable:
    def make(random: Random, folder: Path) -> None:
        chosen = adapters[random.integers(len(adapters))]
        buffer = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
            warnings.simplefilter("ignore")
            for path in sorted(chosen.iterdir()):
                content = path.read_bytes()
                if random.random() < 0.1:
                    content = mutate_bytes(random, content)
                method = random.choice(
                    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
                )
                if random.random() < 0.95:
                    archive.writestr(f"{chosen.name}/{path.name}", content, int(method))
            if random.random() < 0.4:
                _hostile_entry(random, archive, chosen.name, target)
        content = buffer.getvalue()
        (folder / "adapter.zip").write_bytes(mutate_bytes(random, content) if random.random() < 0.6 else content)

    return make


def _hostile_entry(random: Random, archive: zipfile.ZipFile, name: str, target: Path) -> None:
    outside = target.parent / "outside"
    names = (
        "../out",
        f"{name}/../../out",
        f"{outside}/out",
        "..\\out",
        "C:\\out",
        "con",
        f"{name}/{CARD}",
        "a/" * 500,
    )
    entry = zipfile.ZipInfo(names[random.integers(len(names))])
    content = b"x"
    if random.random() < 0.3:
        entry.external_attr, content = (stat.S_IFLNK | 0o777) << 16, str(outside).encode()
    elif random.random() < 0.3:
        content = bytes(8 << 20)
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)


def _install(path: Path, target: Path) -> None:
    os.environ["VLSM_MODELS"] = str(target)
    install_adapter(path, replace=True)
    list_adapters()


def _data_sets(folder: Path, volume: Volume) -> list[tuple[Path, str]]:
    """Return data sets, each with the file in it that is changed."""
    prompts = {"p0": "", "p1": ["disc"], "p2": ["bright disc", "round thing"]}
    pictures, volumes, pairs = folder / "pictures", folder / "volumes", folder / "pairs"
    for part in ("images", "masks", "anns"):
        (pictures / part).mkdir(parents=True)
    rows = []
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (10, 12)).astype(np.uint8)
        Image.fromarray(noise).save(pictures / "images" / f"{number}.png")
        Image.fromarray((noise > 200).astype(np.uint8) * 255).save(pictures / "masks" / f"{number}.png")
        rows.append(
            {"img_name": f"{number}.png", "mask_name": f"{number}.png", "prompts": prompts, "patient": number}
        )
    for split, row in zip(SPLITS, rows, strict=True):
        (pictures / "anns" / f"{split}.json").write_text(json.dumps([row]))
    (volumes / "imagesTr").mkdir(parents=True), (volumes / "labelsTr").mkdir(), (pairs / "one").mkdir(parents=True)
    for number in range(2):
        image = sitk.GetImageFromArray(volume.voxels + np.int16(number))
        labels = sitk.GetImageFromArray((volume.voxels > 600).astype(np.uint8))
        sitk.WriteImage(image, volumes / "imagesTr" / f"{number}.nii.gz")
        sitk.WriteImage(labels, volumes / "labelsTr" / f"{number}.nii.gz")
    listed = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in range(2)]
    description = {"labels": {"0": "background", "1": "ball"}, "training": listed, "numTraining": 2}
    description |= {"labelled": ["ball"], "test": ["./imagesTs/2.nii.gz"]}
    (volumes / "dataset.json").write_text(json.dumps(description))
    (volumes / "prompts.yaml").write_text("ball: [ball, the ball]\n")
    nnunet = {
        "labels": {"background": 0, "ball": 1, "ignore": 2},
        "channel_names": {"0": "CT"},
        "file_ending": ".nii.gz",
    }
    sitk.WriteImage(sitk.GetImageFromArray(volume.voxels), pairs / "one" / "scan.nrrd")
    write_segments(
        pairs / "one" / "scan.seg.nrrd", [Segment("ball", volume.voxels > 600, (1, 0, 0))], Volume(volume.voxels)
    )
    (pairs / "splits.json").write_text(json.dumps({"train": ["one"], "val": [], "test": []}))
    shutil.copytree(volumes, folder / "nnunet")
    (folder / "nnunet" / "prompts.yaml").unlink()
    for part in ("imagesTr", "labelsTr"):
        for number in range(2):
            path = folder / "nnunet" / part / f"{number}.nii.gz"
            path.rename(path.with_name(f"{number}{'_0000' if part == 'imagesTr' else ''}.nii.gz"))
    (folder / "nnunet" / "dataset.json").write_text(json.dumps(nnunet))
    return [
        (pictures, "anns/train.json"),
        (volumes, "dataset.json"),
        (volumes, "prompts.yaml"),
        (folder / "nnunet", "dataset.json"),
        (pairs, "splits.json"),
    ]


def _sets(sets: Sequence[tuple[Path, str]]) -> Callable:
    def make(random: Random, folder: Path) -> None:
        source, name = sets[random.choice(len(sets), p=[0.4, 0.3, 0.05, 0.15, 0.1])]
        shutil.copytree(source, folder, dirs_exist_ok=True)
        path = folder / name
        if name.endswith(".yaml"):
            path.write_bytes(mutate_bytes(random, path.read_bytes()))
        else:
            path.write_bytes(mutate_json(random, json.loads(path.read_text())))

    return make


def _open_set(folder: Path) -> None:
    """Do what a training does with a data set before it trains, and what --check does."""
    check(folder, ("axial",), "slice")
    for data_set in open_splits(folder, ("axial",)).values():
        for annotation in data_set.annotations[:3]:
            data_set.image(annotation)
            data_set.mask(annotation)
            data_set.known(annotation)
        data_set.unnamed()
