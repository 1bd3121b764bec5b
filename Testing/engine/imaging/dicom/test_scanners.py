"""DICOM as scanners and archives write it: private groups, several dimensions, series of more than slices."""

import gzip
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import files, run_command, write_series
from dicom_files import item, write_enhanced, write_image
from pydicom.sequence import Sequence
from pydicom.uid import (
    EncapsulatedPDFStorage,
    MRSpectroscopyStorage,
    RawDataStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from engine import segment
from engine.errors import UserError
from engine.imaging.dicom.series import list_series, titles
from engine.imaging.reading import find_studies, read_frames, read_volume

# Functional groups: only the standard's, wherever they stand among the others


@pytest.mark.parametrize("group", [0x0009, 0x0021, 0x2005, 0x7FDF])
def test_a_private_group_that_repeats_a_place_moves_no_frame(tmp_path, group):
    path = write_enhanced(tmp_path / "a.dcm", (4, 0, 2), [item(RescaleSlope=2, RescaleIntercept=0)] * 3)
    image = pydicom.dcmread(path)
    for number, frame in enumerate(image.PerFrameFunctionalGroupsSequence):
        z = float(frame.PlanePositionSequence[0].ImagePositionPatient[2])
        other = item(ImagePositionPatient=[8, 18, z + 1], PixelSpacing=[9, 9], RescaleSlope=7, StackID=str(number))
        block = frame.private_block(group, "Philips MR Imaging DD 005", create=True)
        block.add_new(0x0F, "SQ", Sequence([other]))
    image.save_as(path)
    volume = read_volume(path)
    assert volume.origin_mm == (10, 20, 0) and volume.spacing_mm == (0.25, 0.5, 2)
    assert volume.voxels[:, 0, 0].tolist() == [0, 4, 8]


def test_a_group_of_the_standard_that_is_about_something_else_changes_no_frame(tmp_path):
    path = write_enhanced(tmp_path / "a.dcm", (0, 2, 4))
    image = pydicom.dcmread(path)
    for frame in image.PerFrameFunctionalGroupsSequence:
        frame.RealWorldValueMappingSequence = [item(RescaleSlope=5, ImagePositionPatient=[0, 0, 0])]
        frame.ReferencedImageSequence = [item(SOPClassUID=RawDataStorage, ImagePositionPatient=[1, 1, 1])]
    image.save_as(path)
    volume = read_volume(path)
    assert volume.origin_mm == (10, 20, 0) and volume.voxels[:, 0, 0].tolist() == [0, 2, 4]


def test_frames_of_a_scanner_lie_where_the_standard_places_them(shared_data):
    path = shared_data / "dicom" / "enhanced_mr" / "Philips" / "IM_0027_fMAP.dcm"
    header = pydicom.dcmread(path)
    frames = header.PerFrameFunctionalGroupsSequence
    places = [[float(v) for v in frame.PlanePositionSequence[0].ImagePositionPatient] for frame in frames]
    private = [[float(v) for v in frame[0x2005, 0x140F][0].ImagePositionPatient] for frame in frames]
    assert np.linalg.norm(np.subtract(places[0], private[0])) > 2  # half a pixel in two directions
    magnitude, _ = read_frames(path)
    index = int(np.argmin(np.linalg.norm(np.subtract(places, magnitude.origin_mm), axis=1)))
    assert np.allclose(magnitude.origin_mm, places[index])
    slope = float(frames[index].PixelValueTransformationSequence[0].RescaleSlope)
    assert np.allclose(magnitude.voxels[0], header.pixel_array[index] * slope)


def test_an_enhanced_image_of_a_scanner_is_read_as_nibabel_reads_it(tmp_path):
    wrappers = pytest.importorskip("nibabel.nicom.dicomwrappers")
    packed = Path(wrappers.__file__).parent / "tests" / "data" / "philips_mprage.dcm.gz"
    if not packed.exists():
        pytest.skip("this nibabel comes without its test data")
    path = tmp_path / "a.dcm"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    affine, volume = wrappers.wrapper_from_file(path).affine, read_volume(path)
    header = pydicom.dcmread(path, stop_before_pixels=True)
    count = int(header.NumberOfFrames)
    theirs = [affine @ [y, x, z, 1] for z in (0, count - 1) for y in (0, 255) for x in (0, 255)]
    ours = [
        np.add(volume.origin_mm, (volume.direction_matrix * volume.spacing_mm) @ [x, y, z])
        for z in (count - 1, 0)  # nibabel begins at the other end
        for y in (0, 255)
        for x in (0, 255)
    ]
    assert volume.shape == (count, 256, 256)
    assert np.allclose([place[:3] for place in theirs], ours, atol=0.01)


# Several volumes in one series


def described(*pointers, labels=()) -> list:
    """Return a DimensionIndexSequence."""
    dimensions = [item(DimensionIndexPointer=pydicom.datadict.tag_for_keyword(p)) for p in pointers]
    for dimension, label in zip(dimensions, labels, strict=False):
        dimension.DimensionDescriptionLabel = label
    return dimensions


def write_diffusion(path, gradients=((1, 0, 0), (0, 1, 0), (0, 0, 1)), **attributes):
    """Write three slices a gradient; voxels are 100 times the gradient's number plus the slice's."""
    frames, groups, planes = [(z, g) for z in range(3) for g in range(len(gradients))], [], []
    for z, g in frames:
        content = item(StackID="1", InStackPositionNumber=z + 1, DimensionIndexValues=[1, z + 1, g + 1])
        way = item(DiffusionGradientOrientation=[float(v) for v in gradients[g]])
        diffusion = item(DiffusionBValue=1000.0, DiffusionGradientDirectionSequence=[way])
        groups.append(
            item(
                PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 2 * z])],
                FrameContentSequence=[content],
                MRDiffusionSequence=[diffusion],
            )
        )
        planes.append(np.full((6, 5), 100 * g + z, np.uint16))
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[2, 2], SliceThickness=2)],
    )
    both = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": groups}
    return write_image(path, np.stack(planes), modality="MR", **both, **attributes)


def assert_volumes(volumes, count: int) -> None:
    assert [volume.voxels[:, 0, 0].tolist() for volume in volumes] == [
        [100 * g + z for z in range(3)] for g in range(count)
    ]


@pytest.mark.parametrize("with_sequence", [True, False])
def test_each_gradient_of_an_enhanced_image_is_a_volume(tmp_path, with_sequence):
    more = described("StackID", "InStackPositionNumber", "DiffusionGradientOrientation") if with_sequence else []
    path = write_diffusion(tmp_path / "a.dcm", **({"DimensionIndexSequence": more} if more else {}))
    with pytest.raises(
        UserError, match=r"3 volumes .*0: gradient 1\.0/0\.0/0\.0, 3 slices; 1: gradient 0\.0/1\.0/0"
    ):
        read_volume(path)
    assert_volumes(read_frames(path), 3)


def test_what_only_the_dimensions_tell_apart_is_named_by_them(tmp_path):
    labels = ("Stack ID", "Position", "Private Label")
    pointers = described("StackID", "InStackPositionNumber", "DiffusionGradientOrientation", labels=labels)
    alike = ((1, 0, 0),) * 3  # which no attribute that is known here tells apart
    path = write_diffusion(tmp_path / "a.dcm", alike, DimensionIndexSequence=pointers)
    with pytest.raises(UserError, match=r"0: private label \(3\) 1, 3 slices; 1: private label \(3\) 2, 3 slices"):
        read_volume(path)
    assert_volumes(read_frames(path), 3)


def test_dimensions_come_before_an_attribute_that_would_mix_volumes(tmp_path):
    """Two kinds at two times: the times alone would make two volumes of slices of both kinds."""
    indices = [(1, z, kind, time) for z in (1, 2) for kind in (1, 2) for time in (1, 2)]
    contents = [item(DimensionIndexValues=list(index), TemporalPositionIndex=index[3]) for index in indices]
    path = write_enhanced(tmp_path / "a.dcm", [2 * index[1] for index in indices], per_frame=contents)
    image = pydicom.dcmread(path)
    values = [100 * index[2] + 10 * index[3] + index[1] for index in indices]
    image.PixelData = np.stack([np.full((6, 5), value, np.int16) for value in values]).tobytes()
    image.save_as(path)
    volumes = [volume.voxels[:, 0, 0].tolist() for volume in read_frames(path)]
    assert volumes == [[111, 112], [121, 122], [211, 212], [221, 222]]


def test_enhanced_files_at_the_same_places_are_volumes_of_their_own(tmp_path):
    for name in "ab":
        write_enhanced(tmp_path / f"{name}.dcm", (0, 2, 4), SeriesInstanceUID="1.2.3")
    with pytest.raises(
        UserError, match=r"2 volumes in a series \(0: file a\.dcm, 3 slices; 1: file b\.dcm, 3 slices"
    ):
        read_volume(tmp_path)


def write_numbered(folder, numbers, **attributes):
    """Write slices of (image number, place in mm); their voxels are their number."""
    for number, z in numbers:
        pixels = np.full((1, 6, 5), number)
        more = {"InstanceNumber": number, "RescaleSlope": 1, "RescaleIntercept": 0, **attributes}
        write_series(folder, (z,), "1.2.3", pixels=pixels, **more)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([(t, z) for t in range(3) for z in range(4)], [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]),
        ([(t, z) for z in range(4) for t in range(3)], [[1, 4, 7, 10], [2, 5, 8, 11], [3, 6, 9, 12]]),
        ([(t, z) for t in range(3) for z in (2, 0, 3, 1)], [[2, 4, 1, 3], [6, 8, 5, 7], [10, 12, 9, 11]]),
    ],
)
def test_volumes_that_differ_in_their_image_numbers_alone_are_counted_off(tmp_path, order, expected):
    write_numbered(tmp_path, [(number, 2 * z) for number, (_, z) in enumerate(order, start=1)])
    with pytest.raises(
        UserError, match=r"3 volumes in a series \(0: volume 1 by image numbers, 4 slices; 1: volume 2"
    ):
        read_volume(tmp_path)
    assert [volume.voxels[:, 0, 0].tolist() for volume in read_frames(tmp_path)] == expected


def test_frames_that_nothing_tells_apart_are_counted_off(tmp_path):
    path = write_enhanced(tmp_path / "a.dcm", (0, 2, 4, 0, 2, 4))
    image = pydicom.dcmread(path)
    image.PixelData = np.stack([np.full((6, 5), number, np.int16) for number in range(6)]).tobytes()
    image.save_as(path)
    assert [volume.voxels[:, 0, 0].tolist() for volume in read_frames(path)] == [[0, 1, 2], [3, 4, 5]]


def test_times_that_pair_slices_do_not_keep_volumes_from_being_counted_off(tmp_path):
    for number in range(1, 13):  # two slices are taken at once, at any of six times
        z, pair = (number - 1) % 4, (number - 1) // 4 * 2 + (number - 1) % 2
        write_numbered(tmp_path, [(number, 2 * z)], AcquisitionTime=f"12000{pair}")
    assert [volume.shape[0] for volume in read_frames(tmp_path)] == [4, 4, 4]


UPWARDS, DOWNWARDS = [(n, 2 * n) for n in range(4)], [(n, 6 - 2 * n) for n in range(4)]


@pytest.mark.parametrize(
    "numbers",
    [
        [(n, 2 * ((n - 1) % 4)) for n in range(1, 12)],
        [*UPWARDS, *DOWNWARDS],  # two scans with the same numbers
        [(n, z) for n, z in enumerate((0, 0, 2, 4, 2, 6, 4, 6, 0, 6, 2, 4))],
    ],
    ids=["a slice is missing", "numbers come twice", "no order"],
)
def test_image_numbers_that_count_off_no_volumes_are_not_trusted(tmp_path, numbers):
    for index, (number, z) in enumerate(numbers):
        write_numbered(tmp_path, [(number, z)], WindowCenter=index)  # so that no two are the same file
    with pytest.raises(
        UserError, match=r"two slices at .* nor do their image numbers; put each volume into a folder"
    ):
        read_volume(tmp_path)


# What is no image, and pictures without a place


def no_image(path, uid, **attributes):
    image = pydicom.dcmread(write_image(path, np.zeros((1, 1), np.uint8), SOPClassUID=uid, **attributes))
    del image.PixelData
    image.save_as(path)
    return path


@pytest.mark.parametrize(
    ("uid", "without"),
    [
        (MRSpectroscopyStorage, ("BitsAllocated", "BitsStored", "HighBit")),
        (RawDataStorage, ()),
        (EncapsulatedPDFStorage, ()),
        ("1.2.840.10008.5.1.4.1.1.66.7", ()),  # a segmentation that the library does not know yet
        ("1.3.12.2.1107.5.9.1", ("BitsAllocated",)),  # a maker's own
    ],
)
def test_objects_without_an_image_beside_a_scan_are_set_aside(tmp_path, uid, without):
    write_series(tmp_path)
    (tmp_path / "beside").mkdir()
    for folder in (tmp_path, tmp_path / "beside"):
        path = no_image(folder / "object.dcm", uid)
        image = pydicom.dcmread(path)
        for keyword in without:
            delattr(image, keyword)
        image.save_as(path)
    assert read_volume(tmp_path).shape == (4, 6, 5)
    if not uid.startswith("1.3"):
        assert find_studies(tmp_path) == [tmp_path]
    with pytest.raises(UserError, match=r"object\.dcm"):
        read_volume(tmp_path / "object.dcm")


def test_an_object_without_an_image_is_called_by_its_name(tmp_path):
    path = no_image(tmp_path / "a.dcm", MRSpectroscopyStorage)
    with pytest.raises(
        UserError, match=r"a\.dcm is a DICOM object without an image \(MR Spectroscopy\), not a scan"
    ):
        read_volume(path)


def test_a_scan_that_lost_its_bits_is_still_refused(tmp_path):
    write_series(tmp_path)
    path = sorted(tmp_path.iterdir())[0]
    image = pydicom.dcmread(path)
    del image.BitsAllocated
    image.save_as(path)
    with pytest.raises(UserError, match=f"{path.name} declares values of 0 bits; it is damaged"):
        read_volume(tmp_path)


def test_a_screenshot_within_a_series_is_set_aside(tmp_path):
    uid = write_series(tmp_path)
    shot = {"SOPClassUID": SecondaryCaptureImageStorage, "SeriesInstanceUID": uid, "SamplesPerPixel": 3}
    colours = {"PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    write_image(tmp_path / "shot.dcm", np.zeros((7, 9), np.uint8), data=bytes(7 * 9 * 3), **shot, **colours)
    for frame in (None, 0):
        volume = read_volume(tmp_path, frame=frame)
        assert volume.shape == (4, 6, 5) and not any("shot" in path.name for path in volume.sources)
    assert read_volume(tmp_path / "shot.dcm").is_rgb


def test_a_picture_that_may_be_a_slice_is_listed_and_not_left_out(tmp_path):
    uid = write_series(tmp_path)
    write_image(tmp_path / "page.dcm", np.full((6, 5), 7, np.int16), "1.2.840.10008.1.2.1", SeriesInstanceUID=uid)
    with pytest.raises(UserError, match=r"\(0: slices with a place, 4 slices; 1: page\.dcm, 1 slice\)"):
        read_volume(tmp_path)
    assert read_volume(tmp_path, frame=0).shape == (4, 6, 5) and read_volume(tmp_path, frame=1).voxels.max() == 7


def test_a_slice_that_says_half_of_where_it_lies_is_still_refused(tmp_path):
    write_series(tmp_path)
    path = sorted(tmp_path.iterdir())[1]
    image = pydicom.dcmread(path)
    del image.ImageOrientationPatient
    image.save_as(path)
    with pytest.raises(UserError, match=rf"{path.name} is a slice without a valid orientation"):
        read_volume(tmp_path)


# Series that share number and description


def patients(folder: Path, *facts) -> Path:
    folder.mkdir(exist_ok=True)
    for number, fact in enumerate(facts):
        pixels = np.random.default_rng(number).integers(0, 900, (4, 20, 24))
        write_series(folder, number=2, description="thorax", pixels=pixels, PatientID=f"p{number}", **fact)
    return folder


def test_the_list_of_series_says_what_tells_them_apart(tmp_path):
    patients(tmp_path, {"SeriesTime": "101500", "ConvolutionKernel": "B30f"}, {"SeriesTime": "101500"})
    write_series(tmp_path, (0, 1), number=3, description="Liver")
    found = list_series(tmp_path)
    said = titles(found)
    kernels = {series.uid: series.details.get("kernel", "-") for series in found}
    for series, title in zip(found, said, strict=True):
        if series.number == "2":
            assert title.startswith(f"2: thorax (CT, 24×20, 4 files), kernel {kernels[series.uid]}, UID …")
            assert "101500" not in title  # which they share
            end = title.rpartition("…")[2]
            assert len(end) >= 6 and [s.uid for s in found if s.uid.endswith(end)] == [series.uid]
            for wanted in (end, f"…{end}", series.uid):
                assert read_volume(tmp_path, series=wanted).sources[0] in series.files
        else:
            assert title == "3: Liver (CT, 5×6, 2 files)"
    assert not any(word in title for title in said for word in ("Secret", "p0", "p1"))


def test_each_series_of_a_folder_is_a_study(tmp_path, monkeypatch, capsys, tiny_adapter):
    folder = patients(tmp_path / "in", {}, {})
    write_series(
        folder,
        number=7,
        description="head",
        pixels=np.random.default_rng(9).integers(0, 900, (3, 20, 24)),
        positions=(0, 2, 9),
    )
    (tmp_path / "out").mkdir()
    arguments = (
        folder,
        "-p",
        "brain",
        "-a",
        tiny_adapter,
        "-o",
        tmp_path / "out",
        "--device",
        "cpu",
        "--each-series",
    )
    code, _, errors = run_command(monkeypatch, capsys, segment.main, *arguments)
    assert code == 2 and "1 of 3 studies failed" in errors and "uneven slices" in errors
    found = list_series(folder)
    ends = [series.uid[-6:] for series in found if series.number == "2"]
    names = {f"in_2_{end}{suffix}" for end in ends for suffix in (".seg.nrrd", ".json")}
    assert files(tmp_path / "out") == {"summary.csv", "segments.csv", *names}
    summary = (tmp_path / "out" / "summary.csv").read_text()
    assert "in_7,failed" in summary and summary.count(",done,") == 2
    code, printed, _ = run_command(monkeypatch, capsys, segment.main, *arguments, "--resume")
    assert code == 2 and printed.count("done before") == 2


def test_each_series_needs_a_folder_and_no_choice_of_one(tmp_path, monkeypatch, capsys):
    patients(tmp_path / "in", {}, {})
    for more in (("-o", tmp_path / "o.seg.nrrd"), ("-o", tmp_path, "--series", "2")):
        arguments = (tmp_path / "in", "-p", "brain", "--each-series", *more)
        code, _, errors = run_command(monkeypatch, capsys, segment.main, *arguments)
        assert code == 2 and "--each-series writes into an output folder" in errors


def test_a_uid_that_is_chosen_is_found_in_a_changed_folder(tmp_path):
    first = write_series(tmp_path, number=1)
    assert read_volume(tmp_path, series=first).shape[0] == 4
    second = write_series(tmp_path, (0, 1), number=2, description="Liver", uid=generate_uid())
    assert read_volume(tmp_path, series=second).shape[0] == 2
    (tmp_path / "lost.dcm").write_bytes(bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00")
    with pytest.raises(UserError, match=r"lost\.dcm is damaged, and may be a slice of the series"):
        read_volume(tmp_path, series=second)
