"""What the server and its client agree on. Needs numpy alone, so that any Python can be a client.

Voxels and results travel as raw little-endian bytes in the order z, y, x. A volume is described by a line of JSON,
and addressed by the hash of that line and its voxels, so that one that is there is not sent again.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from math import prod

import numpy as np

from engine.errors import UserError

PROTOCOL = 4  # counts up whenever an older client or server would misunderstand
PROTOCOL_HEADER, ENGINE_HEADER, VOLUME_HEADER = "VLSM-Protocol", "VLSM-Engine", "VLSM-Volume"
SESSION_HEADER = "X-Session-Id"  # a random word for each client: requests with the same one go to the same replica
DTYPES = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
LEVELS = 256
LARGEST = 1e18  # of the numbers of a geometry; whole ones must fit into 64 bits


@dataclass(frozen=True)
class Description:
    """Everything about a volume but its voxels; the attributes are those of `Volume`.

    There is no name: the server need not know whose scan it is.

    Attributes:
        dtype: one of `DTYPES`, as numpy writes it.
        shape: (z, y, x), or (z, y, x, 3) for RGB.

    Raises:
        UserError: an entry is of the wrong form.
    """

    dtype: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)
    origin_mm: tuple[float, ...] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    modality: str | None = None
    window: tuple[float, ...] | None = None
    flat: bool = False
    spacing_known: tuple[bool, ...] = (True, True, True)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"voxels of type '{self.dtype}' cannot be sent; there are {', '.join(DTYPES)}")
        if len(self.shape) not in (3, 4) or not all(type(size) is int and size > 0 for size in self.shape):
            raise UserError(
                f"a volume of shape {self.shape} cannot be sent; give (z, y, x), or (z, y, x, 3) for RGB"
            )
        lengths = {"spacing_mm": 3, "origin_mm": 3, "direction": 9} | ({} if self.window is None else {"window": 2})
        for name, length in lengths.items():
            values = getattr(self, name)
            if len(values) != length or not all(map(_is_number, values)):
                raise UserError(f"the volume's {name} is {values}; give {length} numbers")
        if not isinstance(self.modality, str | None) or type(self.flat) is not bool:
            raise UserError("the volume's modality must be a word, and flat true or false")
        if [type(known) for known in self.spacing_known] != [bool] * 3:
            raise UserError("the volume's spacing_known must be true or false for each of x, y and z")

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < LARGEST


def describe(
    voxels: np.ndarray, spacing_mm, origin_mm, direction, modality, window, flat, spacing_known=(True, True, True)
) -> Description:
    """Return the description of a volume's voxels, in whatever sequences the geometry is given.

    Raises:
        UserError: the voxels or the geometry are of the wrong form.
    """
    numbers = [tuple(map(float, np.ravel(values))) for values in (spacing_mm, origin_mm, direction)]
    window = None if window is None else tuple(map(float, window))
    known = tuple(map(bool, spacing_known))
    dtype = voxels.dtype.newbyteorder("<").str
    return Description(dtype, voxels.shape, *numbers, modality, window, bool(flat), known)


def read_description(text: str) -> Description:
    """Return what `Description.to_json` wrote.

    Raises:
        UserError: it is no description of a volume.
    """
    try:
        values = json.loads(text)
        return Description(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"the header {VOLUME_HEADER} does not describe a volume; see the server's page /docs"
        ) from None


def new_volume_id(description: str) -> "hashlib._Hash":
    """Return a hash to be updated with the voxels' bytes; its hexdigest addresses the volume."""
    return hashlib.blake2b(description.encode(), digest_size=16)


def to_levels(probability: np.ndarray) -> np.ndarray:
    """Return probabilities (z, y, x) float16 as uint8: level n is n/256 up to (n + 1)/256, and 255 up to 1."""
    levels = np.empty(probability.shape, np.uint8)
    for source, target in zip(probability, levels, strict=True):  # slice by slice, to need little memory
        np.take(_LEVEL_OF_BITS, source.view(np.uint16), out=target, mode="clip")
    return levels


def _level_of_bits() -> np.ndarray:
    """Return the level of every float16 in 0..1 by its bits: looking up takes a sixth of the time of computing."""
    bits = np.arange(np.float16(1).view(np.uint16) + 1, dtype=np.uint16)
    return np.minimum(bits.view(np.float16).astype(np.float32) * LEVELS, LEVELS - 1).astype(np.uint8)


_LEVEL_OF_BITS = _level_of_bits()


def mask_of_levels(levels: np.ndarray, threshold: float) -> np.ndarray:
    """Return where levels reach a threshold, bool: exactly where the probability reaches the threshold rounded to
    a 256th (1/256 to 255/256); 0.5 is one of these, so its mask is the Segmenter's own."""
    return levels >= np.clip(int(threshold * LEVELS + 0.5), 1, LEVELS - 1)
