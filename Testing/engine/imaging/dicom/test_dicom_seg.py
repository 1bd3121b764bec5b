"""DICOM segmentations: frames lie on the source's own slices and say what they are; dciodvfy finds no error."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import ball, files, make_adapter, run_command
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SegmentationStorage, generate_uid

from engine import segment
from engine.errors import UserError
from engine.imaging.dicom.codes import GENERAL, meaning_of
from engine.imaging.reading import read_frames, read_volume
from engine.imaging.volumes.segments import Algorithm, Segment
from engine.imaging.writing import check_format, write_probability, write_segments

SHAPE = (5, 12, 10)
WITH_DCIODVFY = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="dciodvfy is not installed; Debian's dicom3tools has it"
)
NAMELESS = dict.fromkeys(["PatientName", "PatientID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"])
SHA256 = "0123456789abcdef" * 4
ALGORITHM = Algorithm("head-t1", "0.1.0 0123456789ab", SHA256)
TILT = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0][:, :2].T.ravel().round(6)
# orientation of rows and columns, and the step of the files along the normal in mm
SERIES = {
    "axial": ((1, 0, 0, 0, 1, 0), 2.5),
    "reversed": ((1, 0, 0, 0, 1, 0), -2.5),
    "coronal": ((1, 0, 0, 0, 0, -1), 1.2),
    "oblique": (tuple(TILT), 1.7),
    "turned round": ((-1, 0, 0, 0, -1, 0), -3.0),
}


def write_series(
    folder: Path, orientation=(1, 0, 0, 0, 1, 0), step_mm=2.5, shift_mm=0, without=(), **attributes
) -> Path:
    """Write a CT with a bright ball; its files are named by their place in the file system alone.

    Args:
        shift_mm: of each slice against the one before, along the columns, as a tilted gantry does.
        without: the slices that are missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    rows, columns = np.reshape(orientation, (2, 3))
    normal = np.cross(rows, columns)
    voxels = np.random.default_rng(0).integers(0, 50, SHAPE) + 500 * ball(SHAPE, (2, 5, 4), 3)
    for index in set(range(SHAPE[0])) - set(without):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_ = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SpecificCharacterSet = "ISO_IR 100"
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.PatientName, slice_.PatientID, slice_.PatientBirthDate = "Geheim^Jürgen", "P-7", "19700102"
        slice_.StudyDate, slice_.StudyTime, slice_.StudyID, slice_.AccessionNumber = "20200304", "1011", "S1", "A2"
        slice_.Modality, slice_.SeriesNumber, slice_.SeriesDescription = "CT", 3, "Thorax"
        slice_.Rows, slice_.Columns, slice_.PixelSpacing, slice_.SliceThickness = 12, 10, [0.5, 0.25], 2
        slice_.ImageOrientationPatient = [float(v) for v in orientation]
        slice_.ImagePositionPatient = [
            float(v) for v in ([10, 20, 30] + index * (step_mm * normal + shift_mm * columns)).round(6)
        ]
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.RescaleSlope, slice_.RescaleIntercept = 2, -1000
        slice_.PixelData = voxels[index].astype(np.int16).tobytes()
        for name, value in attributes.items():
            slice_.pop(name, None) if value is None else setattr(slice_, name, value)
        slice_.save_as(folder / f"{(7 * index + 3) % 11:02}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture
def series(tmp_path) -> Path:
    return write_series(tmp_path / "series")


def bright(voxels: np.ndarray) -> np.ndarray:
    """Return what is bright, whatever slope the voxels were rescaled by."""
    return voxels > np.percentile(voxels, 80, method="lower")


def segments_of(volume, *names) -> list[Segment]:
    return [Segment(name, bright(volume.voxels), (1.0, 0.5, 0.0), {"Prompt": name}, ALGORITHM) for name in names]


def sources_of(folder: Path) -> dict[str, pydicom.Dataset]:
    headers = map(pydicom.dcmread, (path for path in folder.iterdir() if path.is_file()))
    return {header.SOPInstanceUID: header for header in headers}


def place_of(frame: pydicom.Dataset) -> list[float]:
    return [float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient]


def assert_on_sources(path: Path, sources: dict[str, pydicom.Dataset]) -> None:
    """Prove that each frame is what is bright in its source slice, at its very place, and that none is missing."""
    written = pydicom.dcmread(path)
    frames = written.pixel_array.reshape(-1, written.Rows, written.Columns)
    stack = np.stack([source.pixel_array for source in sources.values()])
    expected = {uid: mask for uid, mask in zip(sources, bright(stack), strict=True) if mask.any()}
    shared = written.SharedFunctionalGroupsSequence[0]
    seen = []
    for frame, pixels in zip(written.PerFrameFunctionalGroupsSequence, frames, strict=True):
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        source = sources[reference.ReferencedSOPInstanceUID]
        assert np.array_equal(pixels, expected[source.SOPInstanceUID])
        assert place_of(frame) == [float(v) for v in source.ImagePositionPatient]
        assert reference.SpatialLocationsPreserved == "YES"
        seen.append(source.SOPInstanceUID)
        orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        assert np.allclose(orientation, source.ImageOrientationPatient, atol=1e-3)
        assert shared.PixelMeasuresSequence[0].PixelSpacing == source.PixelSpacing
        assert written.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert sorted(seen) == sorted(expected)


@pytest.mark.parametrize("kind", SERIES)
def test_frames_are_the_mask_on_the_very_slices_of_the_source(tmp_path, kind):
    folder = write_series(tmp_path / "series", *SERIES[kind])
    volume = read_volume(folder)
    write_segments(tmp_path / "o.dcm", segments_of(volume, "liver"), volume)
    assert_on_sources(tmp_path / "o.dcm", sources_of(folder))


@pytest.mark.parametrize("kind", SERIES)
def test_read_back_as_a_picture_every_voxel_is_where_it_was(tmp_path, kind):
    volume = read_volume(write_series(tmp_path / "series", *SERIES[kind]))
    write_segments(tmp_path / "o.dcm", segments_of(volume, "liver"), volume)
    back = highdicom.seg.segread(tmp_path / "o.dcm").get_volume(segment_numbers=[1], combine_segments=True)
    places = back.affine[:3, :3] @ np.argwhere(back.array).T + back.affine[:3, 3:]
    indices = np.argwhere(segments_of(volume, "x")[0].mask)[:, ::-1].T
    expected = (volume.direction_matrix * volume.spacing_mm) @ indices + np.reshape(volume.origin_mm, (3, 1))
    assert places.shape == expected.shape and places.size
    order, wanted = (np.lexsort(np.round(p, 2)) for p in (places, expected))
    assert np.abs(places[:, order] - expected[:, wanted]).max() < 1e-3


UNEVEN = {
    "tilted": {"shift_mm": 0.8},
    "a slice is missing": {"without": (1,)},
    "tilted, oblique and with a slice missing": {"orientation": TILT, "shift_mm": -0.6, "without": (3,)},
}


@pytest.mark.parametrize("kind", UNEVEN)
def test_what_is_found_in_a_resampled_volume_is_written_on_the_slices_themselves(tmp_path, kind):
    folder = write_series(tmp_path / "series", **UNEVEN[kind])
    sources, volume = sources_of(folder), read_volume(folder, resample=True)
    found = Segment("liver", volume.voxels > -500, (1.0, 0.5, 0.0), {}, ALGORITHM)
    assert len(volume.voxels) != len(sources) or volume.shape[1:] != SHAPE[1:]
    write_segments(tmp_path / "o.dcm", [found], volume)
    written = pydicom.dcmread(tmp_path / "o.dcm")
    frames = written.pixel_array.reshape(-1, written.Rows, written.Columns)
    for frame, pixels in zip(written.PerFrameFunctionalGroupsSequence, frames, strict=True):
        source = sources[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert np.array_equal(pixels, 2 * source.pixel_array.astype(int) - 1000 > -500)
        assert place_of(frame) == [float(v) for v in source.ImagePositionPatient]
    assert len(frames) == len(sources)


def test_slices_whose_orientation_differs_by_rounding_are_written(tmp_path):
    folder = write_series(tmp_path / "series", *SERIES["oblique"])
    path = sorted(folder.iterdir())[2]
    slice_ = pydicom.dcmread(path)
    slice_.ImageOrientationPatient = [float(v) + 1e-5 for v in slice_.ImageOrientationPatient]
    slice_.save_as(path)
    volume = read_volume(folder)
    write_segments(tmp_path / "o.dcm", segments_of(volume, "liver"), volume)
    assert_on_sources(tmp_path / "o.dcm", sources_of(folder))


def test_a_compressed_series_is_segmented_in_place(tmp_path, shared_data):
    folder = tmp_path / "series"
    folder.mkdir()
    study, series = generate_uid(), generate_uid()  # the shared files are without any
    for path in (shared_data / "abdomen_ct" / "jpeg2000_dicom_series").iterdir():
        slice_ = pydicom.dcmread(path)
        slice_.SOPClassUID, slice_.StudyInstanceUID, slice_.SeriesInstanceUID = CTImageStorage, study, series
        slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_.file_meta.MediaStorageSOPClassUID = CTImageStorage
        slice_.save_as(folder / path.name)
    volume = read_volume(folder)
    assert volume.shape == (20, 512, 512)
    write_segments(tmp_path / "o.dcm", segments_of(volume, "liver"), volume)
    assert_on_sources(tmp_path / "o.dcm", sources_of(folder))


def test_anonymous_files_without_uids_are_refused(tmp_path, shared_data):
    volume = read_volume(next((shared_data / "abdomen_ct" / "jpeg2000_dicom_series").iterdir()))
    with pytest.raises(UserError, match=r"lacks StudyInstanceUID.* write \.seg\.nrrd instead"):
        check_format(tmp_path / "o.dcm", volume, 1, exclusive=False)


@pytest.mark.parametrize("turned", [False, True])
def test_frames_of_an_enhanced_image_are_referred_to_by_number(tmp_path, shared_data, turned):
    source = pydicom.dcmread(shared_data / "dicom" / "enhanced_mr" / "Siemens" / "XA10" / "6_1.dcm")
    stack = source.pixel_array[::-1] if turned else source.pixel_array
    if turned:
        source.PerFrameFunctionalGroupsSequence = list(source.PerFrameFunctionalGroupsSequence)[::-1]
        source.PixelData = stack.tobytes()
    source.save_as(tmp_path / "enhanced.dcm")
    volume = read_volume(tmp_path / "enhanced.dcm")
    write_segments(tmp_path / "o.dcm", segments_of(volume, "liver"), volume)
    written = pydicom.dcmread(tmp_path / "o.dcm")
    masks, seen = bright(stack), set()
    for frame, pixels in zip(written.PerFrameFunctionalGroupsSequence, written.pixel_array, strict=True):
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        number = int(reference.ReferencedFrameNumber) - 1
        assert np.array_equal(pixels, masks[number])
        assert place_of(frame) == place_of(source.PerFrameFunctionalGroupsSequence[number])
        seen.add(number)
    assert seen == {number for number, mask in enumerate(masks) if mask.any()} and len(seen) > 1


def test_a_picture_without_a_place_refers_to_its_file(tmp_path, shared_data):
    path = next((shared_data / "dicom").rglob("gdcm-CR-MONO1-10-chest.dcm"))
    (volume,) = read_frames(path)
    write_segments(tmp_path / "o.dcm", segments_of(volume, "left lung"), volume)
    written = pydicom.dcmread(tmp_path / "o.dcm")
    (frame,) = written.PerFrameFunctionalGroupsSequence
    reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
    assert reference.ReferencedSOPInstanceUID == pydicom.dcmread(path).SOPInstanceUID
    assert np.array_equal(written.pixel_array, bright(volume.voxels)[0])


def test_a_segment_says_what_it_is_what_found_it_and_whose_it_is(tmp_path, series):
    volume = read_volume(series)
    write_segments(tmp_path / "o.dcm", segments_of(volume, "the left lung", "blob"), volume)
    written, source = pydicom.dcmread(tmp_path / "o.dcm"), pydicom.dcmread(series / "03.dcm")
    lung, blob = written.SegmentSequence
    assert [lung.SegmentLabel, blob.SegmentLabel] == ["the left lung", "blob"]
    kind = lung.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("39607008", "SCT", "Lung")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert lung.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert blob.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert lung.TrackingUID != blob.TrackingUID and lung.TrackingID.startswith("the left lung ")
    identified = lung.SegmentationAlgorithmIdentificationSequence[0]
    assert lung.SegmentAlgorithmType == "AUTOMATIC"
    assert (identified.AlgorithmName, identified.AlgorithmVersion) == (ALGORITHM.name, ALGORITHM.version)
    assert identified.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"
    assert "Prompt=the left lung" in identified.AlgorithmParameters and SHA256 in identified.AlgorithmParameters
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
    assert written.SeriesInstanceUID != source.SeriesInstanceUID and written.SOPClassUID == SegmentationStorage
    assert written.SegmentationType == "BINARY" and written.SeriesNumber == 1003
    (referenced,) = written.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} == set(
        sources_of(series)
    )


def test_two_results_of_one_series_are_two_series(tmp_path, series):
    volume = read_volume(series)
    for name in "ab":
        write_segments(tmp_path / f"{name}.dcm", segments_of(volume, "liver"), volume)
    first, second = (pydicom.dcmread(tmp_path / f"{name}.dcm") for name in "ab")
    assert first.SOPInstanceUID != second.SOPInstanceUID and first.SeriesInstanceUID != second.SeriesInstanceUID
    assert first.SegmentSequence[0].TrackingUID != second.SegmentSequence[0].TrackingUID


@pytest.mark.parametrize("prompt", ["ведро\\печень " * 5, "large " * 40 + "polyp", "a\x01b"])
def test_odd_prompts_are_only_text(tmp_path, series, prompt):
    volume = read_volume(series)
    write_segments(tmp_path / "o.dcm", segments_of(volume, prompt), volume)
    (described,) = pydicom.dcmread(tmp_path / "o.dcm").SegmentSequence
    assert isinstance(described.SegmentLabel, str) and 0 < len(described.SegmentLabel) <= 64
    assert described.SegmentDescription == " ".join(prompt.replace("\\", "/").replace("\x01", " ").split())


def test_empty_segments_are_left_out_and_overlap_is_kept(tmp_path, series):
    volume = read_volume(series)
    none = Segment("polyp", np.zeros(SHAPE, bool), (1, 0, 0), algorithm=ALGORITHM)
    write_segments(tmp_path / "o.dcm", [none, *segments_of(volume, "liver", "spleen")], volume)
    written = pydicom.dcmread(tmp_path / "o.dcm")
    assert [described.SegmentLabel for described in written.SegmentSequence] == ["liver", "spleen"]
    assert written.SegmentsOverlap == "YES"
    numbers = [
        frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for frame in written.PerFrameFunctionalGroupsSequence
    ]
    assert numbers.count(1) == numbers.count(2) > 0


def test_where_nothing_was_found_the_segments_are_there_and_empty(tmp_path, series):
    volume = read_volume(series)
    none = Segment("polyp", np.zeros(SHAPE, bool), (1, 0, 0), algorithm=ALGORITHM)
    write_segments(tmp_path / "o.dcm", [none], volume)
    written = pydicom.dcmread(tmp_path / "o.dcm")
    assert written.SegmentSequence[0].SegmentLabel == "polyp" and not written.pixel_array.any()


NAMED = r"breaks DICOM's rules where .* needs it \(KeyError; not valid are AccessionNumber\)"
LACKING = {
    "an instance without a UID": ({"SOPInstanceUID": ""}, "lacks SOPInstanceUID"),
    "no frame of reference": ({"FrameOfReferenceUID": None}, "no frame of reference common to all slices"),
    "a class that DICOM does not know": ({"SOPClassUID": "1.2.3", "AccessionNumber": "A" * 20}, NAMED),
}


@pytest.mark.parametrize("case", LACKING)
@pytest.mark.filterwarnings("ignore:Invalid value")
@pytest.mark.filterwarnings("ignore:The value length")  # of the series that the test writes
def test_a_source_that_cannot_be_referred_to_is_refused_before_anything_is_computed(tmp_path, case):
    attributes, message = LACKING[case]
    volume = read_volume(write_series(tmp_path / "series", **attributes))
    for refuse in (
        lambda: check_format(tmp_path / "o.dcm", volume, 1, exclusive=False),
        lambda: write_segments(tmp_path / "o.dcm", segments_of(volume, "liver"), volume),
    ):
        with pytest.raises(UserError, match=rf"{message}.*write \.seg\.nrrd instead") as error:
            refuse()
        assert "Geheim" not in str(error.value)
    assert files(tmp_path) == set()


def test_attributes_that_may_be_empty_may_be_missing(tmp_path):
    volume = read_volume(write_series(tmp_path / "series", **NAMELESS))
    write_segments(tmp_path / "o.dcm", segments_of(volume, "liver"), volume)
    assert_on_sources(tmp_path / "o.dcm", sources_of(tmp_path / "series"))


ANONYMISED = {
    "StudyDate": "***",
    "StudyTime": "***",
    "PatientBirthDate": "********",
    "PatientBirthTime": "***",
    "PatientAge": "***",
    "PatientSex": "*",
    "PatientWeight": "***",
    "SeriesNumber": "***",
    "SeriesDate": "***",
}


@pytest.mark.filterwarnings("ignore:Invalid value")
@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.parametrize("keyword", [*ANONYMISED, "PatientSex of its own", "all"])
def test_what_stands_in_for_an_anonymised_value_is_left_out(tmp_path, keyword):
    values = ANONYMISED if keyword == "all" else {keyword: ANONYMISED.get(keyword)}
    values = {"PatientSex": "0000"} if " " in keyword else values
    folder = write_series(tmp_path / "series")
    for path in folder.iterdir():
        slice_ = pydicom.dcmread(path)
        for name, value in values.items():
            tag = pydicom.datadict.tag_for_keyword(name)
            kind = pydicom.datadict.dictionary_VR(tag)
            raw = pydicom.dataelem.RawDataElement(Tag(tag), kind, len(value), value.encode(), 0, False, True)
            slice_[tag] = raw
        slice_.save_as(path)
    volume = read_volume(folder)
    check_format(tmp_path / "o.dcm", volume, 1, exclusive=False)
    write_segments(tmp_path / "o.dcm", segments_of(volume, "liver"), volume)
    assert_on_sources(tmp_path / "o.dcm", sources_of(folder))
    written = pydicom.dcmread(tmp_path / "o.dcm")
    assert b"***" not in (tmp_path / "o.dcm").read_bytes() and written.SeriesNumber >= 1000
    assert all(not written.get(name) for name in values if name != "SeriesNumber")
    assert str(written.PatientName) == "Geheim^Jürgen"  # what is valid stays
    if shutil.which("dciodvfy"):
        found = subprocess.run(["dciodvfy", "-new", tmp_path / "o.dcm"], capture_output=True, text=True)
        assert not [line for line in found.stderr.splitlines() if line.startswith("Error")], found.stderr


def test_a_cine_is_refused(tmp_path, shared_data):
    frames = read_frames(next((shared_data / "dicom").rglob("multiframe-test1.dcm")))
    assert len(frames) == 16
    with pytest.raises(UserError, match=r"is one of 16 frames without a place each"):
        check_format(tmp_path / "o.dcm", frames[0], 1, exclusive=False)


def test_a_series_that_was_changed_meanwhile_is_refused(tmp_path, series):
    volume = read_volume(series)
    write_series(series, step_mm=5)
    with pytest.raises(UserError, match="does not lie on the slices of its files"):
        write_segments(tmp_path / "o.dcm", segments_of(volume, "liver"), volume)
    shutil.rmtree(series)
    with pytest.raises(UserError, match="are gone"):
        write_segments(tmp_path / "o.dcm", segments_of(volume, "liver"), volume)
    assert files(tmp_path) == set()


@pytest.mark.parametrize("grid", [{"origin_mm": (10, 21, 30)}, {"spacing_mm": (0.25, 0.5, 2.4)}])
def test_a_volume_on_another_grid_than_its_slices_is_refused(tmp_path, series, grid):
    volume = replace(read_volume(series), **grid)
    with pytest.raises(UserError, match="does not lie on the slices of its files"):
        check_format(tmp_path / "o.dcm", volume, 1, exclusive=False)


def test_a_missing_library_is_named_with_its_remedy(tmp_path, series, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(UserError, match=r"highdicom; run pip install .*\[dicom\]"):
        check_format(tmp_path / "o.dcm", read_volume(series), 1, exclusive=False)


def test_a_segment_must_say_what_found_it(tmp_path, series):
    volume = read_volume(series)
    with pytest.raises(UserError, match="give the segment its algorithm"):
        write_segments(tmp_path / "o.dcm", [Segment("liver", bright(volume.voxels), (1, 0, 0))], volume)


def test_a_segmentation_holds_no_probabilities(tmp_path, series):
    volume = read_volume(series)
    with pytest.raises(UserError, match="cannot hold probabilities"):
        write_probability(tmp_path / "o.dcm", np.zeros(SHAPE), volume)


@pytest.mark.parametrize(
    ("prompt", "value", "side"),
    [
        ("Liver", "10200004", None),
        ("the right kidneys", "64033007", "Right"),
        ("left ventricle", "87878005", None),
        ("grey matter", "389081007", None),
        ("tumour", "108369006", None),
    ],
)
def test_prompts_have_the_codes_of_the_standard(prompt, value, side):
    meaning = meaning_of(prompt)
    assert (meaning.type.value, meaning.type.scheme_designator) == (value, "SCT")
    assert (meaning.side.meaning if meaning.side else None) == side


@pytest.mark.parametrize("prompt", ["polyp", "left", "left polyp", ";", "liver with a large tumour"])
def test_prompts_that_no_list_knows_are_tissue(prompt):
    assert meaning_of(prompt) == GENERAL


VALID = {
    "axial": ({}, ["liver"]),
    "oblique": ({"orientation": SERIES["oblique"][0]}, ["the left lung", "blob"]),
    "a single slice": ({"without": range(1, 5)}, ["liver"]),
    "a long prompt": ({}, ["large " * 40 + "polyp"]),
    "a prompt in other letters": ({}, ["ведро\\печень " * 5]),
    "nothing found": ({"PixelData": bytes(240)}, ["liver", "polyp"]),
    "missing attributes": (NAMELESS, ["liver"]),
    "no slice thickness": ({"SliceThickness": None}, ["liver"]),
    "tilted": (UNEVEN["tilted"], ["liver"]),
    "a slice is missing": (UNEVEN["a slice is missing"], ["liver"]),
}


@WITH_DCIODVFY
@pytest.mark.parametrize("case", VALID)
def test_dciodvfy_finds_no_error(tmp_path, case):
    attributes, prompts = VALID[case]
    volume = read_volume(write_series(tmp_path / "series", **attributes), resample=True)
    assert_valid(tmp_path / "o.dcm", segments_of(volume, *prompts), volume)


@WITH_DCIODVFY
@pytest.mark.parametrize(
    "name", ["6_1.dcm", "gdcm-CR-MONO1-10-chest.dcm", "nema-us1_j2ki.dcm", "nema-vl2_j2kr.dcm"]
)
def test_dciodvfy_finds_no_error_where_the_source_is_odd(tmp_path, shared_data, name):
    (volume,) = read_frames(next((shared_data / "dicom").rglob(name)))
    grey = volume.voxels.mean(axis=-1) if volume.is_rgb else volume.voxels
    assert_valid(tmp_path / "o.dcm", segments_of(volume.with_voxels(grey), "liver"), volume)


def assert_valid(path: Path, segments: list[Segment], volume) -> None:
    write_segments(path, segments, volume)
    said = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False).stderr
    assert "Segmentation" in said and "Error" not in said, said


# the command


@pytest.fixture
def command(tiny_adapter, monkeypatch, capsys):
    def call(*arguments, adapter=tiny_adapter):
        words = ["--device", "cpu", "--adapter", adapter, "--threshold", 0.1, *arguments]
        return run_command(monkeypatch, capsys, segment.main, *words)

    return call


def test_the_command_writes_the_same_masks_as_dicom_and_as_nrrd(command, series, tmp_path):
    for name in ("o.dcm", "o.nrrd"):
        code, printed, errors = command(series, "-p", "brain", "-o", tmp_path / name, "--report", "--overwrite")
        assert code == 0, errors
    mask = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "o.nrrd"))
    written = pydicom.dcmread(tmp_path / "o.dcm")
    assert mask.any() and written.pixel_array.sum() == mask.sum()
    identified = written.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    report = json.loads((tmp_path / "o.json").read_text())
    assert identified.AlgorithmName == report["made_by"]["adapter"]["name"]
    assert report["made_by"]["adapter"]["sha256"] in identified.AlgorithmParameters
    assert "Geheim" not in (tmp_path / "o.json").read_text() + printed + errors


def test_a_folder_of_studies_gets_dicom_and_says_what_is_none(command, tmp_path):
    for name in "ab":
        write_series(tmp_path / "studies" / name)
    sitk.WriteImage(sitk.GetImageFromArray(np.eye(16, dtype=np.int16)[None]), tmp_path / "studies" / "c.nii.gz")
    (tmp_path / "out").mkdir()
    arguments = [tmp_path / "studies", "-p", "brain", "-o", tmp_path / "out", "--format", ".dcm"]
    code, _, errors = command(*arguments)
    assert code == 2 and "c.nii.gz is none; write .seg.nrrd instead" in errors and "1 of 3 studies failed" in errors
    assert files(tmp_path / "out") == {"a.dcm", "a.json", "b.dcm", "b.json", "summary.csv", "segments.csv"}
    code, printed, _ = command(*arguments, "--resume")
    assert code == 2 and printed.count("done before") == 2


def test_a_scan_that_is_no_dicom_gets_one_line_and_no_file(command, tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.eye(16, dtype=np.int16)[None]), tmp_path / "scan.nrrd")
    code, _, errors = command(tmp_path / "scan.nrrd", "-p", "brain", "-o", tmp_path / "o.dcm")
    assert code == 2 and "Traceback" not in errors
    (line,) = (part for part in errors.splitlines() if part.startswith("error: "))
    assert "refers to the slices of a DICOM series" in line and line.endswith("write .seg.nrrd instead")
    assert files(tmp_path) == {"scan.nrrd"}


def test_an_absent_structure_is_an_empty_segment(command, series, tmp_path, tiny_base):
    strict = make_adapter(tmp_path / "strict", tiny_base, presence_threshold=1.0)
    code, printed, errors = command(series, "-p", "polyp", "-o", tmp_path / "o.dcm", adapter=strict)
    assert code == 0 and "not found" in printed, errors
    assert not pydicom.dcmread(tmp_path / "o.dcm").pixel_array.any()


def test_no_file_is_replaced_unless_asked_and_no_slice_ever(command, series, tmp_path):
    arguments = [series, "-p", "brain", "-o", tmp_path / "o.dcm"]
    (tmp_path / "o.dcm").write_text("precious")
    code, _, errors = command(*arguments)
    assert code == 2 and "exists already" in errors and (tmp_path / "o.dcm").read_text() == "precious"
    assert command(*arguments, "--overwrite")[0] == 0
    before = {path: path.read_bytes() for path in series.iterdir()}
    code, _, errors = command(series, "-p", "brain", "-o", series / "03.dcm", "--overwrite")
    assert code == 2 and "is a scan to be segmented" in errors
    assert {path: path.read_bytes() for path in series.iterdir()} == before


def test_a_result_beside_its_scan_does_not_count_as_one(command, series):
    code, _, errors = command(series, "-p", "brain", "-o", series / "result.dcm")
    assert code == 0, errors
    assert read_volume(series).shape == SHAPE
