"""Geometry is sacred: what comes out lies exactly on what went in."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ball
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import UserError
from engine.imaging.images import image_from_volume
from engine.imaging.reading import read_volume
from engine.imaging.volumes.planes import PLANES, orient, resolve_planes, slice_spacing_mm
from engine.imaging.volumes.segments import Segment
from engine.imaging.volumes.volume import Volume
from engine.imaging.writing import write_probability, write_segments

IDENTITY = np.eye(3)
OBLIQUE = np.array([[0.925, -0.163, 0.343], [0.319, 0.823, -0.470], [-0.206, 0.544, 0.813]])
U, _, V = np.linalg.svd(OBLIQUE)
OBLIQUE = U @ V  # orthonormal to the last bit that floats allow
GRIDS = {
    "lps": IDENTITY,
    "ras": np.diag([-1.0, -1.0, 1.0]),
    "flipped slices": np.diag([1.0, 1.0, -1.0]),
    "coronal order": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "sagittal order": np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]),
    "oblique": OBLIQUE,
    "oblique and flipped": OBLIQUE @ np.diag([1.0, -1.0, -1.0]),
}
SHAPE = (9, 14, 11)


def volume_on(direction: np.ndarray, shape=SHAPE, spacing=(0.7, 1.1, 3.25), rgb=False) -> Volume:
    voxels = np.random.default_rng(0).integers(0, 255, (*shape, 3) if rgb else shape).astype(np.uint8)
    return Volume(voxels, spacing, (-41.5, 25.25, 310.125), tuple(direction.ravel()))


def place_mm(volume: Volume, mask: np.ndarray) -> np.ndarray:
    """Return the mean place of a mask in LPS, from the definition of the grid alone."""
    xyz = np.argwhere(mask)[:, ::-1].mean(axis=0)
    return volume.direction_matrix @ (xyz * volume.spacing_mm) + volume.origin_mm


@pytest.mark.parametrize("suffix", [".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("rgb", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_written_mask_lies_where_it_was_in_the_volume(tmp_path, grid, rgb, suffix):
    volume = volume_on(GRIDS[grid], rgb=rgb)
    mask = ball(SHAPE, (2, 9, 3), 1.5)
    write_segments(tmp_path / f"out{suffix}", [Segment("ball", mask, (1, 0, 0))], volume)
    image = sitk.ReadImage(tmp_path / f"out{suffix}")
    assert image.GetSize() == SHAPE[::-1]
    found = sitk.LabelShapeStatisticsImageFilter()
    found.Execute(sitk.Cast(image, sitk.sitkUInt8))
    tolerance = 1e-4 if "nii" in suffix else 1e-12
    np.testing.assert_allclose(found.GetCentroid(1), place_mm(volume, mask), atol=max(tolerance, 1e-9))
    np.testing.assert_allclose(image.GetDirection(), volume.direction, atol=max(tolerance / 10, 1e-12))
    np.testing.assert_allclose(image.GetSpacing(), volume.spacing_mm, rtol=1e-6 if "nii" in suffix else 1e-14)
    np.testing.assert_allclose(image.GetOrigin(), volume.origin_mm, atol=tolerance)
    assert np.array_equal(sitk.GetArrayFromImage(image) > 0, mask)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("grid", GRIDS)
def test_reading_and_writing_back_changes_nothing(tmp_path, grid, suffix):
    sitk.WriteImage(image_from_volume(volume_on(GRIDS[grid])), tmp_path / f"in{suffix}")
    volume = read_volume(tmp_path / f"in{suffix}")
    write_probability(tmp_path / f"out{suffix}", np.zeros(volume.shape), volume)
    back = read_volume(tmp_path / f"out{suffix}")
    assert (back.shape, back.origin_mm) == (volume.shape, volume.origin_mm)
    np.testing.assert_allclose(back.spacing_mm, volume.spacing_mm, rtol=1e-14)  # NRRD keeps spacing · direction
    np.testing.assert_allclose(back.direction, volume.direction, atol=1e-7)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("grid", GRIDS)
def test_slices_show_the_patient_the_same_way_on_every_grid(grid, plane):
    """A mark in the patient's left, posterior, superior corner shows in the same corner of every slice stack."""
    volume = volume_on(GRIDS[grid])
    corners = np.argwhere(np.ones((2, 2, 2))) * (np.array(SHAPE) - 1)
    places = [place_mm(volume, _single(tuple(c))) for c in corners]
    corner = corners[int(np.argmax([place.sum() for place in places]))]
    stack = orient(_single(tuple(corner)), volume, plane)
    seen = tuple(int(i > 0) for i in np.argwhere(stack)[0])
    assert seen == {"axial": (1, 1, 1), "coronal": (1, 0, 1), "sagittal": (1, 0, 1)}[plane]


def _single(index) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[index] = True
    return mask


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 6)] * 3), st.booleans(), st.sampled_from(PLANES))
def test_what_is_written_into_a_stack_of_slices_comes_to_lie_in_the_volume(seed, shape, rgb, plane):
    random = np.random.default_rng(seed)
    direction = np.linalg.qr(random.normal(size=(3, 3)))[0]
    volume = volume_on(direction, shape, tuple(random.uniform(0.3, 5, 3)), rgb)
    stack = orient(volume.voxels, volume, plane)
    written = np.zeros_like(volume.voxels)
    orient(written, volume, plane)[...] = stack
    assert np.array_equal(written, volume.voxels)


def test_a_picture_is_shown_as_it_is():
    picture = Volume(np.arange(12, dtype=np.uint8).reshape(1, 3, 4), flat=True)
    assert resolve_planes(picture, "auto") == ("axial",)
    assert np.array_equal(orient(picture.voxels, picture, "axial"), picture.voxels)


@pytest.mark.parametrize(
    ("shape", "spacing", "direction", "plane"),
    [
        ((9, 9, 9), (1, 1, 1), IDENTITY, "axial"),
        ((9, 9, 9), (1, 1, 3), IDENTITY, "axial"),
        ((9, 9, 9), (1, 3, 1), IDENTITY, "coronal"),
        ((9, 9, 9), (3, 1, 1), IDENTITY, "sagittal"),
        ((9, 9, 9), (1, 1, 3), GRIDS["coronal order"], "coronal"),
        ((9, 9, 9), (1, 1, 3), GRIDS["sagittal order"], "sagittal"),
        ((1, 9, 9), (3, 3, 1), IDENTITY, "axial"),
        ((9, 1, 9), (1, 1, 1), IDENTITY, "coronal"),
    ],
)
def test_auto_takes_the_plane_with_the_finest_pixels(shape, spacing, direction, plane):
    assert resolve_planes(volume_on(direction, shape, spacing), "auto") == (plane,)


def test_the_spacing_of_a_plane_is_that_of_its_rows_and_columns():
    volume = volume_on(IDENTITY)
    assert [slice_spacing_mm(volume, plane) for plane in PLANES] == [(1.1, 0.7), (3.25, 0.7), (3.25, 1.1)]


@pytest.mark.parametrize(("plane", "message"), [("oblique", "there are auto, all"), ("all", "a single slice")])
def test_planes_that_cannot_be_are_refused(plane, message):
    with pytest.raises(UserError, match=message):
        resolve_planes(volume_on(IDENTITY, (1, 4, 4)), plane)


@pytest.mark.parametrize("suffix", [".png", ".nii.gz", ".seg.nrrd"])
def test_a_picture_gives_a_mask_of_its_own_size(tmp_path, suffix):
    pixels = np.random.default_rng(1).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), tmp_path / "photo.png")
    volume = read_volume(tmp_path / "photo.png")
    assert volume.flat and volume.is_rgb and volume.shape == (1, 20, 30)
    mask = np.zeros(volume.shape, bool)
    mask[0, 2:5, 10:20] = True
    write_segments(tmp_path / f"out{suffix}", [Segment("a", mask, (1, 0, 0))], volume)
    written = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / f"out{suffix}"))
    assert np.array_equal(written.squeeze() > 0, mask[0])
    assert written.max() == (255 if suffix == ".png" else 1)


def test_voxel_volume_is_in_millilitres():
    assert volume_on(OBLIQUE).voxel_volume_ml == pytest.approx(0.7 * 1.1 * 3.25 / 1000)


def test_overlapping_segments_get_layers_and_others_share_one(tmp_path):
    volume = volume_on(IDENTITY)
    masks = [ball(SHAPE, (4, 6, 5), 3), ball(SHAPE, (4, 7, 5), 2), ball(SHAPE, (0, 0, 0), 1)]
    segments = [Segment(name, mask, (1, 0, 0)) for name, mask in zip(["a", "b", "c"], masks, strict=True)]
    write_segments(tmp_path / "out.seg.nrrd", segments, volume)
    image = sitk.ReadImage(tmp_path / "out.seg.nrrd")
    layers = sitk.GetArrayFromImage(image)
    assert layers.shape == (*SHAPE, 2)
    for index, mask in enumerate(masks):
        layer, value = (int(image.GetMetaData(f"Segment{index}_{key}")) for key in ("Layer", "LabelValue"))
        assert np.array_equal(layers[..., layer] == value, mask)


def test_overlapping_segments_do_not_fit_a_label_map(tmp_path):
    mask = ball(SHAPE, (4, 6, 5), 3)
    segments = [Segment("a", mask, (1, 0, 0)), Segment("b", mask, (0, 1, 0))]
    with pytest.raises(UserError, match=r"add --exclusive, or write \.seg\.nrrd"):
        write_segments(tmp_path / "out.nii.gz", segments, volume_on(IDENTITY))
    assert list(Path(tmp_path).iterdir()) == []


def test_a_nifti_that_cannot_hold_the_grid_is_not_written(tmp_path):
    sheared = np.array([[1.0, 0.3, 0], [0, 0.954, 0], [0, 0, 1]])
    volume = volume_on(sheared)
    segment = Segment("ball", ball(SHAPE, (2, 9, 3), 1.5), (1, 0, 0))
    with pytest.raises(UserError, match=r"cannot hold the grid .* write \.seg\.nrrd"):
        write_segments(tmp_path / "out.nii.gz", [segment], volume)
    assert list(tmp_path.iterdir()) == []


def test_a_single_slice_is_never_cut_into_lines():
    volume = volume_on(IDENTITY, shape=(1, 20, 24))
    assert resolve_planes(volume, "auto") == ("axial",)
    with pytest.raises(UserError, match="choose --plane auto"):
        resolve_planes(volume, "coronal")
