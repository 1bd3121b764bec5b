"""A size that nobody knows is reported nowhere: pictures, films, headers that do not say it, ultrasound."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import run_command, write_series
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import UltrasoundImageStorage

from engine import segment
from engine.client import Client
from engine.errors import UserError
from engine.imaging.reading import read_frames, read_volume
from engine.imaging.volumes.volume import Volume
from engine.segmentation.segmenter import Segmenter
from engine.segmentation.studies import size

PIXELS = np.random.default_rng(0).integers(0, 200, (20, 24)).astype(np.uint8)
KNOWN, PLANE, NOTHING = (True, True, True), (True, True, False), (False, False, False)


def write_dicom(path, frames=1, **attributes):
    """Write an ultrasound picture, or a film, as the tests of DICOM do."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID, image.SeriesInstanceUID = UltrasoundImageStorage, "1.2.3.4", "1.2.3"
    image.Modality, image.Rows, image.Columns, image.NumberOfFrames = "US", *PIXELS.shape, frames
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.PixelData = PIXELS.tobytes() * frames
    image["PixelData"].VR = "OW"
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    image.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=False)
    path.write_bytes(bytes(128) + b"DICM" + _meta() + path.read_bytes())
    return path


def _meta() -> bytes:
    syntax = b"1.2.840.10008.1.2.1\0"
    element = b"\x02\x00\x10\x00UI" + len(syntax).to_bytes(2, "little") + syntax
    return b"\x02\x00\x00\x00UL\x04\x00" + len(element).to_bytes(4, "little") + element


def region(x_cm=0.02, y_cm=0.03, units=(3, 3), kind=1) -> Dataset:
    values = Dataset()
    values.PhysicalUnitsXDirection, values.PhysicalUnitsYDirection = units
    values.PhysicalDeltaX, values.PhysicalDeltaY, values.RegionSpatialFormat = x_cm, y_cm, kind
    values.RegionDataType = 1
    return values


@pytest.mark.parametrize(
    ("regions", "spacing_mm"),
    [
        ([region()], (0.2, 0.3)),
        ([region(-0.02, -0.03)], (0.2, 0.3)),  # an axis may run the other way
        ([region(), region()], (0.2, 0.3)),  # two pictures side by side
        ([region(1, 1, units=(4, 3), kind=2), region()], (0.2, 0.3)),  # a curve over time above
        ([region(1, 1, kind=3), region()], (0.2, 0.3)),  # a spectrum
        ([region(), region(0.05, 0.05)], None),  # two scales in one picture
        ([region(units=(3, 4))], None),
        ([region(0, 0)], None),
        ([], None),
    ],
)
def test_the_regions_of_an_ultrasound_say_its_spacing(tmp_path, regions, spacing_mm):
    more = {"SequenceOfUltrasoundRegions": regions} if regions else {}
    for name, frames in (("a", 1), ("b", 3)):
        for volume in read_frames(write_dicom(tmp_path / f"{name}.dcm", frames, **more)):
            assert volume.spacing_mm == pytest.approx((*(spacing_mm or (1, 1)), 1))
            assert volume.spacing_known == (PLANE if spacing_mm else NOTHING)
            assert volume.voxel_volume_ml is None


@pytest.mark.parametrize(
    ("attributes", "known"),
    [
        ({"PixelSpacing": [2, 2], "SequenceOfUltrasoundRegions": [region()]}, PLANE),
        ({"Modality": "CR", "ImagerPixelSpacing": [2, 2]}, PLANE),
        ({"Modality": "OT", "NominalScannedPixelSpacing": [2, 2]}, PLANE),
        ({"Modality": "CT", "PixelSpacing": [2, 2], "SliceThickness": 3}, KNOWN),
        ({"SliceThickness": 3}, (False, False, True)),
    ],
)
def test_a_single_image_knows_what_it_says(tmp_path, attributes, known):
    volume = read_volume(write_dicom(tmp_path / "a.dcm", **attributes))
    assert volume.spacing_known == known
    assert volume.spacing_mm[:2] == ((2, 2) if known[0] else (1, 1))


def test_slices_of_a_series_know_their_distance(tmp_path):
    write_series(tmp_path)
    assert read_volume(tmp_path).spacing_known == KNOWN
    (tmp_path / "one").mkdir()
    write_series(tmp_path / "one", (4,))
    assert read_volume(tmp_path / "one").spacing_known == PLANE  # it has no thickness


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_a_picture_knows_none(tmp_path, suffix):
    Image.fromarray(PIXELS).save(tmp_path / f"a{suffix}", dpi=(300, 300))  # of printing
    volume = read_volume(tmp_path / f"a{suffix}")
    assert volume.spacing_known == NOTHING and volume.voxel_volume_ml is None


NRRD = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 3 4\nencoding: raw\n{}\n"
META = "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\n{}ElementType = MET_UCHAR\nElementDataFile = LOCAL\n"


@pytest.mark.parametrize(
    ("name", "header", "known"),
    [
        ("a.nrrd", NRRD.format(""), NOTHING),
        ("a.nrrd", NRRD.format("spacings: 1 1 1\n"), KNOWN),
        ("a.nrrd", NRRD.format("space: LPS\nspace directions: (1,0,0) (0,1,0) (0,0,1)\n"), KNOWN),
        ("a.mha", META.format(""), NOTHING),
        ("a.mha", META.format("ElementSpacing = 1 1 1\n"), KNOWN),
        ("a.mha", META.format("ElementSize = 1 1 1\n"), KNOWN),
    ],
)
def test_a_header_that_says_no_spacing_is_not_taken_for_one_of_1_mm(tmp_path, name, header, known):
    (tmp_path / name).write_bytes(header.encode() + bytes(range(24)))
    volume = read_volume(tmp_path / name)
    assert volume.spacing_mm == (1, 1, 1) and volume.spacing_known == known
    assert (volume.voxel_volume_ml is None) == (known == NOTHING)


def test_a_plane_has_no_thickness(tmp_path):
    image = sitk.GetImageFromArray(PIXELS)
    image.SetSpacing((0.3, 0.4))
    sitk.WriteImage(image, tmp_path / "a.nrrd")
    volume = read_volume(tmp_path / "a.nrrd")
    assert volume.spacing_mm == (0.3, 0.4, 1) and volume.spacing_known == PLANE


@pytest.fixture
def command(tiny_adapter, monkeypatch, capsys):
    def call(*arguments):
        words = ["--device", "cpu", "--adapter", tiny_adapter, "--threshold", 0.1, "-p", "brain", *arguments]
        return run_command(monkeypatch, capsys, segment.main, *words)

    return call


def test_the_command_reports_voxels_in_place_of_millilitres(command, tmp_path):
    write_dicom(tmp_path / "a.dcm", SequenceOfUltrasoundRegions=[region()])
    code, printed, errors = command(tmp_path / "a.dcm", "-o", tmp_path / "a.seg.nrrd", "--report", "--preview")
    assert code == 0, errors
    report = json.loads((tmp_path / "a.json").read_text())
    (row,) = report["results"]
    assert row["volume_ml"] is None and row["voxels"] > 0 and size(row) == f"{row['voxels']} voxels"
    assert report["study"]["spacing_mm"] == [0.2, 0.3, None]
    assert f"{row['voxels']} voxels" in printed and " ml" not in printed
    assert sitk.ReadImage(tmp_path / "a.seg.nrrd").GetSpacing() == pytest.approx((0.2, 0.3, 1))


def test_a_folder_of_pictures_reports_no_millilitres(command, tmp_path):
    (tmp_path / "in").mkdir(), (tmp_path / "out").mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "in" / "a.png")
    code, printed, errors = command(tmp_path / "in", "-o", tmp_path / "out")
    assert code == 0, errors
    assert json.loads((tmp_path / "out" / "a.json").read_text())["study"]["spacing_mm"] == [None] * 3
    (row,) = csv.DictReader((tmp_path / "out" / "summary.csv").open())
    assert row["state"] == "done" and not any("ml" in (key, value) for key, value in row.items())
    assert " ml" not in printed


def test_parts_are_not_dropped_by_a_volume_that_nobody_knows(command, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    code, _, errors = command(tmp_path / "a.png", "-o", tmp_path / "o.png", "--min-volume-ml", "1")
    assert code == 2 and "a.png does not say how large its voxels are; leave out --min-volume-ml" in errors
    assert not (tmp_path / "o.png").exists()


def test_the_library_gives_no_millilitres(tiny_adapter):
    segmenter = Segmenter(str(tiny_adapter), device="cpu")
    voxels = np.random.default_rng(0).integers(0, 200, (3, 20, 24)).astype(np.uint8)
    for known in (KNOWN, PLANE, NOTHING):
        segmenter.set_volume(Volume(voxels, spacing_known=known))
        volume_ml = segmenter.segment("brain", 0.1).volume_ml()
        assert (volume_ml is None) == (known != KNOWN)


def test_the_server_and_its_client_give_none(server, allowed_folder):
    client = Client(server.url, server.token)
    voxels = np.random.default_rng(0).integers(0, 200, (3, 20, 24)).astype(np.uint8)
    for known in (KNOWN, NOTHING):
        there = client.put_volume(voxels, spacing_known=known)
        (result,) = client.segment(there, ["brain"], adapter="ball", threshold=0.1)
        assert (there.voxel_volume_ml is None) == (result.volume_ml() is None) == (known == NOTHING)
    Image.fromarray(PIXELS).save(allowed_folder / "unknown.png")
    assert client.put_path(allowed_folder / "unknown.png").voxel_volume_ml is None
    with pytest.raises(UserError, match="spacing_known must be true or false for each of x, y and z"):
        client.put_volume(voxels, spacing_known=(True,))
