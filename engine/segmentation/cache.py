"""Keeping what was computed for a volume, for as long as it is the same volume."""

import hashlib
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np
from torch import Tensor

from engine.imaging.volumes.volume import Volume

DEFAULT_BYTES = 2 << 30


def volume_key(volume: Volume) -> str:
    """Return a hash of a volume's voxels and geometry."""
    digest = hashlib.blake2b(digest_size=16)
    geometry = (volume.voxels.shape, volume.voxels.dtype.str, volume.spacing_mm, volume.origin_mm, volume.direction)
    digest.update(repr(geometry).encode())
    digest.update(np.ascontiguousarray(volume.voxels).data)
    return digest.hexdigest()


class EncodingCache:
    """Encoded slices by all that they depend on; the longest unused are dropped when they take more than
    `limit_bytes`."""

    def __init__(self, limit_bytes: int = DEFAULT_BYTES):
        self._limit_bytes = limit_bytes
        self._entries: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable) -> Tensor | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: Hashable, maps: Tensor) -> None:
        self._entries[key] = maps
        while len(self._entries) > 1 and self.nbytes > self._limit_bytes:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        return sum(maps.nbytes for maps in tuple(self._entries.values()))  # another thread may add one
