"""DICOM: what its files mean, how slices become volumes, and what is refused rather than distorted."""

import base64
import shutil
import tracemalloc
import zipfile
from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import files, run_command, write_series
from dicom_files import item, write_enhanced, write_image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.fileset import FileSet
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedUSVolumeStorage,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    SegmentationStorage,
    generate_uid,
)

from engine import segment
from engine.errors import UserError
from engine.imaging.dicom.files import check_deflated
from engine.imaging.dicom.resampling import on_source_slices
from engine.imaging.reading import find_studies, read_frames, read_volume

SHIPPED = Path(pydicom.data.__file__).parent
REFUSED = {  # of the images that pydicom ships
    "badVR.dcm": "damaged header",  # its number of frames is 1A
    "chrJapMulti.dcm": "cannot hold them",  # these three have no pixels
    "chrJapMultiExplicitIR6.dcm": "cannot hold them",
    "chrKoreanMulti.dcm": "cannot hold them",
    "JPEG2000-embedded-sequence-delimiter.dcm": "cannot be decoded",
    "MR_truncated.dcm": "cannot be decoded",
    "liver_1frame.dcm": "is a segmentation",
    "liver_expb_1frame.dcm": "is a segmentation",
}
# a ramp of 16 rows and 12 columns, 64 a row and 8 a column from -300 on, as a codestream of HTJ2K
HTJ2K_RAMP = (
    "/0//UQApQAAAAAAMAAAAEAAAAAAAAAAAAAAADAAAABAAAAAAAAAAAAABjwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQ"
    "kJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAHEAAf+TwAAl9AAHdAAAwAASwAATAIgBB3QAkPwCh3QAwAARwAATgBtzAEYa"
    "+QCDVADAABUQAAVQohDil+ALdQAePTz+wBjAjLYAwAAqoAAVoLZt296np6dCdwB+3/d9/AAI9hCB7LkA/9k="
)


def lookup_table(descriptor, output, **values) -> Dataset:
    table = item(**values)
    table.add_new("LUTDescriptor", "US", descriptor)
    table.add_new("LUTData", "US", output)
    return table


# What the values mean


def shipped_images():
    """Return the images that pydicom ships but for a few large ones, as (file, header)."""
    for path in sorted([*SHIPPED.glob("charset_files/*.dcm"), *SHIPPED.glob("test_files/*.dcm")]):
        if path.stat().st_size > 130_000 and path.name not in ("examples_palette.dcm", "examples_overlay.dcm"):
            continue
        header = pydicom.dcmread(path, force=True)
        if header.get("Rows") and header.get("Columns"):
            yield path, header


@pytest.mark.filterwarnings("ignore")
def test_every_image_that_pydicom_ships_is_read_as_another_reader_reads_it_or_refused():
    syntaxes, compared = Counter(), 0
    for path, header in shipped_images():
        if path.name in REFUSED:
            with pytest.raises(UserError, match=REFUSED[path.name]):
                read_frames(path)
            continue
        volumes = read_frames(path)
        voxels = np.concatenate([volume.voxels for volume in volumes])
        syntaxes[header.file_meta.TransferSyntaxUID.name.split(" (")[0]] += 1
        deep = header.get("BitsAllocated") == 32 or (voxels.ndim == 4 and header.BitsAllocated > 8)
        if (
            deep or path.name == "SC_rgb_jpeg.dcm"
        ):  # GDCM reads the former wrongly, and the latter for half a minute
            expected = header.pixel_array * float(header.get("DoseGridScaling", 1))
        else:
            expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
        if voxels.ndim == 4:
            expected = expected.astype(float) * 255 / ((1 << header.BitsStored) - 1)
        np.testing.assert_allclose(voxels.squeeze(), expected.squeeze(), atol=1 if voxels.ndim == 4 else 2e-4)
        compared += 1
    assert compared > 60
    assert set(syntaxes) >= {
        "Implicit VR Little Endian",
        "Explicit VR Big Endian",
        "Deflated Explicit VR Little Endian",
        "RLE Lossless",
        "JPEG Baseline",
        "JPEG Extended",
        "JPEG Lossless, Non-Hierarchical, First-Order Prediction",
        "JPEG-LS Lossless Image Compression",
        "JPEG-LS Lossy",
        "JPEG 2000 Image Compression",
    }


@pytest.mark.parametrize("name", ["RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "implicit", "padded"])
def test_lossless_compression_and_byte_order_change_no_value(name):
    folder = SHIPPED / "test_files"
    plain = read_volume(folder / "MR_small.dcm")
    other = read_volume(folder / f"MR_small_{name}.dcm")
    assert np.array_equal(other.voxels, plain.voxels) and plain.voxels.max() == 2145
    assert other.spacing_mm == plain.spacing_mm and other.origin_mm == plain.origin_mm


def test_htj2k_is_read(tmp_path):
    pytest.importorskip("openjpeg", reason="pylibjpeg-openjpeg is not installed")
    ramp = (np.arange(16)[:, None] * 64 + np.arange(12) * 8 - 300).astype(np.int16)
    data = encapsulate([base64.b64decode(HTJ2K_RAMP)])
    path = write_image(tmp_path / "a.dcm", ramp, HTJ2KLossless, data=data, RescaleSlope=2, RescaleIntercept=-1)
    assert np.array_equal(read_volume(path).voxels[0], ramp * 2 - 1)


def test_what_cannot_be_unpacked_says_what_to_install(tmp_path, monkeypatch):
    path = write_image(tmp_path / "a.dcm", np.zeros((16, 12), np.int16), HTJ2KLossless, data=encapsulate([b"\0\0"]))
    decoder = pydicom.pixels.get_decoder(HTJ2KLossless)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(UserError, match=r"High-Throughput JPEG 2000 .* pip install pylibjpeg pylibjpeg-openjpeg"):
        read_volume(path)


def test_monochrome1_is_turned_round_after_the_rescale_and_its_window_with_it(tmp_path):
    pixels = np.array([[0, 10], [100, 1023]], np.uint16)
    attributes = {"BitsStored": 10, "HighBit": 9, "RescaleSlope": 0.5, "RescaleIntercept": 100}
    window = {"WindowCenter": 120, "WindowWidth": 40}
    path = write_image(
        tmp_path / "a.dcm", pixels, modality="CR", PhotometricInterpretation="MONOCHROME1", **attributes, **window
    )
    volume = read_volume(path)
    rescaled = pixels * 0.5 + 100
    assert np.allclose(volume.voxels[0], (100 + 611.5) - rescaled)
    assert volume.window == (711.5 - 120, 40)
    shown = np.clip((volume.voxels[0] - (volume.window[0] - 20)) / 40, 0, 1)
    assert np.allclose(shown, 1 - np.clip((rescaled - 100) / 40, 0, 1))  # as a viewer shows it


def test_a_ct_in_monochrome1_keeps_its_hounsfield_units(tmp_path):
    write_series(tmp_path, (0, 2, 4), PhotometricInterpretation="MONOCHROME1")
    volume = read_volume(tmp_path)
    assert volume.voxels[:, 0, 0].tolist() == [-1000, -996, -992] and volume.window == (40, 400)


def test_an_overlay_in_unused_bits_and_one_beside_are_no_part_of_the_image(tmp_path):
    pixels = np.array([[5, 4095], [0, 2048]], np.uint16)
    marked = pixels | 0x8000
    path = write_image(tmp_path / "a.dcm", marked, BitsStored=12, HighBit=11)
    image = pydicom.dcmread(path)
    for element, (vr, value) in {0x10: ("US", 2), 0x11: ("US", 2), 0x3000: ("OW", b"\x0f\0")}.items():
        image.add_new((0x6000, element), vr, value)
    image.save_as(path)
    assert np.array_equal(read_volume(path).voxels[0], pixels)


def test_signed_values_of_few_bits_keep_their_sign(tmp_path):
    stored = np.array([[-2048, -1], [0, 2047]], np.int16)
    path = write_image(tmp_path / "a.dcm", stored & 0x0FFF, BitsStored=12, HighBit=11)
    assert np.array_equal(read_volume(path).voxels[0], stored)


def test_values_in_the_upper_bits_are_refused(tmp_path):
    path = write_image(tmp_path / "a.dcm", np.array([[16, 32]], np.uint16), BitsStored=12, HighBit=15)
    with pytest.raises(UserError, match=r"a\.dcm keeps its values in other than the lowest bits \(HighBit 15\)"):
        read_volume(path)


def test_a_modality_lut_is_applied_and_an_empty_one_is_not(tmp_path):
    pixels = np.array([[0, 1], [2, 3]], np.uint8)
    table = lookup_table([4, 0, 16], [100, 50, 700, 9], ModalityLUTType="HU")
    path = write_image(tmp_path / "a.dcm", pixels, ModalityLUTSequence=[table])
    assert read_volume(path).voxels[0].tolist() == [[100, 50], [700, 9]]
    path = write_image(tmp_path / "b.dcm", pixels, ModalityLUTSequence=[item(LUTExplanation="")])
    assert np.array_equal(read_volume(path).voxels[0], pixels)


def test_a_voi_lut_gives_the_window_in_which_it_rises(tmp_path):
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    output = [0] * 11 + list(range(25, 256, 25)) + [255] * 11
    table = lookup_table([len(output), 5, 8], output)
    path = write_image(tmp_path / "a.dcm", pixels, VOILUTSequence=[table])
    assert read_volume(path).window == (20.5, 11)  # from 15, the last that is black, to 26, the first that is white


@pytest.mark.parametrize("slopes", list(permutations((1, 100_000, 0.5))), ids=str)
def test_slices_of_several_kinds_of_values_become_a_volume_that_holds_them_all(tmp_path, slopes):
    uid = generate_uid()
    for position, slope in enumerate(slopes):  # int16, int32 and float32
        write_series(tmp_path, [position], uid, pixels=np.full((1, 6, 5), 3), RescaleSlope=slope)
    volume = read_volume(tmp_path)
    assert volume.voxels.dtype == np.float32
    assert volume.voxels[:, 0, 0].tolist() == [3 * slope - 1000 for slope in slopes]


def test_palette_colours_become_rgb(tmp_path):
    palette = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, values in (("Red", [0, 255, 9, 0]), ("Green", [7, 8, 255, 0]), ("Blue", [1, 2, 3, 0])):
        palette[f"{name}PaletteColorLookupTableDescriptor"] = [4, 0, 8]
        palette[f"{name}PaletteColorLookupTableData"] = bytes(values)
    path = write_image(tmp_path / "a.dcm", np.array([[0, 1], [2, 1]], np.uint8), modality="US", **palette)
    assert read_volume(path).voxels[0].tolist() == [[[0, 7, 1], [255, 8, 2]], [[9, 255, 3], [255, 8, 2]]]


def test_ybr_becomes_rgb_whatever_the_planes(tmp_path):
    red = np.broadcast_to(np.array([76, 85, 255], np.uint8), (4, 6, 3))  # in YBR
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL", "modality": "US"}
    for configuration, data in ((0, red.tobytes()), (1, np.moveaxis(red, -1, 0).tobytes())):
        path = tmp_path / f"{configuration}.dcm"
        write_image(path, np.zeros((4, 6), np.uint8), data=data, PlanarConfiguration=configuration, **colour)
        assert np.abs(read_volume(path).voxels[0].astype(int) - [254, 0, 0]).max() <= 1


def test_a_dose_is_placed_by_its_offsets_and_scaled(tmp_path):
    pixels = np.arange(4 * 6 * 5, dtype=np.uint32).reshape(4, 6, 5)
    place = {
        "ImagePositionPatient": [1, 2, 30],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [2, 3],
    }
    offsets = {"GridFrameOffsetVector": [0, 2.5, 5, 7.5], "DoseGridScaling": 0.01}
    volume = read_volume(write_image(tmp_path / "a.dcm", pixels, modality="RTDOSE", **place, **offsets))
    assert volume.spacing_mm == (3, 2, 2.5) and volume.origin_mm == (1, 2, 30)
    assert np.allclose(volume.voxels, pixels * 0.01)
    offsets["GridFrameOffsetVector"] = [7.5, 5, 2.5, 0]  # downwards
    volume = read_volume(write_image(tmp_path / "b.dcm", pixels, modality="RTDOSE", **place, **offsets))
    assert volume.origin_mm == (1, 2, 22.5) and np.allclose(volume.voxels, pixels[::-1] * 0.01)


NM = {"PixelSpacing": [4, 4], "SpacingBetweenSlices": 3, "modality": "NM"}


def test_a_reconstructed_nm_is_a_volume_and_its_projections_are_a_cine(tmp_path):
    pixels = np.stack([np.full((6, 5), number, np.uint16) for number in (2, 1, 3)])
    detector = [item(ImagePositionPatient=[1, 2, 3], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    tomo = {"ImageType": ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"], "SliceVector": [2, 1, 3]}
    volume = read_volume(
        write_image(tmp_path / "a.dcm", pixels, DetectorInformationSequence=detector, **tomo, **NM)
    )
    assert volume.voxels[:, 0, 0].tolist() == [1, 2, 3]
    assert volume.spacing_mm == (4, 4, 3) and volume.origin_mm == (1, 2, 3)
    path = write_image(tmp_path / "b.dcm", pixels, ImageType=["ORIGINAL", "PRIMARY", "TOMO", "EMISSION"], **NM)
    assert [frame.shape for frame in read_frames(path)] == [(1, 6, 5)] * 3


def test_a_gated_nm_is_a_volume_for_each_time_slot(tmp_path):
    pixels = np.stack([np.full((6, 5), number, np.uint16) for number in range(4)])
    detector = [item(ImagePositionPatient=[1, 2, 3], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    vectors = {"SliceVector": [1, 2, 1, 2], "TimeSlotVector": [1, 1, 2, 2]}
    kind = ["ORIGINAL", "PRIMARY", "RECON GATED TOMO", "EMISSION"]
    path = write_image(
        tmp_path / "a.dcm", pixels, ImageType=kind, DetectorInformationSequence=detector, **vectors, **NM
    )
    assert [frame.voxels[:, 0, 0].tolist() for frame in read_frames(path)] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("modality", ["US", "XA", "RF"])
def test_a_multi_frame_without_places_is_a_cine(tmp_path, modality):
    path = write_image(tmp_path / "a.dcm", np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5), modality=modality)
    with pytest.raises(UserError, match=r"has 3 frames; choose one with --frame 0 … 2, or --frame all"):
        read_volume(path)
    assert read_volume(path, frame=1).voxels[0, 0, 0] == 20


def test_single_pictures_of_one_series_are_listed_by_their_files(tmp_path):
    for name in "ab":
        write_image(tmp_path / f"{name}.dcm", np.full((4, 5), ord(name), np.uint8), SeriesInstanceUID="1.2.3")
    with pytest.raises(UserError, match=r"0: a\.dcm, 1 slice; 1: b\.dcm, 1 slice"):
        read_volume(tmp_path)
    assert read_volume(tmp_path, frame=1).voxels.max() == ord("b")


# How frames and slices become volumes


def test_an_enhanced_image_is_sorted_by_position_and_each_frame_rescaled(tmp_path):
    values = [item(RescaleSlope=slope, RescaleIntercept=0) for slope in (1, 2, 0.5)]
    volume = read_volume(write_enhanced(tmp_path / "a.dcm", (4, 0, 2), values))
    assert volume.voxels[:, 0, 0].tolist() == [0, 1, 4]
    assert volume.origin_mm == (10, 20, 0) and volume.spacing_mm == (0.25, 0.5, 2)


def test_enhanced_files_of_one_series_are_one_volume(tmp_path):
    write_enhanced(tmp_path / "b.dcm", (0, 2), SeriesInstanceUID="1.2.3")
    write_enhanced(tmp_path / "a.dcm", (4, 6), SeriesInstanceUID="1.2.3")
    assert read_volume(tmp_path).voxels[:, 0, 0].tolist() == [0, 2, 4, 6]


def test_an_ultrasound_volume_is_placed_by_its_own_frame(tmp_path):
    positions = (4.5, 1.5, 3.0, 0.0)
    frames = [item(PlanePositionVolumeSequence=[item(ImagePositionVolume=[-3.0, z, 2.0])]) for z in positions]
    common = item(
        PlaneOrientationVolumeSequence=[item(ImageOrientationVolume=[1, 0, 0, 0, 0, -1])],
        PixelMeasuresSequence=[item(PixelSpacing=[0.4, 0.2])],
    )
    groups = {"SharedFunctionalGroupsSequence": [common], "PerFrameFunctionalGroupsSequence": frames}
    pixels = np.stack([np.full((6, 5), 10 * z, np.uint8) for z in positions])
    path = write_image(tmp_path / "a.dcm", pixels, modality="US", **groups, SOPClassUID=EnhancedUSVolumeStorage)
    volume = read_volume(path)
    assert volume.voxels[:, 0, 0].tolist() == [0, 15, 30, 45] and volume.modality == "US"
    assert volume.spacing_mm == (0.2, 0.4, 1.5) and volume.origin_mm == (-3.0, 0.0, 2.0)
    assert np.array_equal(volume.direction_matrix, [[1, 0, 0], [0, 0, 1], [0, -1, 0]])


def test_time_points_of_an_enhanced_image_are_listed_and_chosen(tmp_path):
    times = [item(TemporalPositionIndex=number) for number in (2, 1, 2, 1)]
    path = write_enhanced(tmp_path / "a.dcm", (0, 0, 2, 2), per_frame=times)
    with pytest.raises(UserError, match=r"0: time point 1, 2 slices; 1: time point 2, 2 slices"):
        read_volume(path)
    assert read_volume(path, frame=0).voxels[:, 0, 0].tolist() == [0, 2]


def test_an_enhanced_image_that_describes_too_few_frames_is_refused(tmp_path):
    path = write_enhanced(tmp_path / "a.dcm", (0, 2, 4))
    image = pydicom.dcmread(path)
    del image.PerFrameFunctionalGroupsSequence[0]
    image.save_as(path)
    with pytest.raises(UserError, match="has 3 frames and describes 2"):
        read_volume(path)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}, "acquisition 1, 4 slices; 1: acquisition 2, 4"),
        (
            {"EchoNumbers": 1, "EchoTime": 4.6},
            {"EchoNumbers": 2, "EchoTime": 9.2},
            "echo 1, 4 slices; 1: echo 2, 4",
        ),
        ({"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}, "b-value 0.0, 4 slices; 1: b-value 1000.0, 4"),
        ({}, {"TemporalPositionIdentifier": 2}, "time point 2, 4 slices; 1: time point -, 4 slices"),
    ],
)
def test_volumes_at_one_place_are_told_apart_by_what_differs(tmp_path, first, second, words):
    write_series(tmp_path, uid="1.2.3", **first)
    write_series(tmp_path, uid="1.2.3", pixels=np.full((4, 6, 5), 500), **second)
    with pytest.raises(UserError, match=rf"2 volumes in a series \(0: {words}"):
        read_volume(tmp_path)
    assert sorted(frame.voxels.max() for frame in read_frames(tmp_path)) == [-988, 0]


def test_echoes_in_magnitude_and_phase_need_both_attributes(tmp_path):
    for number, (echo, kind) in enumerate([(1, "M"), (1, "P"), (2, "M"), (2, "P")]):
        pixels = np.full((4, 6, 5), 500 + number)
        image_type = ["ORIGINAL", "PRIMARY", kind]
        write_series(tmp_path, uid="1.2.3", pixels=pixels, EchoNumbers=echo, FrameType=image_type)
    volumes = read_frames(tmp_path)
    assert [int(volume.voxels[0, 0, 0] + 1000) // 2 for volume in volumes] == [500, 501, 502, 503]
    assert all(volume.shape == (4, 6, 5) for volume in volumes)


def test_an_attribute_that_differs_in_every_slice_tells_no_volumes_apart(tmp_path):
    for number, z in enumerate((0, 2, 2, 4)):
        write_series(tmp_path, (z,), uid="1.2.3", AcquisitionNumber=number)
    names = [path.name for path in sorted(tmp_path.iterdir()) if pydicom.dcmread(path).ImagePositionPatient[2] == 2]
    with pytest.raises(UserError, match=rf"two slices at 2.00 mm .*({'|'.join(names)}) and ({'|'.join(names)}), "):
        read_volume(tmp_path)
    with pytest.raises(UserError, match="two slices at 2"):
        read_volume(tmp_path, resample=True)


def test_two_acquisitions_with_a_gap_are_two_volumes(tmp_path):
    write_series(tmp_path, (0, 2, 4), uid="1.2.3", AcquisitionNumber=1)
    write_series(tmp_path, (50, 52, 54), uid="1.2.3", AcquisitionNumber=2)
    with pytest.raises(UserError, match=r"0: acquisition 1, 3 slices; 1: acquisition 2, 3 slices"):
        read_volume(tmp_path)


def test_the_same_file_twice_counts_once_and_two_that_differ_are_refused(tmp_path):
    write_series(tmp_path)
    first = sorted(tmp_path.iterdir())[0]
    (tmp_path / "copy").mkdir()
    copy = shutil.copy(first, tmp_path / "copy" / "again.dcm")
    assert read_volume(tmp_path).shape == (4, 6, 5)
    image = pydicom.dcmread(copy)
    image.PixelData = bytes([7]) * 60
    image.save_as(copy)
    with pytest.raises(UserError, match=rf"{first.name} and .*again\.dcm claim to be the same slice"):
        read_volume(tmp_path)


def test_a_missing_slice_is_named_with_its_neighbours_and_the_way_on(tmp_path):
    write_series(tmp_path, (0, 2, 6, 8))
    names = {float(pydicom.dcmread(p).ImagePositionPatient[2]): p.name for p in tmp_path.iterdir()}
    with pytest.raises(UserError) as error:
        read_volume(tmp_path)
    message = f"4.00 mm lie between {names[2.0]} at 2.00 mm and {names[6.0]} at 6.00 mm, and 2.00 mm elsewhere"
    assert message in str(error.value) and "--resample" in str(error.value)


def test_a_series_is_read_in_little_more_memory_than_its_voxels_take(tmp_path):
    write_series(tmp_path, range(60), pixels=np.zeros((60, 256, 256)))
    tracemalloc.start()
    try:
        volume = read_volume(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * volume.voxels.nbytes
    finally:
        tracemalloc.stop()


# Resampling

DIRECTION = np.linalg.qr(np.array([[0.9, 0.2, -0.1], [-0.1, 0.8, 0.5], [0.2, -0.3, 0.9]]))[0]
DIRECTION[:, 2] = np.cross(DIRECTION[:, 0], DIRECTION[:, 1])


def write_stack(folder, along_mm, tilt_mm, value_of, size=(36, 40)):
    """Write an oblique series whose slices lie at `along_mm` and are shifted by `tilt_mm` along the columns for
    each mm; voxels are a function of their place in the patient, LPS in mm (…, 3)."""
    rows, columns, normal = DIRECTION.T
    origins = [np.array([5, -7, 11]) + z * normal + z * tilt_mm * columns for z in along_mm]
    y, x = np.meshgrid(*map(np.arange, size), indexing="ij")
    places = [o + 0.5 * y[..., None] * columns + 0.75 * x[..., None] * rows for o in origins]
    write_series(
        folder,
        along_mm,
        pixels=np.stack([value_of(place) for place in places]),
        ImagePositionPatient=[[float(v) for v in o] for o in origins],
        ImageOrientationPatient=[[float(v) for v in (*rows, *columns)]] * len(origins),
        PixelSpacing=[0.5, 0.75],
        RescaleSlope=1,
        RescaleIntercept=0,
    )
    return np.stack(places)


def gradient(place):
    return np.rint(1000 + place @ np.array([12.0, -9.0, 7.0]))


STACKS = {
    "tilted": (range(0, 20, 2), 0.3),
    "uneven": ((0, 2, 4, 5, 6, 8, 11, 12), 0.0),
    "missing": ((0, 2, 6, 8), 0.0),
    "tilted and uneven": ((0, 2, 3, 6, 8), -0.4),
}


@pytest.mark.parametrize("stack", STACKS)
def test_a_resampled_volume_has_every_value_where_it_was_in_the_patient(tmp_path, stack):
    write_stack(tmp_path, *STACKS[stack], gradient)
    with pytest.raises(UserError, match="--resample"):
        read_volume(tmp_path)
    volume = read_volume(tmp_path, resample=True)
    assert np.allclose(volume.direction_matrix, DIRECTION) and volume.spacing_mm[:2] == (0.75, 0.5)
    zyx = np.argwhere(np.ones(volume.shape))
    places = np.array(volume.origin_mm) + (zyx[:, ::-1] * volume.spacing_mm) @ volume.direction_matrix.T
    expected = gradient(places).reshape(volume.shape)
    covered = volume.voxels > volume.voxels.min() + 1
    rim = np.abs(volume.voxels - expected) > 2  # linear interpolation keeps a gradient, but for the rim of a slice
    image = sitk.GetImageFromArray(np.pad(covered.astype(np.uint8), ((0, 0), (8, 8), (8, 8))))
    inside = sitk.GetArrayFromImage(sitk.BinaryErode(image, [4, 4, 0], sitk.sitkBox))[:, 8:-8, 8:-8] > 0
    assert inside.mean() > 0.3 and not (rim & inside).any()


@pytest.mark.parametrize("stack", STACKS)
def test_a_mask_of_a_resampled_volume_lies_on_the_source_slices_where_it_was(tmp_path, stack):
    center = np.array([5, -7, 11]) + DIRECTION @ [14.5, 8.5, 4.5]

    def ball_of(place):
        return 100 * (np.linalg.norm(place - center, axis=-1) < 4)

    places = write_stack(tmp_path, *STACKS[stack], ball_of)
    volume = read_volume(tmp_path, resample=True)
    truth = ball_of(places) > 0
    found = on_source_slices(volume.voxels > 50, volume)
    assert found.shape == truth.shape and found.dtype == bool
    overlap = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert overlap > 0.93
    probability = on_source_slices((volume.voxels / 100).astype(np.float32), volume)
    assert np.abs(probability - truth).mean() < 0.02


def test_a_regular_series_is_the_same_with_and_without_resampling(tmp_path):
    write_stack(tmp_path, range(0, 12, 2), 0.0, gradient)
    plain, resampled = read_volume(tmp_path), read_volume(tmp_path, resample=True)
    assert np.array_equal(plain.voxels, resampled.voxels) and plain.spacing_mm == resampled.spacing_mm
    mask = plain.voxels > np.median(plain.voxels)
    assert np.array_equal(on_source_slices(mask, plain), mask)


def test_one_close_pair_of_slices_does_not_make_thousands(tmp_path):
    write_stack(tmp_path, (0, 0.1, 10, 20, 30), 0.0, gradient)
    assert read_volume(tmp_path, resample=True).shape[0] <= 4 * 4 + 2


def test_the_command_resamples_on_request_only(tmp_path, monkeypatch, capsys, tiny_adapter):
    (tmp_path / "series").mkdir()
    write_stack(tmp_path / "series", range(0, 12, 2), 0.3, gradient)
    out = tmp_path / "out.seg.nrrd"
    arguments = (tmp_path / "series", "-p", "brain", "-a", tiny_adapter, "-o", out, "--device", "cpu")
    code, _, errors = run_command(monkeypatch, capsys, segment.main, *arguments)
    assert code == 2 and "tilted gantry" in errors and "--resample" in errors and not out.exists()
    code, _, errors = run_command(monkeypatch, capsys, segment.main, *arguments, "--resample")
    volume = read_volume(tmp_path / "series", resample=True)
    image = sitk.ReadImage(out)
    assert code == 0, errors
    assert image.GetSize() == volume.shape[::-1] and np.allclose(image.GetOrigin(), volume.origin_mm)


# Folders, ZIP files, DICOMDIR


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder))
    return path


def mixed(folder: Path) -> Path:
    """A folder as it comes from a hospital: two series in folders, a DICOMDIR, a result, files of other kinds."""
    (folder / "DICOM" / "S1").mkdir(parents=True)
    (folder / "DICOM" / "S2").mkdir()
    write_series(folder / "DICOM" / "S1", number=1)
    write_series(folder / "DICOM" / "S2", (0, 1), number=2, description="Liver")
    (folder / "autorun.inf").write_text("[autorun]")
    (folder / "viewer.exe").write_bytes(b"MZ" + bytes(300))
    write_image(folder / "result.dcm", np.zeros((4, 5), np.uint8), SOPClassUID=SegmentationStorage)
    directory = FileDataset(None, {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    directory.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.FileSetID, directory.DirectoryRecordSequence = "SET", []
    directory.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return folder


def test_series_are_found_among_other_files_in_folders_dicomdir_and_zip_files(tmp_path):
    folder = mixed(tmp_path / "disc")
    for path in (folder, folder / "DICOMDIR", zipped(folder, tmp_path / "disc.zip")):
        with pytest.raises(UserError, match=r"disc.* holds several series; .*1: Thorax .*2: Liver"):
            read_volume(path)
        volume = read_volume(path, series="1")
        assert all(file.exists() for file in volume.sources)
        assert volume.voxels[:, 0, 0].tolist() == [-1000, -996, -992, -988] and volume.spacing_mm == (0.25, 0.5, 2)


def test_a_dicomdir_made_by_another_writer_stands_for_its_folder(tmp_path):
    (tmp_path / "slices").mkdir(), (tmp_path / "set").mkdir()
    write_series(tmp_path / "slices", PatientID="1", StudyID="1", StudyDate="20200101", StudyTime="1200")
    file_set = FileSet()
    for number, path in enumerate(sorted((tmp_path / "slices").iterdir())):
        image = pydicom.dcmread(path)
        image.InstanceNumber = number
        file_set.add(image)
    file_set.write(tmp_path / "set")
    assert read_volume(tmp_path / "set" / "DICOMDIR").shape == (4, 6, 5)
    assert read_volume(tmp_path / "set").shape == (4, 6, 5)


def test_a_file_without_preamble_and_header_is_read(tmp_path):
    write_series(tmp_path, (6,))
    path = next(tmp_path.iterdir())
    image = pydicom.dcmread(path)
    del image.file_meta
    image.preamble = None
    with (tmp_path / "bare").open("wb") as file:
        pydicom.dcmwrite(
            file, image, implicit_vr=True, little_endian=True, enforce_file_format=False, overwrite=True
        )
    head = (tmp_path / "bare").read_bytes()
    assert head[128:132] != b"DICM"
    path.unlink()
    volume = read_volume(tmp_path / "bare")
    assert volume.voxels[0, 0, 0] == -988 and volume.origin_mm == (10, 20, 6)


def test_a_series_of_the_folder_itself_goes_before_those_below(tmp_path):
    (tmp_path / "below").mkdir()
    write_series(tmp_path, number=1)
    write_series(tmp_path / "below", (0, 1), number=2)
    assert read_volume(tmp_path).shape[0] == 4
    assert read_volume(tmp_path, series="2").shape[0] == 2
    assert find_studies(tmp_path) == [tmp_path, tmp_path / "below"]
    assert [read_volume(study).shape[0] for study in find_studies(tmp_path)] == [4, 2]


def test_a_series_spread_over_folders_is_one_study(tmp_path):
    for name, positions in (("a", (0, 2)), ("b", (4, 6))):
        (tmp_path / "study" / name).mkdir(parents=True)
        write_series(tmp_path / "study" / name, positions, uid="1.2.3")
    assert find_studies(tmp_path) == [tmp_path / "study"]
    assert read_volume(tmp_path / "study").shape[0] == 4


def test_directories_and_segmentations_are_no_studies(tmp_path):
    mixed(tmp_path)
    assert find_studies(tmp_path) == [tmp_path / "DICOM" / "S1", tmp_path / "DICOM" / "S2"]
    with pytest.raises(UserError, match=r"result\.dcm is a segmentation, not a scan"):
        read_volume(tmp_path / "result.dcm")


def test_a_damaged_segmentation_beside_a_series_is_passed_over(tmp_path):
    write_series(tmp_path)
    path = tmp_path / "result.dcm"
    write_image(path, np.zeros((4, 5), np.uint8), SOPClassUID=SegmentationStorage)
    path.write_bytes(path.read_bytes().replace(b"\x28\0\x10\0US", b"\x28\0\x10\0UL"))  # two bytes of four
    assert read_volume(tmp_path).shape[0] == 4


def test_zip_files_are_studies_of_a_folder(tmp_path, monkeypatch, capsys, tiny_adapter):
    (tmp_path / "series").mkdir(), (tmp_path / "in").mkdir(), (tmp_path / "out").mkdir()
    write_series(tmp_path / "series", pixels=np.random.default_rng(0).integers(0, 900, (4, 20, 24)))
    zipped(tmp_path / "series", tmp_path / "in" / "anna.zip")
    arguments = (tmp_path / "in", "-p", "brain", "-a", tiny_adapter, "-o", tmp_path / "out", "--device", "cpu")
    code, _, errors = run_command(monkeypatch, capsys, segment.main, *arguments)
    assert code == 0, errors
    assert files(tmp_path / "out") == {"anna.seg.nrrd", "anna.json", "summary.csv", "segments.csv"}


def entry(name="a.dcm", kind=0o100644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = kind << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([(entry("../../escaped.dcm"), b"x")], "leads out of its folder"),
        ([(entry("/escaped.dcm"), b"x")], "absolute path"),
        ([(entry("c:\\escaped.dcm"), b"x")], "absolute path"),
        ([(entry("a.dcm", 0o120777), b"/etc/passwd")], "is a link"),
        ([(entry("bomb.dcm"), bytes(1 << 24)), (entry("b.dcm"), b"")], "holds no DICOM images"),
        ([(entry("twice.dcm"), b"x"), (entry("twice.dcm"), b"y")], "cannot be unpacked"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_file_that_is_not_safe_is_refused_and_nothing_of_it_is_left(tmp_path, monkeypatch, entries, message):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for info, content in entries:
            archive.writestr(info, content)
    with pytest.raises(UserError, match=rf"a\.zip.*{message}"):
        read_volume(tmp_path / "a.zip")
    assert not list((tmp_path / "tmp").iterdir()) and not list(tmp_path.rglob("escaped*"))


def test_a_zip_file_that_declares_more_than_it_can_hold_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(1 << 20))
    content = bytearray(path.read_bytes())
    size = (1 << 20).to_bytes(4, "little")
    at = content.rindex(size)
    content[at : at + 4] = (0xF0000000).to_bytes(4, "little")
    path.write_bytes(content)
    monkeypatch.setattr("engine.imaging.dicom.archive.shutil.copyfileobj", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(UserError, match=r"bytes unpack to 4,026,531,840; it is refused"):
        read_volume(path)


def test_a_zip_file_with_a_flipped_bit_is_refused(tmp_path):
    (tmp_path / "series").mkdir()
    write_series(tmp_path / "series", pixels=np.random.default_rng(0).integers(0, 900, (4, 20, 24)))
    path = zipped(tmp_path / "series", tmp_path / "a.zip")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 8
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip"):
        read_volume(path)


# Declared sizes


@pytest.mark.parametrize(
    "change",
    [{"Rows": 60000, "Columns": 60000}, {"NumberOfFrames": 100_000_000}, {"BitsAllocated": 64, "Rows": 30}],
)
def test_a_header_that_declares_more_than_the_file_holds_is_refused_before_memory_is_taken(tmp_path, change):
    path = write_image(tmp_path / "a.dcm", np.zeros((16, 12), np.uint16), **change)
    with pytest.raises(UserError, match=r"a\.dcm declares [\d,]+ bytes of voxels"):
        read_volume(path)


def test_a_small_compressed_file_may_not_declare_gigabytes(tmp_path):
    data = encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    path = write_image(
        tmp_path / "a.dcm", np.zeros((9, 9), np.uint16), JPEG2000Lossless, data=data, Rows=50000, Columns=50000
    )
    with pytest.raises(UserError, match=r"declares 5,000,000,000 bytes of voxels"):
        read_volume(path)


def test_a_deflated_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.imaging.dicom.files.LARGEST_DEFLATED_BYTES", 1 << 22)
    path = write_image(tmp_path / "a.dcm", np.zeros((4096, 1024), np.uint16), DeflatedExplicitVRLittleEndian)
    assert path.stat().st_size < 20_000
    with pytest.raises(UserError, match=r"a\.dcm unpacks to more than 4,194,304 bytes"):
        check_deflated(path)
    with pytest.raises(UserError, match=r"a\.dcm"):
        read_volume(path)


@pytest.mark.parametrize("frames", ["-3", "x"])
def test_a_number_of_frames_that_is_none_is_refused(tmp_path, frames):
    path = write_image(tmp_path / "a.dcm", np.zeros((16, 12), np.uint16))
    image = pydicom.dcmread(path)
    image.NumberOfFrames = 7
    image.save_as(path)
    content = path.read_bytes()
    tag = b"\x28\x00\x08\x00IS\x02\x00"
    assert content.count(tag) == 1
    path.write_bytes(content.replace(tag + b"7 ", tag + frames.ljust(2).encode()))
    with pytest.raises(UserError, match=r"a\.dcm"):
        read_frames(path)
