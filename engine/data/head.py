"""The MNI152 head of nilearn's wheel, with the tissue maps published with it: a scan that is there offline."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from engine.data.volumes import Study, VolumeSet
from engine.errors import UserError
from engine.imaging.labels import Labels
from engine.imaging.reading import read_volume
from engine.imaging.volumes.planes import SLICE
from engine.imaging.volumes.volume import Volume

NAME = "MNI152 head"
HEAD = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
PUBLISHED = {"brain": ("gm", "wm"), "grey matter": ("gm",), "white matter": ("wm",)}
HALF = 127.5  # the published maps hold probabilities as 0 to 255


def head_folder() -> Path:
    """Return the folder of nilearn's wheel that holds the head, without importing nilearn.

    Raises:
        UserError: nilearn is not installed.
    """
    package = find_spec("nilearn")
    if package is None:
        raise UserError("the demo's scan is in nilearn's wheel; run: pip install nilearn")
    return Path(package.origin).parent / "datasets" / "data"


def published_mask(prompt: str) -> np.ndarray:
    """Return where the published maps of a prompt's tissues reach 50 %, (z, y, x) bool."""
    maps = [read_volume(head_folder() / HEAD.format(tissue)).voxels.astype(int) for tissue in PUBLISHED[prompt]]
    return sum(maps) > HALF


def head_set() -> VolumeSet:
    """Return the head as a data set of one case.

    Raises:
        UserError: nilearn is not installed.
    """
    image = head_folder() / HEAD.format("t1")
    study = Study(NAME, image, image, _published_labels)
    return VolumeSet(NAME, [study], {prompt: (prompt,) for prompt in PUBLISHED}, ("axial",), SLICE)


def _published_labels(volume: Volume) -> Labels:
    layers = np.stack([published_mask(prompt) for prompt in PUBLISHED]).astype(np.uint8)
    return Labels(layers, {prompt: ((layer, 1),) for layer, prompt in enumerate(PUBLISHED)})
