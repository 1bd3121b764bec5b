"""Mosaics: read as the volume that they are, exactly where nibabel reads it, or refused in words."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import item, write_image
from pydicom.sequence import Sequence
from pydicom.uid import MRImageStorage

from engine.errors import UserError
from engine.imaging.dicom.mosaics import MOST_VALUES
from engine.imaging.reading import read_frames, read_volume
from engine.imaging.volumes.segments import Algorithm, Segment
from engine.imaging.writing import check_format, write_segments

ROWS, COLUMNS = 5, 4
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
TURN[:, 2] = np.cross(TURN[:, 0], TURN[:, 1])


def csa(entries: dict[str, tuple[str, list]]) -> bytes:
    """Return a CSA header (SV10) of entries: name -> (value representation, values)."""
    parts = [b"SV10\x04\x03\x02\x01", struct.pack("<2I", len(entries), 77)]
    for name, (kind, values) in entries.items():
        texts = [str(value).encode() + b"\0" for value in values]
        texts += [b""] * (6 - len(texts))
        parts.append(struct.pack("<64si4s3i", name.encode(), len(values), kind.encode(), 3, len(texts), 77))
        for text in texts:
            parts += [struct.pack("<4i", len(text), len(text), 77, 77), text, bytes(-len(text) % 4)]
    return b"".join(parts)


def tiled(voxels: np.ndarray, square: bool = True) -> np.ndarray:
    """Return slices (n, rows, columns) as tiles of one picture."""
    across = math.ceil(math.sqrt(len(voxels)))
    down = across if square else math.ceil(len(voxels) / across)
    rows, columns = voxels.shape[1:]
    picture = np.zeros((down * rows, across * columns), voxels.dtype)
    for number, plane in enumerate(voxels):
        top, left = rows * (number // across), columns * (number % across)
        picture[top : top + rows, left : left + columns] = plane
    return picture


def write_mosaic(path, voxels, normal_sign=1, with_csa=True, protocol=None, mark=True, count=True, **attributes):
    """Write slices as Siemens does, the first of which begins at (10, -20, 30), 3 mm apart, oblique."""
    picture = tiled(voxels)
    right, down, normal = TURN.T * [[1], [1], [normal_sign]]
    wider, higher = np.subtract(picture.shape[::-1], voxels.shape[:0:-1])
    margin = right * 2 * wider / 2 + down * 1.5 * higher / 2
    place = {
        "ImagePositionPatient": [float(v) for v in np.array([10, -20, 30]) - margin],
        "ImageOrientationPatient": [float(v) for v in (*right, *down)],
        "PixelSpacing": [1.5, 2],
        "SpacingBetweenSlices": 3,
        "SliceThickness": 2.5,
    }
    kind = ["ORIGINAL", "PRIMARY", "M", "ND", *(["MOSAIC"] if mark else [])]
    image_class = {"SOPClassUID": MRImageStorage, "ImageType": kind, "Manufacturer": "SIEMENS"}
    write_image(path, picture, modality="MR", **(image_class | place | attributes))
    image = pydicom.dcmread(path)
    if count:
        image.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", len(voxels))
    block = image.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    if with_csa:
        entries = {
            "EchoLinePosition": ("IS", [32]),
            "AcquisitionMatrixText": ("SH", ["5*4"]),  # by which nibabel knows a mosaic
            "NumberOfImagesInMosaic": ("US", [len(voxels)]),
            "SliceNormalVector": ("FD", [f"{v:.8f}" for v in normal]),
        }
        block.add_new(0x10, "OB", csa(entries))
    if protocol:
        block.add_new(0x20, "OB", protocol)
    image.save_as(path)
    return path


def slices(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 900, (count, ROWS, COLUMNS)).astype(np.uint16)


def assert_as_nibabel_reads_it(path: Path) -> None:
    """Prove that every voxel lies where nibabel's reader of mosaics puts it."""
    wrapper = pytest.importorskip("nibabel.nicom.dicomwrappers").wrapper_from_file(path)
    volume = read_volume(path)
    theirs = wrapper.get_data()  # rows, columns, slices
    assert wrapper.is_mosaic and volume.shape == (theirs.shape[2], *theirs.shape[:2])
    indices = np.argwhere(np.ones(theirs.shape))
    places = wrapper.affine[:3, :3] @ indices.T + wrapper.affine[:3, 3:]
    to_voxels = np.linalg.inv(volume.direction_matrix * volume.spacing_mm)
    ours = to_voxels @ (places - np.reshape(volume.origin_mm, (3, 1)))
    assert np.abs(ours - np.round(ours)).max() < 1e-3
    x, y, z = np.round(ours).astype(int)
    assert x.min() == y.min() == z.min() == 0
    assert np.array_equal(volume.voxels[z, y, x], theirs[tuple(indices.T)])


@pytest.mark.parametrize("count", [2, 4, 7, 9, 36])
@pytest.mark.parametrize("normal_sign", [1, -1])
def test_a_mosaic_is_the_volume_that_nibabel_reads(tmp_path, count, normal_sign):
    path = write_mosaic(tmp_path / "a.dcm", slices(count), normal_sign)
    assert_as_nibabel_reads_it(path)
    volume = read_volume(path)
    assert np.allclose(volume.spacing_mm, (2, 1.5, 3)) and volume.modality == "MR" and all(volume.spacing_known)
    assert np.array_equal(np.sort(volume.voxels, axis=0), np.sort(slices(count), axis=0))


@pytest.mark.parametrize("name", ["siemens_dwi_0", "siemens_dwi_1000"])
def test_mosaics_of_a_scanner_are_read_as_nibabel_reads_them(tmp_path, name):
    nicom = pytest.importorskip("nibabel.nicom")
    packed = Path(nicom.__file__).parent / "tests" / "data" / f"{name}.dcm.gz"
    if not packed.exists():
        pytest.skip("this nibabel comes without its test data")
    path = tmp_path / f"{name}.dcm"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    assert_as_nibabel_reads_it(path)
    assert read_volume(path).shape == (48, 128, 128)
    image = pydicom.dcmread(path)
    image.private_block(0x0029, "SIEMENS CSA HEADER")[0x10].value = b""  # leaves the protocol in text
    image.save_as(tmp_path / "text.dcm")
    whole, text = read_volume(path), read_volume(tmp_path / "text.dcm")
    assert np.array_equal(whole.voxels, text.voxels)
    assert np.allclose((*whole.origin_mm, *whole.spacing_mm), (*text.origin_mm, *text.spacing_mm), atol=1e-3)


def protocol_of(count: int, turned: bool) -> bytes:
    """Return the protocol of the slices that `write_mosaic` writes; it begins with the last where it is turned."""
    right, down, normal = TURN.T
    center = np.array([10, -20, 30]) + right * 2 * COLUMNS / 2 + down * 1.5 * ROWS / 2
    centers = [center + 3 * number * normal for number in range(count)]
    lines = ["### ASCCONV BEGIN ###", f"sSliceArray.lSize\t = \t{count}"]
    for number, place in enumerate(centers[::-1] if turned else centers):
        axes = zip(("Sag", "Cor", "Tra"), place, strict=True)
        lines += [f"sSliceArray.asSlice[{number}].sPosition.d{axis}\t = \t{value:.8f}" for axis, value in axes]
    return "\n".join(lines).encode()


@pytest.mark.parametrize("turned", [False, True])
def test_without_the_csa_header_the_protocol_says_where_the_slices_lie(tmp_path, turned):
    voxels = slices(7)
    path = write_mosaic(tmp_path / "a.dcm", voxels, with_csa=False, protocol=protocol_of(7, turned))
    volume = read_volume(path)
    assert np.allclose(volume.origin_mm, (10, -20, 30), atol=1e-6) and np.allclose(volume.spacing_mm, (2, 1.5, 3))
    assert np.allclose(volume.direction_matrix, TURN) and np.array_equal(volume.voxels, voxels)


def test_a_protocol_of_other_slices_is_not_believed(tmp_path):
    other = protocol_of(7, False).replace(b"sPosition.dTra\t = \t", b"sPosition.dTra\t = \t9")
    path = write_mosaic(tmp_path / "a.dcm", slices(7), with_csa=False, protocol=other)
    with pytest.raises(UserError, match=r"a\.dcm is a mosaic of 7 slices that does not say where they lie; export"):
        read_volume(path)


def test_a_grid_of_united_imaging_is_placed_by_its_frames(tmp_path):
    voxels = slices(6)  # in two rows of three
    place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [9, 9, 9]}
    kind = {"ImageType": ["ORIGINAL", "PRIMARY", "VFRAME"], "PixelSpacing": [2, 2]}
    path = tmp_path / "a.dcm"
    write_image(path, tiled(voxels, square=False), modality="MR", **kind, **place)
    image = pydicom.dcmread(path)
    block = image.private_block(0x0065, "Image Private Header", create=True)
    block.add_new(0x50, "DS", "6")
    frames = [item(ImagePositionPatient=[1, 2, 3 + 4 * number]) for number in range(6)]
    block.add_new(0x51, "SQ", Sequence(frames))
    image.save_as(path)
    volume = read_volume(path)
    assert volume.origin_mm == (1, 2, 3) and volume.spacing_mm == (2, 2, 4)
    assert np.array_equal(volume.voxels, voxels)


@pytest.mark.parametrize("mark", [True, False])
@pytest.mark.parametrize("count", [True, False])
def test_a_mosaic_without_its_private_attributes_is_refused_and_not_one_slice(tmp_path, mark, count):
    path = write_mosaic(tmp_path / "a.dcm", slices(9), with_csa=False, mark=mark, count=count)
    if mark or count:
        with pytest.raises(UserError, match=r"a\.dcm is a mosaic .* does not say .*; export it again"):
            read_volume(path)
    else:
        assert read_volume(path).shape == (1, 3 * ROWS, 3 * COLUMNS)  # nothing says what it is


def test_single_slices_that_were_cut_out_of_a_mosaic_are_no_mosaics(tmp_path):
    for number, plane in enumerate(slices(9)):
        path = tmp_path / f"{number}.dcm"
        place = {"ImagePositionPatient": [0, 0, 3 * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        kind = {"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"], "AcquisitionMatrix": [0, 5, 4, 0]}
        write_image(path, plane, modality="MR", SeriesInstanceUID="1.2.3", PixelSpacing=[2, 2], **place, **kind)
        image = pydicom.dcmread(path)
        image.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 9)
        image.save_as(path)
    assert np.array_equal(read_volume(tmp_path).voxels, slices(9))


def test_each_mosaic_of_a_series_is_a_volume_of_its_own(tmp_path):
    for number in range(3):
        write_mosaic(tmp_path / f"{number}.dcm", slices(9) + np.uint16(number), SeriesInstanceUID="1.2.3")
    with pytest.raises(UserError, match=r"3 volumes in a series \(0: file 0\.dcm, 9 slices; 1: file 1\.dcm, 9"):
        read_volume(tmp_path)
    volumes = read_frames(tmp_path)
    assert [np.array_equal(v.voxels, slices(9) + number) for number, v in enumerate(volumes)] == [True] * 3


def test_no_segmentation_refers_to_the_slices_of_a_mosaic(tmp_path):
    uids = {"StudyInstanceUID": "1.2", "FrameOfReferenceUID": "1.3"}
    volume = read_volume(write_mosaic(tmp_path / "a.dcm", slices(9), **uids))
    with pytest.raises(UserError, match=r"mosaic, to whose slices no DICOM result can refer; write \.seg"):
        check_format(tmp_path / "o.dcm", volume, 1, exclusive=False)
    segment = Segment("brain", volume.voxels > 450, (1.0, 0.5, 0.0), {}, Algorithm("a", "1", "0" * 64))
    write_segments(tmp_path / "o.nrrd", [segment], volume)
    back = read_volume(tmp_path / "o.nrrd")
    assert np.array_equal(back.voxels > 0, volume.voxels > 450) and back.origin_mm == volume.origin_mm


@pytest.mark.parametrize("damage", [b"", b"SV10", b"SliceNormalVector\0", bytes(200)])
def test_a_damaged_csa_header_is_refused_in_words(tmp_path, damage):
    path = write_mosaic(tmp_path / "a.dcm", slices(9))
    image = pydicom.dcmread(path)
    raw = image.private_block(0x0029, "SIEMENS CSA HEADER")[0x10]
    raw.value = damage if not damage.startswith(b"Slice") else raw.value[: raw.value.find(damage) + 80]
    image.save_as(path)
    with pytest.raises(UserError, match=r"a\.dcm"):
        read_volume(path)


def test_an_entry_of_endless_values_takes_no_time(tmp_path):
    path = write_mosaic(tmp_path / "a.dcm", slices(9))
    image = pydicom.dcmread(path)
    element = image.private_block(0x0029, "SIEMENS CSA HEADER")[0x10]
    raw = bytearray(element.value + bytes(16 * MOST_VALUES))
    struct.pack_into("<i", raw, raw.find(b"SliceNormalVector\0") + 76, 2_000_000_000)
    element.value = bytes(raw)
    image.save_as(path)
    assert read_volume(path).shape == (9, ROWS, COLUMNS)
