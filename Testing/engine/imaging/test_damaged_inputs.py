"""What fuzzing found, kept; and a short run of it (`python Testing/fuzz.py` is the long one)."""

import io
import json
import re
import struct
import sys
import tracemalloc
import zipfile
import zlib
from collections import defaultdict

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import make_adapter
from fuzz import GOOD, meet_all
from fuzzing.kinds import _bytes_of, _slice
from PIL import Image

from engine.data import open_data_set, open_splits
from engine.errors import LONGEST_MESSAGE, UserError
from engine.imaging.labels import read_segmentation
from engine.imaging.reading import read_frames, read_volume, unpacked_bytes
from engine.imaging.volumes.segments import Segment
from engine.imaging.volumes.volume import Volume
from engine.imaging.writing import write_segments
from engine.models.bases import open_base
from engine.models.bundle import CARD, WEIGHTS, load_model, read_card
from engine.models.library import install_adapter
from engine.segmentation.request import Outputs, Request
from engine.segmentation.segmenter import Segmenter
from engine.segmentation.studies import is_done

DEEP = "[" * 100_000
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 14 12 4\nencoding: raw\nendian: little\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = 14 12 4\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
VOXELS = bytes(14 * 12 * 4 * 2)


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
def test_changed_files_and_requests_are_taken_or_refused_in_one_line(tmp_path):
    outcomes = defaultdict(set)
    for answer in meet_all(tmp_path, seed=5, start=0, stop=300):
        assert answer["outcome"] in GOOD, answer
        outcomes[answer["kind"]].add(answer["outcome"])
    assert len(outcomes) == 10 and all("taken" in found for found in outcomes.values())


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        ("a.nrrd", NRRD, None),
        ("a.nrrd", NRRD.replace("14 12 4", "10000 10000 10000"), "ends before its last voxel"),
        (
            "a.nrrd",
            NRRD.replace("14 12 4", "10000 10000 10000").replace("raw", "gzip"),
            "ends before its last voxel",
        ),
        ("a.nrrd", NRRD.replace("14 12 4", "14 12 -4"), "whole numbers above zero"),
        ("a.nrrd", NRRD.replace("14 12 4", f"14 12 {'9' * 40}"), "whole numbers above zero"),
        ("a.nrrd", NRRD.replace("dimension: 3", "dimension: 4294967296"), "dimensions"),
        ("a.nrrd", f"{NRRD}kinds: {'x' * 5000}\n", "too long"),  # ended the process
        ("a.nrrd", f"{NRRD}{'x' * 5000}\n", "too long"),  # likewise
        ("a.nhdr", f"{NRRD}data file: %n%n%n 1 3 1\n", "no pattern"),
        ("a.nrrd", f"{NRRD}spacings: 1 nan 2\n", None),  # says nothing of an axis
        ("a.nrrd", f"{NRRD}spacings: 1 1 inf\n", "'inf' among the numbers of its spacings"),
        (
            "a.nrrd",
            f"{NRRD}space dimension: 3\nspace directions: (1,0,0) (0,1,0) (0,0,x)\n",
            "'x' among the numbers",
        ),
        ("a.mha", META, None),
        (
            "a.mha",
            META.replace("ElementType", "TransformMatrix = 1 0 0 0 -inf 0 0 0 1\nElementType"),
            "'-inf' among",
        ),
        ("a.mha", META.replace("ElementType", "Offset = 1e300 0 0\nElementType"), "'1e300' among"),
        ("a.mha", META.replace("14 12 4", "10000 10000 10000"), "ends before its last voxel"),
        ("a.mha", META.replace("NDims = 3", "NDims = 4294967296"), "dimensions"),  # ended the process
        (
            "a.mha",
            META.replace("ElementType", "ElementNumberOfChannels = 100000000\nElementType"),
            "numbers a voxel",
        ),
        ("a.mha", f"Comment = {'x' * 5000}\n{META}", "too long"),
        ("a.mha", META.replace("ElementType", f"Offset = {'1 ' * 50}\nElementType"), "wrong count"),
    ],
)
def test_a_header_is_proved_before_a_library_trusts_it(tmp_path, name, header, message):
    path = tmp_path / name
    end = b"" if name.endswith(".mha") else b"\n"
    path.write_bytes(header.encode() + end + VOXELS)
    if message is None:
        assert read_volume(path).shape == (4, 12, 14)
        return
    for read in (read_frames, unpacked_bytes):
        with pytest.raises(UserError, match=message):
            read(path)


def test_a_nifti_that_promises_more_than_deflate_can_hold_is_refused_without_unpacking(tmp_path):
    path = tmp_path / "a.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(96, dtype=np.int16).reshape(4, 4, 6)), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<3h", content, 42, 30_000, 30_000, 30_000)
    (tmp_path / "a.nii").write_bytes(content)
    path.write_bytes(zlib.compress(bytes(content), wbits=31))
    for file in (path, tmp_path / "a.nii"):
        with pytest.raises(UserError, match="ends before its last voxel"):
            read_volume(file)


def test_a_picture_that_promises_more_than_it_can_hold_is_refused(tmp_path):
    for side, message in ((12_000, "cannot hold"), (200_000, "too many pixels")):
        head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
        parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
        with pytest.raises(UserError, match=message):
            read_volume(tmp_path / "a.png")


@pytest.mark.parametrize(
    "changes",
    [
        {"Rows": 65535, "Columns": 65535},
        {"NumberOfFrames": 2**31 - 1},
        {"BitsAllocated": 0},
        {"BitsAllocated": None},
        {"Rows": [12, 12]},
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_dicom_that_promises_more_pixels_than_it_has_is_refused_by_its_header(tmp_path, changes, compressed):
    data = _slice(0)
    if compressed:
        data.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    (tmp_path / "whole.dcm").write_bytes(_bytes_of(data))
    assert read_volume(tmp_path / "whole.dcm").shape == (1, 12, 14)
    for name, value in changes.items():
        setattr(data, name, value)
    (tmp_path / "a.dcm").write_bytes(_bytes_of(data))
    with pytest.raises(UserError, match="damaged"):
        read_volume(tmp_path / "a.dcm")


def test_run_lengths_that_end_early_are_refused_as_decoding_them_would_never_end(tmp_path):
    data = _slice(0)
    data.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    content = _bytes_of(data)
    place = content.index(b"\xfe\xff\x00\xe0", content.index(b"\xe0\x7f\x10\x00") + 16)  # of the frame
    size = struct.unpack_from("<I", content, place + 4)[0]
    last = place + 8 + size - 20
    changed = content[:last] + b"\x80" * 20 + content[last + 20 :]  # codes that stand for no pixel
    for name, damaged in (("cut", content[:-100]), ("short", changed), ("no end", content[:-8])):
        (tmp_path / f"{name}.dcm").write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be decoded; it may be damaged"):
            read_volume(tmp_path / f"{name}.dcm")


def refuse_in_little_memory(path):
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="damaged"):
            read_volume(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_length_in_dicom_takes_no_memory_that_the_file_does_not_have(tmp_path):
    data = _slice(0)
    data.add_new(0x00081030, "UT", "description")
    content = _bytes_of(data)
    place = content.index(b"\x08\x00\x30\x10UT") + 8
    (tmp_path / "a.dcm").write_bytes(content[:place] + struct.pack("<I", 2**32 - 16) + content[place + 4 :])
    refuse_in_little_memory(tmp_path / "a.dcm")


@pytest.mark.parametrize("syntax", ["1.2.3.4", "1.2.840.113619.5.2", "1.2.840.10008.5.1.4.1.1.7"])
def test_a_transfer_syntax_that_dicom_does_not_know_is_refused(tmp_path, syntax):
    content = _bytes_of(_slice(0))
    old = pydicom.uid.ExplicitVRLittleEndian.encode()
    place = content.index(old) - 2
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    content = (
        content[:place] + struct.pack("<H", len(value)) + value + content[place + 2 + len(old) + len(old) % 2 :]
    )
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(UserError, match=f"'{syntax}', which is none of DICOM's"):
        read_volume(tmp_path / "a.dcm")


def test_a_length_in_a_picture_takes_no_memory_that_the_file_does_not_have(tmp_path):
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    place = content.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:place] + struct.pack(">I", 2**31 - 1) + content[place + 4 :])
    refuse_in_little_memory(tmp_path / "a.png")


@pytest.mark.parametrize(("field", "number"), [("Layer", -1), ("Layer", -(2**31)), ("LabelValue", -3)])
def test_a_segment_in_a_layer_before_the_first_is_refused(tmp_path, field, number):
    volume = Volume(np.zeros((4, 5, 6), np.int16))
    path = tmp_path / "a.seg.nrrd"
    write_segments(path, [Segment("ball", np.ones(volume.shape, bool), (1, 0, 0))], volume)
    content, count = re.subn(rb"(Segment0_%s:=)\d+" % field.encode(), rb"\g<1>%d" % number, path.read_bytes())
    assert count == 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="no valid layer and value"):
        read_segmentation(path, volume)


@pytest.mark.parametrize("spacing", ["0.5\\«.7", "0.5", "0\\0"])
def test_a_spacing_of_a_picture_that_is_no_two_numbers_above_zero_is_refused(tmp_path, spacing):
    data = _slice(0)
    del data.ImagePositionPatient, data.PixelSpacing
    data.add_new("ImagerPixelSpacing", "LO", spacing)
    (tmp_path / "a.dcm").write_bytes(_bytes_of(data))
    with pytest.raises(UserError, match=r"valid pixel spacing \(ImagerPixelSpacing\)"):
        read_volume(tmp_path / "a.dcm")


@pytest.mark.filterwarnings("ignore:Invalid value")  # which is written here
def test_a_window_of_dicom_that_is_no_number_is_none(tmp_path):
    data = _slice(0)
    data.WindowCenter, data.WindowWidth = "nan", "400"
    (tmp_path / "a.dcm").write_bytes(_bytes_of(data))
    assert read_volume(tmp_path / "a.dcm").window is None


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": [None]},
        {"metrics": {"set": {"brain": "good"}}},
        {"presence": {"set": {"absent": 1}}},
        {"training": {"seconds": [], "parameters": "x", "device": None}},
        {"hidden_size": 10**9},
        {"name": "x" * 10_000, "method": "y"},
    ],
)
def test_a_card_with_entries_of_the_wrong_kind_is_refused(tmp_path, tiny_base, changes):
    folder = make_adapter(tmp_path / "adapter", tiny_base)
    card = json.loads((folder / CARD).read_text()) | changes
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(UserError) as refusal:
        load_model(open_base(str(tiny_base)), folder, read_card(folder))
    assert len(str(refusal.value)) <= LONGEST_MESSAGE + 3


def test_json_that_is_nested_too_deeply_is_refused_wherever_it_is_read(tmp_path, tiny_base, tiny_adapter, pictures):
    segmenter = Segmenter(str(tiny_adapter), device="cpu")
    (tmp_path / "out.json").write_text(DEEP)
    assert not is_done(Outputs(tmp_path / "out.nrrd", tmp_path / "out.json"), segmenter, Request(("brain",)), "")
    (pictures / "anns" / "train.json").write_text(DEEP)
    with pytest.raises(UserError, match="nested too deeply"):
        open_data_set(pictures, "train")
    (tiny_adapter / CARD).write_text(DEEP)
    with pytest.raises(UserError, match="nested too deeply"):
        read_card(tiny_adapter)


@pytest.mark.parametrize("name", ["../images/0.png", "/dev/zero", "a\0", "x" * 300, "", 5, None, "0.png/../../x"])
@pytest.mark.parametrize("key", ["img_name", "mask_name"])
def test_a_row_names_only_files_of_its_own_data_set(pictures, name, key):
    path = pictures / "anns" / "train.json"
    rows = json.loads(path.read_text())
    rows[0][key] = name
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"train\.json has a row"):
        open_splits(pictures, ("axial",))


@pytest.mark.parametrize(
    "changes",
    [
        {"training": [{"image": "/dev/zero", "label": "labelsTr/0.nii.gz"}]},
        {"training": [{"image": "../x.nii.gz", "label": "labelsTr/0.nii.gz"}]},
        {"labels": {"0": "background", "1": None}},
        {"labels": {"ball": [1, "x"]}},
        {"training": {}, "labels": []},
    ],
)
def test_a_description_of_volumes_with_entries_of_the_wrong_kind_is_refused(volumes, changes):
    path = volumes / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=r"dataset\.json lacks labels or volumes"):
        open_data_set(volumes, "train")


@pytest.mark.parametrize("text", ["ball: 2001-99-99", "[" * 5000, "ball: \x07"])
def test_wordings_that_are_no_yaml_are_refused(volumes, text):
    (volumes / "prompts.yaml").write_text(text)
    with pytest.raises(UserError, match=r"prompts\.yaml cannot be read as YAML"):
        open_data_set(volumes, "train")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_file_packed_by_what_takes_memory_as_it_likes_is_refused(tmp_path, tiny_base, method):
    folder = make_adapter(tmp_path / "polyp", tiny_base)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    with pytest.raises(UserError, match="unusual way"):
        install_adapter(tmp_path / "a.zip")


def test_a_zip_file_whose_packed_bytes_are_damaged_is_refused(tmp_path, tiny_base):
    folder, buffer = make_adapter(tmp_path / "polyp", tiny_base), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in (WEIGHTS, CARD, "README.md"):
            archive.write(folder / name, name)
    content = bytearray(buffer.getvalue())
    content[100:140] = b"\xff" * 40
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        install_adapter(tmp_path / "a.zip")
