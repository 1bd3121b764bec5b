"""From SimpleITK's images, and from volumes to them."""

import numpy as np
import SimpleITK as sitk

from engine.imaging.raster import Raster, are_colours
from engine.imaging.volumes.volume import Volume


def raster_of(image: sitk.Image, colours: bool | None = None) -> Raster:
    """Return what an image of SimpleITK of any dimension holds.

    Args:
        colours: whether its components are colours; as their number and type tell when None.
    """
    axes, components = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    voxels = sitk.GetArrayFromImage(image).reshape(-1, *(*image.GetSize(), 1)[:3][::-1], components)
    direction, given = np.eye(3), np.reshape(image.GetDirection(), (axes, axes))[:3, :3]
    direction[: len(given), : len(given)] = given
    return Raster(
        voxels,
        spacing_mm=(*image.GetSpacing(), 1.0)[:3],
        origin_mm=(*image.GetOrigin(), 0.0)[:3],
        direction=tuple(direction.ravel().tolist()),
        flat=axes < len(direction),
        colours=are_colours(voxels.dtype, components) if colours is None else colours,
    )


def image_from_volume(volume: Volume) -> sitk.Image:
    """Return the image of SimpleITK with exactly the volume's grid; 2-D for a flat one."""
    if volume.flat:
        image = sitk.GetImageFromArray(volume.voxels[0], isVector=volume.is_rgb)
        a, b, _, c, d, *_ = volume.direction
        spacing, origin, direction = volume.spacing_mm[:2], volume.origin_mm[:2], (a, b, c, d)
    else:
        image = sitk.GetImageFromArray(volume.voxels, isVector=volume.is_rgb)
        spacing, origin, direction = volume.spacing_mm, volume.origin_mm, volume.direction
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image
