"""What the server holds between requests, within limits."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from engine.imaging.volumes.volume import Volume
from engine.segmentation.cache import EncodingCache
from engine.server.refusal import Refusal


@dataclass(frozen=True, eq=False)
class HeldVolume:
    """A volume with everything that was encoded of it."""

    id: str
    volume: Volume
    encodings: EncodingCache = field(default_factory=EncodingCache)

    @property
    def nbytes(self) -> int:
        return self.volume.voxels.nbytes + self.encodings.nbytes


@dataclass(frozen=True, eq=False)
class HeldResults:
    """What a job found: levels (z, y, x) uint8, the mask's threshold, and whether it was found, for each prompt."""

    volume_id: str
    levels: tuple[np.ndarray, ...]
    thresholds: tuple[float, ...]
    found: tuple[bool, ...]

    @property
    def nbytes(self) -> int:
        return sum(levels.nbytes for levels in self.levels)


class Store:
    """Volumes and results by id; the longest unused are dropped when they are too many or too large.

    Not for several threads: the server uses it from its event loop alone.

    Args:
        limit_bytes: of all volumes, encodings, results and volumes under way; what was used last stays in any case.
        limit_volumes: how many volumes are held.
        on_drop: called with the id of a volume that is dropped.
    """

    def __init__(self, limit_bytes: int, limit_volumes: int, on_drop: Callable[[str], None] = lambda id: None):
        self.limit_bytes, self.limit_volumes = limit_bytes, limit_volumes
        self._on_drop = on_drop
        self._incoming = 0
        self._items: OrderedDict[str, HeldVolume | HeldResults] = OrderedDict()

    @property
    def nbytes(self) -> int:
        return self._incoming + sum(item.nbytes for item in self._items.values())

    @property
    def volumes(self) -> list[str]:
        return [id for id, item in self._items.items() if isinstance(item, HeldVolume)]

    @property
    def results(self) -> list[str]:
        return [id for id, item in self._items.items() if isinstance(item, HeldResults)]

    def get_volume(self, id: str) -> HeldVolume | None:
        return self._get(id, HeldVolume)

    def get_results(self, id: str) -> HeldResults | None:
        return self._get(id, HeldResults)

    def put(self, id: str, item: HeldVolume | HeldResults) -> None:
        self._items[id] = item
        self._items.move_to_end(id)
        self.trim()

    def forget(self, id: str) -> bool:
        """Drop a volume with its results, or the results of a job; return whether there was anything."""
        for job in [job for job in self.results if self._items[job].volume_id == id]:
            del self._items[job]
        there = id in self._items
        if there:
            self._drop(id)
        return there

    @contextmanager
    def room_for(self, nbytes: int) -> Iterator[None]:
        """Keep room for a volume under way, before any memory is taken for it.

        Raises:
            Refusal: it is larger than the limit, or others under way leave no room.
        """
        if nbytes > self.limit_bytes:
            raise Refusal(
                413, f"the volume takes {_mib(nbytes)} MiB and the server holds {_mib(self.limit_bytes)} at most"
            )
        if self._incoming + nbytes > self.limit_bytes:
            raise Refusal(503, "the server is receiving other volumes and has no room for this one; try again soon")
        self._incoming += nbytes
        try:
            self.trim(keep=0)
            yield
        finally:
            self._incoming -= nbytes

    def trim(self, keep: int = 1) -> None:
        """Drop what was unused longest, until all fits or only `keep` items are left."""
        while len(self._items) > keep and self.nbytes > self.limit_bytes:
            self._drop(next(iter(self._items)))
        while len(self.volumes) > self.limit_volumes:
            self._drop(self.volumes[0])

    def _drop(self, id: str) -> None:
        if isinstance(self._items.pop(id), HeldVolume):
            self._on_drop(id)

    def _get(self, id: str, kind: type):
        item = self._items.get(id)
        if not isinstance(item, kind):
            return None
        self._items.move_to_end(id)
        return item


def _mib(nbytes: int) -> int:
    return -(-nbytes // (1 << 20))
