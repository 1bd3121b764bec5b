"""What an image file holds, before it is known which of its numbers are volumes, and which are colours."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import UserError

COLOUR_TYPES = (np.uint8, np.uint16)
DEEP = 257  # 16-bit colours are so many times 8-bit ones
GREY_AND_ALPHA = 2


@dataclass(frozen=True, eq=False)
class Raster:
    """Voxels of a file with the grid that all its frames share.

    Attributes:
        voxels: (frames, z, y, x, components).
        spacing_mm, origin_mm, direction, flat: see `Volume`.
        spacing_known: the file says how far its voxels lie apart; 1 mm stands in where it does not.
        colours: the components are colours, and maybe an alpha, which is dropped; otherwise each is a frame.
    """

    voxels: np.ndarray
    spacing_mm: tuple[float, ...]
    origin_mm: tuple[float, ...]
    direction: tuple[float, ...]
    flat: bool
    colours: bool
    spacing_known: bool = True

    @property
    def geometry(self) -> dict[str, Any]:
        """The arguments of `Volume` but for its voxels and its name."""
        given = {name: getattr(self, name) for name in ("spacing_mm", "origin_mm", "direction", "flat")}
        in_plane, across = self.spacing_known, self.spacing_known and not self.flat  # a plane has no thickness
        return given | {"spacing_known": (in_plane, in_plane, across)}

    def frames(self, name: str) -> list[np.ndarray]:
        """Return each frame: (z, y, x) grey, or (z, y, x, 3) uint8.

        Args:
            name: of the file, for the message.

        Raises:
            UserError: the colours are of a type that has no black and white.
        """
        components = self.voxels.shape[-1]
        if not self.colours or components <= GREY_AND_ALPHA:
            count = 1 if self.colours else components
            return [frame[..., index] for frame in self.voxels for index in range(count)]
        if self.voxels.dtype not in COLOUR_TYPES:
            raise UserError(f"{name} has {components} numbers a voxel that are not 8-bit or 16-bit colours")
        return [_in_8_bits(frame[..., :3]) for frame in self.voxels]


def are_colours(dtype: np.dtype, components: int) -> bool:
    """Return whether several numbers a voxel are taken for colours where a file does not say what they are."""
    return components in (3, 4) and dtype in COLOUR_TYPES


def _in_8_bits(colours: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(colours if colours.dtype == np.uint8 else (colours // DEEP).astype(np.uint8))
