"""Files of which no more is asked than they hold."""

import io
from pathlib import Path

LARGE_BYTES = 1 << 20  # of a single read


class Bounded(io.BufferedReader):
    """A file of which no more is asked than it has: Python takes memory for all that is asked, and a length that a
    damaged file declares may be any."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))
        self.size = path.stat().st_size

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > LARGE_BYTES:
            size = max(0, min(size, self.size - self.tell()))
        return super().read(size)
