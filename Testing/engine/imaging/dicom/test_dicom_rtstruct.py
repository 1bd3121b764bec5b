"""RT structure sets: contours cover the mask on the source's own slices; dciodvfy finds no error."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import ball, files, make_adapter, run_command
from matplotlib.path import Path as Polygon
from pydicom.uid import RTStructureSetStorage
from test_dicom_seg import (
    ALGORITHM,
    NAMELESS,
    SERIES,
    SHA256,
    SHAPE,
    UNEVEN,
    WITH_DCIODVFY,
    bright,
    segments_of,
    sources_of,
    write_series,
)

from engine import segment
from engine.errors import UserError
from engine.imaging.reading import read_frames, read_volume
from engine.imaging.volumes.segments import Segment
from engine.imaging.writing import check_format, write_probability, write_segments

LEAST_DICE = 0.98


@pytest.fixture
def series(tmp_path) -> Path:
    return write_series(tmp_path / "series")


def box(*ranges: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[ranges] = True
    return mask


def ring() -> np.ndarray:
    """A ball with a hole, in which lies an island, and another hole below the first in the same columns."""
    mask = box(slice(1, 4), slice(0, 12), slice(0, 10))
    mask[1:4, 2:7, 2:8] = False
    mask[1:4, 4, 4:6] = True
    mask[1:4, 9, 3:6] = False
    return mask


MASKS = {
    "ball": ball(SHAPE, (2, 5, 4), 3),
    "ring": ring(),
    "two components": box(slice(0, 5), slice(1, 4), slice(1, 4)) | box(slice(2, 5), slice(7, 11), slice(5, 9)),
    "corners that touch": box(slice(1, 3), slice(2, 4), slice(2, 4)) | box(slice(1, 3), slice(4, 6), slice(4, 6)),
    "one slice": box(slice(3, 4), slice(2, 9), slice(3, 8)),
    "one voxel": box(slice(2, 3), slice(5, 6), slice(0, 1)),
    "everything": np.ones(SHAPE, bool),
    "noise": np.random.default_rng(3).random(SHAPE) > 0.4,
}


def found(mask: np.ndarray, name: str = "liver") -> Segment:
    return Segment(name, mask, (1.0, 0.5, 0.0), {"Prompt": name}, ALGORITHM)


def enclosed(contour: pydicom.Dataset, position, orientation, spacing, shape: tuple[int, int]) -> np.ndarray:
    """Return which pixels of a slice have their centres in a contour, which must lie in the slice's plane."""
    points = np.array(contour.ContourData, float).reshape(-1, 3)
    assert len(points) == contour.NumberOfContourPoints >= 3 and not np.array_equal(points[0], points[-1])
    rows, columns = np.array(orientation, float).reshape(2, 3)
    away = points - np.array(position, float)
    assert np.abs(away @ np.cross(rows, columns)).max() < 1e-3
    places = np.stack([away @ rows, away @ columns], axis=1) / np.array(spacing, float)[::-1]
    centres = np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[0])), axis=-1)
    return Polygon(places).contains_points(centres.reshape(-1, 2)).reshape(shape)


def rasterised(drawn: pydicom.Dataset, sources: dict[str, pydicom.Dataset]) -> dict[str, np.ndarray]:
    """Return what the contours of a structure cover in each source slice, from nothing but the files.

    A pixel is covered if its centre lies in any of the contours.
    """
    covered = {uid: np.zeros((source.Rows, source.Columns), bool) for uid, source in sources.items()}
    for contour in drawn.get("ContourSequence", []):
        assert contour.ContourGeometricType == "CLOSED_PLANAR"
        (reference,) = contour.ContourImageSequence
        source = sources[reference.ReferencedSOPInstanceUID]
        assert reference.ReferencedSOPClassUID == source.SOPClassUID
        place = (source.ImagePositionPatient, source.ImageOrientationPatient, source.PixelSpacing)
        covered[source.SOPInstanceUID] |= enclosed(contour, *place, (source.Rows, source.Columns))
    return covered


def on_sources(mask: np.ndarray, volume, sources: dict[str, pydicom.Dataset]) -> dict[str, np.ndarray]:
    """Return a volume's mask by source slice, found by where it lies."""
    normal = volume.direction_matrix[:, 2]
    places = {
        uid: round(
            float((np.array(source.ImagePositionPatient, float) - volume.origin_mm) @ normal) / volume.spacing_mm[2]
        )
        for uid, source in sources.items()
    }
    return {uid: mask[place] for uid, place in places.items()}


def dice(one: np.ndarray, other: np.ndarray) -> float:
    both = one.sum() + other.sum()
    return 2 * (one & other).sum() / both if both else 1.0


def assert_covers(path: Path, expected: dict[str, np.ndarray], sources: dict[str, pydicom.Dataset]) -> None:
    (drawn,) = pydicom.dcmread(path).ROIContourSequence
    covered = rasterised(drawn, sources)
    assert any(mask.any() for mask in covered.values())
    for uid, mask in expected.items():
        assert dice(covered[uid], mask) >= LEAST_DICE


@pytest.mark.parametrize("kind", SERIES)
@pytest.mark.parametrize("shape", MASKS)
def test_contours_cover_the_mask_on_the_very_slices_of_the_source(tmp_path, kind, shape):
    folder = write_series(tmp_path / "series", *SERIES[kind])
    volume, sources = read_volume(folder), sources_of(folder)
    write_segments(tmp_path / "o.rt.dcm", [found(MASKS[shape])], volume)
    assert_covers(tmp_path / "o.rt.dcm", on_sources(MASKS[shape], volume, sources), sources)


@pytest.mark.parametrize("kind", UNEVEN)
def test_what_is_found_in_a_resampled_volume_is_drawn_on_the_slices_themselves(tmp_path, kind):
    folder = write_series(tmp_path / "series", **UNEVEN[kind])
    sources, volume = sources_of(folder), read_volume(folder, resample=True)
    write_segments(tmp_path / "o.rt.dcm", [found(volume.voxels > -500)], volume)
    expected = {uid: 2 * source.pixel_array.astype(int) - 1000 > -500 for uid, source in sources.items()}
    assert_covers(tmp_path / "o.rt.dcm", expected, sources)


@pytest.mark.parametrize("turned", [False, True])
def test_frames_of_an_enhanced_image_are_referred_to_by_number(tmp_path, shared_data, turned):
    source = pydicom.dcmread(shared_data / "dicom" / "enhanced_mr" / "Siemens" / "XA10" / "6_1.dcm")
    stack = source.pixel_array[::-1] if turned else source.pixel_array
    if turned:
        source.PerFrameFunctionalGroupsSequence = list(source.PerFrameFunctionalGroupsSequence)[::-1]
        source.PixelData = stack.tobytes()
    source.save_as(tmp_path / "enhanced.dcm")
    volume = read_volume(tmp_path / "enhanced.dcm")
    write_segments(tmp_path / "o.rt.dcm", segments_of(volume, "liver"), volume)
    (drawn,) = pydicom.dcmread(tmp_path / "o.rt.dcm").ROIContourSequence
    covered = np.zeros(stack.shape, bool)
    for contour in drawn.ContourSequence:
        (reference,) = contour.ContourImageSequence
        number = int(reference.ReferencedFrameNumber) - 1
        group = source.PerFrameFunctionalGroupsSequence[number]
        position = group.PlanePositionSequence[0].ImagePositionPatient
        orientation = group.PlaneOrientationSequence[0].ImageOrientationPatient
        spacing = group.PixelMeasuresSequence[0].PixelSpacing
        covered[number] |= enclosed(contour, position, orientation, spacing, stack.shape[1:])
    assert dice(covered, bright(stack)) >= LEAST_DICE
    if shutil.which("dciodvfy"):
        assert_valid(tmp_path / "o.rt.dcm")


def test_a_picture_without_a_place_is_refused(tmp_path, shared_data):
    (volume,) = read_frames(next((shared_data / "dicom").rglob("gdcm-CR-MONO1-10-chest.dcm")))
    with pytest.raises(UserError, match=r"has no place in a patient.* write \.seg\.nrrd instead"):
        check_format(tmp_path / "o.rt.dcm", volume, 1, exclusive=False)


def test_a_hole_is_a_keyhole_of_one_contour_and_an_island_another(tmp_path, series):
    volume = read_volume(series)
    write_segments(tmp_path / "o.rt.dcm", [found(MASKS["ring"])], volume)
    (drawn,) = pydicom.dcmread(tmp_path / "o.rt.dcm").ROIContourSequence
    slices = [contour.ContourImageSequence[0].ReferencedSOPInstanceUID for contour in drawn.ContourSequence]
    assert sorted(slices.count(uid) for uid in set(slices)) == [2, 2, 2]
    numbers = [contour.ContourNumber for contour in drawn.ContourSequence]
    assert len(set(numbers)) == len(numbers) == 6


def test_it_says_what_was_found_in_whom_and_by_what(tmp_path, series):
    volume, sources = read_volume(series), sources_of(series)
    write_segments(tmp_path / "o.rt.dcm", segments_of(volume, "the left lung", "blob"), volume)
    written, source = pydicom.dcmread(tmp_path / "o.rt.dcm"), next(iter(sources.values()))
    assert written.SOPClassUID == RTStructureSetStorage and written.Modality == "RTSTRUCT"
    assert (written.ApprovalStatus, written.StructureSetLabel) == ("UNAPPROVED", "VLSMSegmenter")
    assert "research only" in written.StructureSetDescription
    for name in (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "StudyInstanceUID",
        "StudyDate",
        "AccessionNumber",
    ):
        assert written[name].value == source[name].value
    assert str(written.PatientName) == "Geheim^Jürgen"
    assert written.SeriesInstanceUID != source.SeriesInstanceUID and written.SeriesNumber == 1003
    (frame,) = written.ReferencedFrameOfReferenceSequence
    (referenced,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert frame.FrameOfReferenceUID == written.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in referenced.ContourImageSequence} == set(sources)
    lung, blob = written.StructureSetROISequence
    assert [lung.ROIName, blob.ROIName] == ["the left lung", "blob"]
    assert lung.ROIGenerationAlgorithm == "AUTOMATIC"
    (identified,) = lung.ROIDerivationAlgorithmIdentificationSequence
    assert (identified.AlgorithmName, identified.AlgorithmVersion) == (ALGORITHM.name, ALGORITHM.version)
    assert "Prompt=the left lung" in identified.AlgorithmParameters and SHA256 in identified.AlgorithmParameters
    assert [list(drawn.ROIDisplayColor) for drawn in written.ROIContourSequence] == [[255, 128, 0]] * 2
    lung, blob = written.RTROIObservationsSequence
    (kind,) = lung.RTROIIdentificationCodeSequence
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("39607008", "SCT", "Lung")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert lung.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert blob.RTROIIdentificationCodeSequence[0].CodeMeaning == "Tissue"
    for part in (written.StructureSetROISequence, written.RTROIObservationsSequence, written.ROIContourSequence):
        assert [item.get("ROINumber") or item.ReferencedROINumber for item in part] == [1, 2]


def test_two_results_of_one_series_are_two_series(tmp_path, series):
    volume = read_volume(series)
    for name in "ab":
        write_segments(tmp_path / f"{name}.rt.dcm", segments_of(volume, "liver"), volume)
    first, second = (pydicom.dcmread(tmp_path / f"{name}.rt.dcm") for name in "ab")
    assert first.SOPInstanceUID != second.SOPInstanceUID and first.SeriesInstanceUID != second.SeriesInstanceUID


def test_empty_segments_are_left_out_and_overlap_is_kept(tmp_path, series):
    volume = read_volume(series)
    segments = [found(np.zeros(SHAPE, bool), "polyp"), *segments_of(volume, "liver", "spleen")]
    write_segments(tmp_path / "o.rt.dcm", segments, volume)
    written = pydicom.dcmread(tmp_path / "o.rt.dcm")
    assert [structure.ROIName for structure in written.StructureSetROISequence] == ["liver", "spleen"]
    first, second = (rasterised(drawn, sources_of(series)) for drawn in written.ROIContourSequence)
    assert all(np.array_equal(first[uid], second[uid]) for uid in first)
    assert any(mask.any() for mask in first.values())


def test_where_nothing_was_found_the_structures_are_there_without_a_contour(tmp_path, series):
    write_segments(tmp_path / "o.rt.dcm", [found(np.zeros(SHAPE, bool), "polyp")], read_volume(series))
    written = pydicom.dcmread(tmp_path / "o.rt.dcm")
    assert [structure.ROIName for structure in written.StructureSetROISequence] == ["polyp"]
    assert "ContourSequence" not in written.ROIContourSequence[0]


LACKING = {
    "an instance without a UID": ({"SOPInstanceUID": ""}, "lacks SOPInstanceUID"),
    "no frame of reference": ({"FrameOfReferenceUID": None}, "no frame of reference common to all slices"),
    "one slice that lies nowhere": (
        {"without": range(1, 5), "FrameOfReferenceUID": None},
        "has no place in a patient",
    ),
}


@pytest.mark.parametrize("case", LACKING)
def test_a_source_that_cannot_be_referred_to_is_refused_before_anything_is_computed(tmp_path, case):
    attributes, message = LACKING[case]
    volume = read_volume(write_series(tmp_path / "series", **attributes))
    with pytest.raises(UserError, match=rf"{message}.*write \.seg\.nrrd instead"):
        check_format(tmp_path / "o.rt.dcm", volume, 1, exclusive=False)


def test_a_cine_is_refused(tmp_path, shared_data):
    frames = read_frames(next((shared_data / "dicom").rglob("multiframe-test1.dcm")))
    with pytest.raises(UserError, match=r"is one of 16 frames without a place each"):
        check_format(tmp_path / "o.rt.dcm", frames[0], 1, exclusive=False)


@pytest.mark.parametrize("library", ["highdicom", "skimage"])
def test_a_missing_library_is_named_with_its_remedy(tmp_path, series, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=r"highdicom and scikit-image; run pip install .*\[dicom\]"):
        check_format(tmp_path / "o.rt.dcm", read_volume(series), 1, exclusive=False)


def test_a_structure_set_holds_no_probabilities(tmp_path, series):
    with pytest.raises(UserError, match="cannot hold probabilities"):
        write_probability(tmp_path / "o.rt.dcm", np.zeros(SHAPE), read_volume(series))


VALID = {
    "axial": ({}, ["liver"]),
    "oblique": ({"orientation": SERIES["oblique"][0]}, ["the left lung", "blob"]),
    "a single slice": ({"without": range(1, 5)}, ["liver"]),
    "a long prompt": ({}, ["large " * 40 + "polyp"]),
    "a prompt in other letters": ({}, ["ведро\\печень " * 5]),
    "nothing found": ({"PixelData": bytes(240)}, ["liver", "polyp"]),
    "missing attributes": (NAMELESS, ["liver"]),
    "anonymised": ({"PatientSex": "0000"}, ["liver"]),
    "tilted": (UNEVEN["tilted"], ["liver"]),
}


@WITH_DCIODVFY
@pytest.mark.parametrize("case", VALID)
@pytest.mark.filterwarnings("ignore:Invalid value")
def test_dciodvfy_finds_no_error(tmp_path, case):
    attributes, prompts = VALID[case]
    volume = read_volume(write_series(tmp_path / "series", **attributes), resample=True)
    write_segments(tmp_path / "o.rt.dcm", segments_of(volume, *prompts), volume)
    assert_valid(tmp_path / "o.rt.dcm")


def assert_valid(path: Path) -> None:
    said = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True).stderr
    assert "RTStructureSet" in said and "Error" not in said, said


@pytest.mark.skipif(shutil.which("drtdump") is None, reason="drtdump is not installed; Debian's dcmtk has it")
def test_dcmtk_reads_it(tmp_path, series):
    volume = read_volume(series)
    write_segments(tmp_path / "o.rt.dcm", segments_of(volume, "liver"), volume)
    read = subprocess.run(["drtdump", tmp_path / "o.rt.dcm"], capture_output=True, text=True)
    assert read.returncode == 0 and "RT Structure Set object" in read.stdout and not read.stderr, read.stderr


@pytest.mark.skipif(shutil.which("plastimatch") is None, reason="plastimatch is not installed; Debian has it")
@pytest.mark.parametrize("kind", ["axial", "oblique"])
@pytest.mark.parametrize("shape", ["ball", "ring", "two components", "noise"])
def test_plastimatch_finds_the_mask_in_it(tmp_path, kind, shape):
    folder = write_series(tmp_path / "series", *SERIES[kind])
    write_segments(tmp_path / "o.rt.dcm", [found(MASKS[shape])], read_volume(folder))
    words = ["--input", tmp_path / "o.rt.dcm", "--referenced-ct", folder, "--output-labelmap", tmp_path / "o.nrrd"]
    subprocess.run(["plastimatch", "convert", *words], check=True, capture_output=True)
    back = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "o.nrrd")) > 0
    assert dice(back, MASKS[shape]) >= LEAST_DICE


# the command


@pytest.fixture
def command(tiny_adapter, monkeypatch, capsys):
    def call(*arguments, adapter=tiny_adapter):
        words = ["--device", "cpu", "--adapter", adapter, "--threshold", 0.1, *arguments]
        return run_command(monkeypatch, capsys, segment.main, *words)

    return call


def test_the_command_writes_the_same_masks_as_contours_and_as_nrrd(command, series, tmp_path):
    for name in ("o.rt.dcm", "o.nrrd"):
        code, _, errors = command(series, "-p", "brain", "-o", tmp_path / name, "--report", "--overwrite")
        assert code == 0, errors
    volume, sources = read_volume(series), sources_of(series)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "o.nrrd")) > 0
    assert mask.any() and (tmp_path / "o.json").exists()
    assert_covers(tmp_path / "o.rt.dcm", on_sources(mask, volume, sources), sources)


def test_a_folder_of_studies_gets_structure_sets_and_says_what_is_no_dicom(command, tmp_path):
    write_series(tmp_path / "studies" / "a")
    sitk.WriteImage(sitk.GetImageFromArray(np.eye(16, dtype=np.int16)[None]), tmp_path / "studies" / "c.nii.gz")
    code, _, errors = command(tmp_path / "studies", "-p", "brain", "-o", f"{tmp_path}/out/", "--format", ".rt.dcm")
    assert code == 2 and "c.nii.gz is none; write .seg.nrrd instead" in errors
    assert files(tmp_path / "out") == {"a.rt.dcm", "a.json", "summary.csv", "segments.csv"}


def test_an_absent_structure_has_no_contour(command, series, tmp_path, tiny_base):
    strict = make_adapter(tmp_path / "strict", tiny_base, presence_threshold=1.0)
    code, printed, errors = command(series, "-p", "polyp", "-o", tmp_path / "o.rt.dcm", adapter=strict)
    assert code == 0 and "not found" in printed, errors
    (drawn,) = pydicom.dcmread(tmp_path / "o.rt.dcm").ROIContourSequence
    assert "ContourSequence" not in drawn


def test_a_result_beside_its_scan_does_not_count_as_one(command, series):
    code, _, errors = command(series, "-p", "brain", "-o", series / "result.rt.dcm")
    assert code == 0, errors
    assert read_volume(series).shape == SHAPE
