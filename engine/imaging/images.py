"""Between volumes and SimpleITK's images."""

from typing import Any

import SimpleITK as sitk

from engine.imaging.volumes.volume import Volume


def volume_from_image(image: sitk.Image, **attributes: Any) -> Volume:
    """Return the volume of a 2-D or 3-D image of SimpleITK; `attributes` are further ones of `Volume`."""
    voxels = sitk.GetArrayFromImage(image)
    if image.GetDimension() == 3:
        geometry = (image.GetSpacing(), image.GetOrigin(), image.GetDirection())
        return Volume(voxels, *geometry, **attributes)
    (a, b, c, d), spacing, origin = image.GetDirection(), image.GetSpacing(), image.GetOrigin()
    direction = (a, b, 0.0, c, d, 0.0, 0.0, 0.0, 1.0)
    known = {"spacing_known": (True, True, False)} | attributes  # a plane has no thickness
    return Volume(voxels[None], (*spacing, 1.0), (*origin, 0.0), direction, flat=True, **known)


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
