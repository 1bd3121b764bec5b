"""What can be read, and what is refused in one clear line."""

import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from conftest import write_series
from hypothesis import assume, given
from hypothesis import strategies as st

from engine.errors import UserError
from engine.imaging.dicom.series import list_series
from engine.imaging.reading import find_studies, read_frames, read_volume, unpacked_bytes
from engine.imaging.volumes.intensity import intensity_range, is_empty_air, to_unit
from engine.imaging.volumes.volume import Volume

VOXELS = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def write(path, array=VOXELS, is_vector=False):
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=is_vector), str(path))
    return path


@pytest.mark.parametrize("suffix", ["nii.gz", "nii", "nrrd", "nhdr", "mha", "mhd"])
def test_volumes_of_every_format_are_read(tmp_path, suffix):
    assert np.array_equal(read_volume(write(tmp_path / f"a.{suffix}")).voxels, VOXELS)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_pictures_of_every_format_are_read(tmp_path, suffix):
    grey = np.full((6, 8), 90, np.uint8)
    assert read_volume(write(tmp_path / f"g.{suffix}", grey)).shape == (1, 6, 8)
    colour = np.full((6, 8, 3), 90, np.uint8)
    assert read_volume(write(tmp_path / f"c.{suffix}", colour, True)).voxels.shape == (1, 6, 8, 3)


def test_transparency_is_dropped_and_deep_colours_become_8_bit(tmp_path):
    rgba = np.full((6, 8, 4), 90, np.uint8)
    assert read_volume(write(tmp_path / "a.png", rgba, True)).voxels.shape == (1, 6, 8, 3)
    deep = np.full((6, 8, 3), 257 * 90, np.uint16)
    voxels = read_volume(write(tmp_path / "b.png", deep, True)).voxels
    assert voxels.dtype == np.uint8 and (voxels == 90).all()


def test_a_4d_file_asks_which_frame(tmp_path):
    path = write(tmp_path / "a.nii.gz", np.stack([VOXELS, VOXELS + 100]).astype(np.float32))
    with pytest.raises(UserError, match=r"has 2 frames; choose one with --frame 0 … 1, or --frame all"):
        read_volume(path)
    assert read_volume(path, frame=1).voxels.min() == 100
    assert len(read_frames(path)) == 2
    with pytest.raises(UserError, match="no frame 2"):
        read_volume(path, frame=2)


@pytest.mark.parametrize(
    ("offset", "values", "message"),
    [
        (80, (0.0,), "spacing"),
        (84, (np.nan,), "spacing"),
        (280, (0.0,) * 4, "cannot be inverted"),
        (280, (np.nan,), "cannot be inverted"),
    ],
)
def test_a_nifti_header_that_would_be_silently_mended_is_refused(tmp_path, offset, values, message):
    path = write(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    struct.pack_into(f"<{len(values)}f", content, offset, *values)
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_volume(path)


@pytest.mark.parametrize(
    ("suffix", "old", "new"),
    [
        ("nrrd", b"(1,0,0)", b"(0,0,0)"),
        ("nrrd", b"(0,1,0)", b"(1,0,0)"),
        ("mha", b"ElementSpacing = 1 1 1", b"ElementSpacing = 0 1 1"),
        ("mha", b"TransformMatrix = 1 0 0 0 1 0", b"TransformMatrix = 1 0 0 1 0 0"),
    ],
)
def test_zero_spacing_and_singular_directions_are_refused(tmp_path, suffix, old, new):
    path = write(tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(UserError, match=r"spacing|cannot be inverted"):
        read_volume(path)


@pytest.mark.parametrize("suffix", ["nii.gz", "nrrd", "mha", "tif"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_counted_and_darker_than_all_others(tmp_path, bad, suffix):
    array = VOXELS.astype(np.float32)[1 if suffix == "tif" else slice(None)] - 7
    expected = array.copy()
    array[..., 1, 2:4], expected[..., 1, 2:4] = bad, array.min()
    volume = read_volume(write(tmp_path / f"a.{suffix}", array))
    assert np.array_equal(volume.voxels.squeeze(), expected)
    assert volume.no_numbers == np.isinf(array).sum() + np.isnan(array).sum() > 0
    assert f"{volume.no_numbers} voxels" in volume.warnings[0] and "NaN or infinite" in volume.warnings[0]
    valid = array[np.isfinite(array)]
    assert intensity_range(volume, "full") == (valid.min(), valid.max())
    percentiles = np.percentile(valid[valid > valid.min()], (0.5, 99.5))
    assert intensity_range(volume, "percentiles") == pytest.approx(tuple(percentiles), rel=1e-6)


@pytest.mark.parametrize("suffix", ["nii", "nrrd", "mha"])
def test_a_volume_of_nothing_but_nan_is_refused(tmp_path, suffix):
    with pytest.raises(UserError, match=rf"every voxel of a\.{suffix} is NaN or infinite"):
        read_volume(write(tmp_path / f"a.{suffix}", np.full((3, 4, 5), np.nan, np.float32)))


def test_what_is_beyond_single_precision_counts_as_infinite():
    volume = Volume(np.array([[[1.0, 2.0, 1e300, -1e300]]]))
    assert volume.no_numbers == 2 and volume.voxels.ravel().tolist() == [1, 2, 1, 1]
    assert not Volume(VOXELS).warnings


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.png", "a.dcm", "a.nii", "a.mha", "a.txt"])
def test_unreadable_and_missing_files_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="does not exist"):
        read_volume(tmp_path / name)
    (tmp_path / name).write_bytes(b"this is not an image" * 40)
    with pytest.raises(UserError, match=name):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("suffix", ["nii.gz", "nii", "nrrd", "mha", "png"])
@pytest.mark.parametrize("kept", [0.4, 0.99])
def test_a_truncated_file_is_refused(tmp_path, suffix, kept):
    noise = np.random.default_rng(0).integers(0, 255, (30, 30) if suffix == "png" else (9, 30, 30)).astype(np.uint8)
    path = write(tmp_path / f"a.{suffix}", noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UserError, match=rf"a\.{suffix}"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_file_that_unpacks_to_far_more_than_its_header_says_is_refused_on_the_way(tmp_path, suffix):
    path = tmp_path / f"bomb{suffix}"
    sitk.WriteImage(sitk.Image([64, 64, 8], sitk.sitkInt16), path, True)
    content = path.read_bytes()
    if suffix == ".nii.gz":
        path.write_bytes(gzip.compress(gzip.decompress(content) + bytes(8 << 20)))
    elif suffix == ".nrrd":
        start = content.index(b"\n\n") + 2
        path.write_bytes(content[:start] + gzip.compress(bytes(8 << 20)))
    else:
        start = content.index(b"LOCAL\n") + 6
        path.write_bytes(content[:start] + zlib.compress(bytes(8 << 20)))
    with pytest.raises(UserError, match="far more than its header says"):
        read_volume(path)


def test_the_size_of_the_voxels_is_known_from_the_header_alone(tmp_path):
    for name, image, size in (
        ("a.nii.gz", sitk.Image([64, 64, 8], sitk.sitkInt16), 64 * 64 * 8 * 2),
        ("b.png", sitk.Image([30, 20], sitk.sitkVectorUInt8, 3), 30 * 20 * 3),
        ("c.nrrd", sitk.Image([9, 8, 7, 6], sitk.sitkFloat64), 9 * 8 * 7 * 6 * 8),
    ):
        sitk.WriteImage(image, tmp_path / name, True)
        assert unpacked_bytes(tmp_path / name) == size
    (tmp_path / "d.nrrd").write_text("nothing")
    with pytest.raises(UserError, match="cannot be read"):
        unpacked_bytes(tmp_path / "d.nrrd")


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match="holds no DICOM images"):
        read_volume(tmp_path)
    with pytest.raises(UserError, match="holds no images"):
        find_studies(tmp_path)


def test_the_studies_of_a_folder_are_its_images_and_its_dicom_folders(tmp_path):
    write(tmp_path / "a.nii.gz")
    write(tmp_path / "b.seg.nrrd")
    (tmp_path / "sub").mkdir()
    write_series(tmp_path / "sub")
    write(tmp_path / ".hidden.png", np.zeros((4, 4), np.uint8))
    assert find_studies(tmp_path) == [tmp_path / "a.nii.gz", tmp_path / "sub"]


@pytest.mark.parametrize(
    "change",
    [
        {"spacing_mm": (1, 0, 1)},
        {"spacing_mm": (1, -1, 1)},
        {"direction": (1, 0, 0, 1, 0, 0, 0, 0, 1)},
        {"origin_mm": (np.nan, 0, 0)},
        {"voxels": np.zeros((3, 4))},
        {"voxels": np.zeros((0, 4, 4))},
        {"voxels": np.zeros((3, 4, 4), complex)},
    ],
)
def test_an_invalid_volume_cannot_be_built(change):
    with pytest.raises(UserError):
        Volume(**({"voxels": VOXELS} | change))


# DICOM


def test_a_series_is_sorted_by_position_and_rescaled_once(tmp_path):
    write_series(tmp_path, (4, 0, 6, 2))
    volume = read_volume(tmp_path)
    assert volume.voxels[:, 0, 0].tolist() == [-1000, -996, -992, -988]
    assert volume.spacing_mm == (0.25, 0.5, 2.0)
    assert volume.origin_mm == (10, 20, 0)
    assert (volume.modality, volume.window, volume.name) == ("CT", (40, 400), "Thorax")


def test_several_series_are_listed_and_chosen(tmp_path):
    write_series(tmp_path, (0, 1), number=2, description="Liver venous")
    first = write_series(tmp_path, number=1, description="Thorax")
    with pytest.raises(UserError, match=r"--series .*1: Thorax \(CT, 5×6, 4 files\).*2: Liver venous"):
        read_volume(tmp_path)
    write_series(tmp_path, (0, 1, 2), number=10, description="T2 axial")
    assert [series.number for series in list_series(tmp_path)] == ["1", "2", "10"]
    assert [read_volume(tmp_path, series=s).shape[0] for s in ("2", "venous", "t2", first)] == [2, 2, 3, 4]
    with pytest.raises(UserError, match="no series '9'"):
        read_volume(tmp_path, series="9")


@pytest.mark.parametrize(
    ("positions", "message"),
    [((0, 2, 6, 8), r"uneven slices: 4\.00 mm lie between"), ((0, 2, 2, 4), "two slices at 2.00 mm")],
)
def test_missing_and_doubled_slices_are_refused(tmp_path, positions, message):
    write_series(tmp_path, positions)
    with pytest.raises(UserError, match=message):
        read_volume(tmp_path)


def test_a_tilted_gantry_is_refused(tmp_path):
    write_series(tmp_path, (0, 2, 4), ImagePositionPatient=[[0, 0, 0], [0, 1, 2], [0, 2, 4]])
    with pytest.raises(UserError, match="tilted gantry"):
        read_volume(tmp_path)


def test_mixed_orientations_are_listed_and_chosen(tmp_path):
    across, along = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]
    write_series(tmp_path, (0, 2, 4), ImageOrientationPatient=[across, across, along])
    listed = r"0: axial 5×6 of 0\.25×0\.5 mm, 2 slices; 1: coronal 5×6 .*, 1 slice\); choose one with --frame 0 … 1"
    with pytest.raises(UserError, match=listed):
        read_volume(tmp_path)
    assert [read_volume(tmp_path, frame=frame).shape[0] for frame in (0, 1)] == [2, 1]


def test_no_message_and_no_name_carries_the_patients_name(tmp_path):
    write_series(tmp_path, (0, 2, 6))
    with pytest.raises(UserError) as error:
        read_volume(tmp_path)
    assert "Secret" not in str(error.value)


def test_a_single_file_is_a_volume_of_one_slice(tmp_path):
    write_series(tmp_path, (6,))
    volume = read_volume(next(tmp_path.iterdir()))
    assert volume.shape == (1, 6, 5) and volume.origin_mm == (10, 20, 6)


def test_a_compressed_series_is_read_in_place(shared_data):
    volume = read_volume(shared_data / "abdomen_ct" / "jpeg2000_dicom_series")
    assert volume.shape == (20, 512, 512) and volume.spacing_mm[2] == 2.0
    assert volume.voxels.min() >= -1024 - 1 and volume.voxels.max() > 500


def test_odd_dicom_files_are_read_or_refused_but_never_crash(shared_data):
    files = sorted((shared_data / "dicom").rglob("*.dcm"))
    read = []
    for path in files:
        try:
            read.append(read_frames(path)[0])
        except UserError as error:
            assert path.name in str(error)
    assert len(read) >= len(files) - 3
    assert all(pydicom.config is not None and volume.shape[1] > 1 for volume in read)


# Intensities


@pytest.mark.parametrize(
    ("volume", "window", "expected"),
    [
        (Volume(VOXELS), "10,20", (0, 20)),
        (Volume(VOXELS), "full", (0, 59)),
        (Volume(VOXELS), "lung", (-1350, 150)),
        (Volume(VOXELS, window=(30, 10)), "auto", (25, 35)),
        (Volume(VOXELS, window=(30, 10), modality="CT"), "auto", (-160, 240)),
        (Volume(VOXELS, window=(30, 10), modality="CT"), "file", (25, 35)),
        (Volume(VOXELS - 1000), "auto", (-160, 240)),
        (Volume(VOXELS - 1000, modality="MR"), "auto", tuple(np.percentile(np.arange(1, 60), (0.5, 99.5)) - 1000)),
        (Volume(VOXELS.astype(np.uint8), flat=True), "auto", (0, 255)),
    ],
)
def test_windows(volume, window, expected):
    assert intensity_range(volume, window) == pytest.approx(expected)


@given(st.sampled_from(["u1", "i1", "<u2", ">i2", "<i4", "<f4"]), st.integers(2, 40), st.integers(0, 1000))
def test_percentiles_are_numpys_for_every_kind_of_voxel(dtype, count, seed):
    values = np.random.default_rng(seed).integers(0, 100, (2, count, 3)).astype(dtype)
    above = values[values > values.min()]
    expected = np.percentile(above, (0.5, 99.5)) if len(above) else (0, 0)
    assume(expected[0] < expected[1])
    assert intensity_range(Volume(values), "percentiles") == pytest.approx(tuple(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ("luung", "there are auto, full"),
        ("1,2,3", "unknown"),
        ("40,0", "no positive width"),
        ("nan,1", "no positive"),
        ("file", "no window"),
    ],
)
def test_windows_that_cannot_be_are_refused(window, message):
    with pytest.raises(UserError, match=message):
        intensity_range(Volume(VOXELS), window)


def test_a_volume_of_one_value_is_refused():
    with pytest.raises(UserError, match="every voxel of volume is 7; there is nothing to segment"):
        intensity_range(Volume(np.full((2, 3, 4), 7)))


def test_intensities_are_mapped_and_clipped():
    assert to_unit(np.array([-5, 0, 5, 10, 99]), 0, 10).tolist() == [0, 0, 0.5, 1, 1]


def test_slices_that_show_one_value_in_the_window_are_air():
    stack = np.stack([np.full((3, 3), -1000), np.linspace(-1000, -900, 9).reshape(3, 3), VOXELS[0, :3, :3]])
    assert is_empty_air(stack, -160, 240).tolist() == [True, True, False]


def test_slopes_that_differ_by_slice_are_applied_to_each(tmp_path):
    for number, slope in enumerate((1, 0.01, 1000)):
        write_series(tmp_path, (2 * number,), uid="1.2.3", RescaleSlope=slope, RescaleIntercept=0)
    # every slice holds its position as voxel value: 0, 2, 4
    np.testing.assert_allclose(read_volume(tmp_path).voxels[:, 0, 0], [0, 0.02, 4000], rtol=1e-6)


def test_a_drift_that_only_the_whole_stack_shows_is_refused(tmp_path):
    positions = [[10 + 0.045 * i, 20, i] for i in range(30)]
    write_series(tmp_path, range(30), ImagePositionPatient=positions)
    with pytest.raises(UserError, match="tilted gantry"):
        read_volume(tmp_path)


def test_positions_of_two_digits_are_no_missing_slice_and_give_the_mean_distance(tmp_path):
    write_series(tmp_path, [round(i * 2 / 3, 2) for i in range(61)])
    assert read_volume(tmp_path).spacing_mm[2] == pytest.approx(2 / 3, abs=1e-3)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"PixelSpacing": None}, "spacing"),
        ({"PixelSpacing": [0.5]}, "spacing"),
        ({"ImagePositionPatient": [[1, 2]] * 4}, "position"),
        ({"ImageOrientationPatient": [[1, 0, 0]] * 4}, "orientation"),
        ({"ImageOrientationPatient": [[1, 0, 0, 0.3, 1, 0]] * 4}, "right angles"),
    ],
)
def test_a_series_without_a_valid_place_is_refused(tmp_path, attributes, message):
    write_series(tmp_path, **attributes)
    with pytest.raises(UserError, match=message):
        read_volume(tmp_path)


def test_slices_of_different_pixels_are_two_volumes(tmp_path):
    write_series(tmp_path, (0, 2), uid="1.2.3")
    write_series(tmp_path, (4, 6), uid="1.2.3", PixelSpacing=[0.5, 0.5])
    with pytest.raises(UserError, match=r"2 volumes in a series .*0\.25×0\.5 mm, 2 slices.*0\.5×0\.5 mm, 2 slices"):
        read_volume(tmp_path)


def test_a_damaged_slice_is_named_and_not_left_out(tmp_path):
    write_series(tmp_path)
    victim = sorted(tmp_path.iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:300])
    with pytest.raises(UserError, match=victim.name):
        read_volume(tmp_path)


@pytest.mark.parametrize("name", ["scan.nii.gz", "SCAN.NII.GZ", "scan.nrrd", "scan.mha"])
def test_one_flipped_bit_in_compressed_voxels_is_refused(tmp_path, name):
    voxels = np.random.default_rng(0).integers(0, 200, (8, 16, 16)).astype(np.uint8)
    written = tmp_path / name.lower()
    sitk.WriteImage(sitk.GetImageFromArray(voxels), written, useCompression=True)
    written.rename(tmp_path / name)
    assert np.array_equal(read_volume(tmp_path / name).voxels, voxels)
    content = bytearray((tmp_path / name).read_bytes())
    content[-len(content) // 4] ^= 4
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"damaged"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_half_a_picture_is_refused(tmp_path, suffix):
    picture = np.random.default_rng(0).integers(0, 200, (40, 60, 3)).astype(np.uint8)
    path = tmp_path / f"photo{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(picture, isVector=True), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged"):
        read_volume(path)


def nifti_with(tmp_path, **fields):
    """Write a NIfTI and overwrite fields of its header: each is (offset, form, values)."""
    path = tmp_path / "scan.nii"
    image = sitk.GetImageFromArray(np.arange(8 * 6 * 4, dtype=np.int16).reshape(4, 6, 8))
    image.SetSpacing((1.0, 1.0, 2.0))
    sitk.WriteImage(image, path)
    content = bytearray(path.read_bytes())
    for offset, form, values in fields.values():
        struct.pack_into(f"<{form}", content, offset, *values)
    path.write_bytes(content)
    return path


SFORM_2_MM = (280, "12f", (-2, 0, 0, 0, 0, -2, 0, 0, 0, 0, 2, 0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codes": (252, "2h", (1, 1)), "sform": SFORM_2_MM}, "in two ways"),
        ({"codes": (252, "2h", (0, 2)), "sform": SFORM_2_MM}, "in two ways"),
        ({"codes": (252, "2h", (1, 0)), "offset": (268, "f", (np.nan,))}, "no number"),
    ],
)
def test_a_nifti_that_places_its_voxels_in_two_ways_is_refused(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        read_volume(nifti_with(tmp_path, **fields))


def test_a_nifti_whose_two_forms_agree_is_read(tmp_path):
    assert read_volume(nifti_with(tmp_path)).spacing_mm == (1.0, 1.0, 2.0)
    sform = (280, "12f", (-1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 2, 0))
    assert read_volume(nifti_with(tmp_path, codes=(252, "2h", (1, 2)), sform=sform)).spacing_mm == (1.0, 1.0, 2.0)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    path = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.nii"))
    sitk.WriteImage(sitk.GetImageFromArray(np.eye(4)), tmp_path / "a.nii")
    (tmp_path / "a.nii").rename(path)
    with pytest.raises(UserError, match="no valid UTF-8 name"):
        read_volume(path)
