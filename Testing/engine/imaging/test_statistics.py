"""Statistics of segments: against numbers counted by hand, and against SimpleITK's."""

from dataclasses import asdict

import numpy as np
import pytest
import SimpleITK as sitk

from engine.imaging.images import image_from_volume
from engine.imaging.volumes.statistics import Statistics, statistics_of
from engine.imaging.volumes.volume import Volume

SPACING, ORIGIN = (0.5, 2.0, 5.0), (-40.0, 25.0, 300.0)
TURNED = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)  # about S, by the angle of the triangle 3, 4, 5
OBLIQUE = tuple(sitk.Euler3DTransform((0, 0, 0), 0.3, -0.5, 0.9).GetMatrix())
SHAPE = (7, 9, 11)


def segment_at(*places: tuple[int, int, int], shape=SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(np.transpose(places))] = True
    return mask


def blob(shape=SHAPE, seed=0) -> np.ndarray:
    """Return scattered voxels with holes and an empty slice, away from the volume's faces."""
    mask = np.zeros(shape, bool)
    inner = mask[1:-1, 2:-1, 3:-2]
    inner[:] = np.random.default_rng(seed).random(inner.shape) < 0.3
    mask[3] = False
    return mask


def volume_of(kind: str, direction=OBLIQUE, shape=SHAPE) -> Volume:
    random = np.random.default_rng(1)
    voxels = random.normal(100, 300, shape).astype(kind) if kind[0] == "f" else random.integers(0, 200, shape, kind)
    return Volume(voxels, SPACING, ORIGIN, direction)


def test_a_segment_counted_by_hand():
    """Four voxels in two slices: x = 2, 4 at y = 3, z = 1, and x = 2, 6 at y = 4, z = 5."""
    voxels = np.full(SHAPE, 999, np.int16)
    places = [(1, 3, 2), (1, 3, 4), (5, 4, 2), (5, 4, 6)]
    for place, value in zip(places, (-10, 0, 20, 50), strict=True):
        voxels[place] = value
    found = statistics_of(segment_at(*places), Volume(voxels, SPACING, ORIGIN, TURNED))
    assert (found.voxels, found.slices, found.first_slice, found.last_slice) == (4, 2, 1, 5)
    assert found.volume_ml == pytest.approx(4 * 0.5 * 2 * 5 / 1000)
    assert (found.mean, found.median, found.invalid_voxels) == (15, 10, 0)
    assert found.sd == pytest.approx(np.sqrt((25**2 + 15**2 + 5**2 + 35**2) / 3))
    assert found.percentile_5 == pytest.approx(-8.5)  # 0.15 of the way from the lowest, -10, to the next, 0
    assert found.percentile_95 == pytest.approx(45.5)  # 0.15 of the way back from the highest, 50, to 20
    # their mean is x = 3.5, y = 3.5, z = 3: 1.75, 7 and 15 mm along axes that are turned
    assert found.centroid_mm == pytest.approx(
        (-40 + 0.8 * 1.75 - 0.6 * 7, 25 + 0.6 * 1.75 + 0.8 * 7, 300 + 15), abs=1e-9
    )
    # along L the last of the second row reaches lowest, at its corner x = 1.5, y = 4.5; x = 4.5, y = 2.5 highest
    assert found.lowest_mm == pytest.approx((-40 + 0.4 * 1.5 - 1.2 * 4.5, 25 + 0.3 * 1.5 + 1.6 * 2.5, 302.5))
    assert found.highest_mm == pytest.approx((-40 + 0.4 * 4.5 - 1.2 * 2.5, 25 + 0.3 * 6.5 + 1.6 * 4.5, 327.5))


@pytest.mark.parametrize("kind", ["int16", "uint8", "float32", "int32"])
@pytest.mark.parametrize("seed", range(3))
def test_simpleitk_finds_the_same(kind, seed):
    volume, mask = volume_of(kind), blob(seed=seed)
    found = statistics_of(mask, volume)
    image = image_from_volume(volume)
    label = sitk.GetImageFromArray(mask.astype(np.uint8))
    label.CopyInformation(image)
    theirs = sitk.LabelIntensityStatisticsImageFilter()
    theirs.Execute(label, sitk.Cast(image, sitk.sitkFloat64))
    assert found.voxels == theirs.GetNumberOfPixels(1)
    assert found.volume_ml == pytest.approx(theirs.GetPhysicalSize(1) / 1000)
    assert found.mean == pytest.approx(theirs.GetMean(1))
    assert found.sd == pytest.approx(theirs.GetStandardDeviation(1))
    np.testing.assert_allclose(found.centroid_mm, theirs.GetCentroid(1), atol=1e-9)
    start, size = theirs.GetBoundingBox(1)[2], theirs.GetBoundingBox(1)[5]
    assert (found.first_slice, found.last_slice) == (start, start + size - 1)
    assert found.slices == size - 1  # one between is empty
    values = volume.voxels[mask].astype(np.float64)
    percentiles = (found.percentile_5, found.median, found.percentile_95)
    np.testing.assert_allclose(percentiles, np.percentile(values, (5, 50, 95)), rtol=1e-9)
    corners = [
        image.TransformContinuousIndexToPhysicalPoint((np.array(index[::-1]) + half).tolist())
        for index in np.argwhere(mask)
        for half in np.indices((2, 2, 2)).reshape(3, 8).T - 0.5
    ]
    np.testing.assert_allclose(found.lowest_mm, np.min(corners, axis=0), atol=1e-9)
    np.testing.assert_allclose(found.highest_mm, np.max(corners, axis=0), atol=1e-9)


def test_a_difference_that_the_voxels_type_cannot_hold():
    voxels = np.array([[[-32768, 32767]]], np.int16)
    found = statistics_of(np.ones((1, 1, 2), bool), Volume(voxels))
    assert (found.mean, found.median) == (-0.5, -0.5)
    assert found.percentile_95 == pytest.approx(-32768 + 0.95 * 65535)


def test_the_deviation_of_more_voxels_than_are_taken_at_a_time():
    voxels = np.random.default_rng(0).normal(1e4, 1, (11, 400, 500)).astype(np.float32)
    found = statistics_of(np.ones(voxels.shape, bool), Volume(voxels))
    assert found.sd == pytest.approx(voxels.std(dtype=np.float64, ddof=1), rel=1e-6)
    assert found.mean == pytest.approx(voxels.mean(dtype=np.float64), rel=1e-9)


def test_voxels_that_are_no_numbers_are_counted_and_kept_out_of_intensities():
    voxels = np.full(SHAPE, 7, np.float32)
    voxels[2, 2, 2:5], voxels[0, 0, 0] = (np.nan, np.inf, 9), np.nan
    volume = Volume(voxels, SPACING)
    found = statistics_of(segment_at((2, 2, 2), (2, 2, 3), (2, 2, 4), (2, 2, 5)), volume)
    assert (found.voxels, found.invalid_voxels, volume.no_numbers) == (4, 2, 3)
    assert (found.mean, found.percentile_5) == (8, pytest.approx(7.1))
    assert found.volume_ml == pytest.approx(4 * 0.005)
    nothing_else = statistics_of(segment_at((2, 2, 2), (2, 2, 3)), volume)
    assert (nothing_else.invalid_voxels, nothing_else.mean, nothing_else.median) == (2, None, None)
    assert nothing_else.centroid_mm == pytest.approx((1.25, 4, 10))
    assert statistics_of(segment_at((2, 2, 4)), volume.with_voxels(volume.voxels)).invalid_voxels == 0


def test_colours_count_by_their_brightness():
    voxels = np.zeros((1, 2, 2, 3), np.uint8)
    voxels[0, 0] = ((255, 0, 0), (30, 60, 90))
    found = statistics_of(segment_at((0, 0, 0), (0, 0, 1), shape=(1, 2, 2)), Volume(voxels))
    assert (found.mean, found.percentile_95) == (72.5, pytest.approx(60 + 0.95 * 25))


@pytest.mark.parametrize("known", [(True, True, False), (False, False, False)])
def test_nothing_is_in_millimetres_where_a_spacing_is_not_known(known):
    found = asdict(statistics_of(blob(), Volume(volume_of("uint8").voxels, spacing_known=known)))
    assert {name for name, value in found.items() if value is None} == {
        *("volume_ml", "centroid_mm", "lowest_mm", "highest_mm"),
    }


def test_an_empty_segment_has_a_volume_of_nothing_and_no_place():
    volume = volume_of("int16")
    assert statistics_of(np.zeros(SHAPE, bool), volume) == Statistics(volume_ml=0.0)
    unknown = Volume(volume.voxels, spacing_known=(False,) * 3)
    assert statistics_of(np.zeros(SHAPE, bool), unknown) == Statistics()


def test_one_voxel_has_no_deviation():
    found = statistics_of(segment_at((0, 0, 0)), Volume(volume_of("uint8").voxels, SPACING))
    assert found.sd is None and found.mean == found.median == found.percentile_5
    assert (found.lowest_mm, found.highest_mm) == ((-0.25, -1, -2.5), (0.25, 1, 2.5))
