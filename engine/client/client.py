"""A client of the server, for Slicer's module and for scripts. Needs numpy, and neither torch nor anything else.

client = Client("http://127.0.0.1:8000", token="…")  # or Server().start(), of engine.client.launching
volume = client.put_volume(voxels, spacing_mm=(0.7, 0.7, 5))
for result in client.segment(volume, ["brain"], adapter="head-t1"):
    result.mask(), result.presence, result.volume_ml()
"""

import http.client
import json
import math
import secrets
import selectors
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

from engine.client.protocol import (
    ENGINE_HEADER,
    PROTOCOL,
    PROTOCOL_HEADER,
    SESSION_HEADER,
    VOLUME_HEADER,
    describe,
    mask_of_levels,
    new_volume_id,
)
from engine.errors import Cancelled, UserError
from engine.version import __version__

SILENCE_SECONDS = 60.0  # while a job runs the server says something four times a second
READING_SECONDS = 600.0  # a folder of DICOM on a slow disk takes long
PIECE_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class RemoteVolume:
    """A volume that the server was given. Where the server had to drop it, it is given again when it is needed.

    Attributes:
        id: hash of its description and voxels.
        shape: sizes along z, y, x.
        voxel_volume_ml: of one voxel; None where its size is not known.
    """

    id: str
    shape: tuple[int, int, int]
    voxel_volume_ml: float | None
    _give: Callable[[], None] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Result:
    """What was found for one prompt.

    Attributes:
        prompt: as it was given.
        probability: (z, y, x) uint8, on the volume's own grid: n stands for n/256 up to (n + 1)/256.
        presence: 0..1, how sure the model is that the structure is there at all.
        found: whether that is enough; where it is not, masks are empty.
        threshold: what `mask` uses when it is not told another.
        voxel_volume_ml: of one voxel; None where its size is not known.
        base, base_sha256: the base that was used, and the hash of its weights.
        adapter_sha256: hash of the adapter's weights; nothing where none was used.
        seconds: what the server took for it; for the first prompt with loading the model and encoding the volume.
        warnings: what people must know of the volume and of the prompt, in words; an older server has none.
    """

    prompt: str
    probability: np.ndarray
    presence: float
    found: bool
    threshold: float
    voxel_volume_ml: float | None
    base: str
    base_sha256: str
    adapter_sha256: str
    seconds: float
    warnings: tuple[str, ...] = ()

    def mask(self, threshold: float | None = None) -> np.ndarray:
        """Return the voxels (z, y, x) bool whose probability reaches the threshold, rounded to a 256th: exactly the
        Segmenter's mask at that threshold. None, if it was not found."""
        if not self.found:
            return np.zeros(self.probability.shape, bool)
        return mask_of_levels(self.probability, self.threshold if threshold is None else threshold)

    def volume_ml(self, threshold: float | None = None) -> float | None:
        """Return the mask's volume; None where the size of a voxel is not known."""
        if self.voxel_volume_ml is None:
            return None
        return float(self.mask(threshold).sum() * self.voxel_volume_ml)


class Client:
    """Talks to a server. May be used by several threads.

    Args:
        url: such as "http://127.0.0.1:8000".
        token: that the server printed.
        is_alive: says whether the server's process runs, where it is known.

    Raises:
        UserError: nobody answers there, the token is wrong, or the server speaks another version. So do all methods
            where the server refuses, with its words, or is gone.
    """

    def __init__(self, url: str, token: str, is_alive: Callable[[], bool] | None = None):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"'{url}' is no address of a server; give one like http://127.0.0.1:8000")
        if not (token.isascii() and token.isprintable()):
            raise UserError("the token holds characters that no token has; copy the server's again")
        self.url = url
        self._host, self._port, self._root = parts.hostname, parts.port, parts.path.rstrip("/")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._token, self._is_alive, self._session = token, is_alive, secrets.token_hex(16)
        try:
            self._body_limit = int(self.health()["limits"]["body_bytes"])
        except (KeyError, TypeError):
            raise UserError(f"what answers at {url} is no server of this project; check the address") from None

    def health(self) -> dict:
        """Return versions, limits, and what the server holds and does."""
        return self._json("GET", "/health")

    def adapters(self) -> list[dict]:
        """Return the cards of the adapters that the server has."""
        return self._json("GET", "/adapters")["adapters"]

    def bases(self) -> list[str]:
        """Return the names of the bases that the server has."""
        return self._json("GET", "/adapters")["bases"]

    def put_volume(
        self,
        voxels: np.ndarray,
        spacing_mm: Sequence[float] = (1, 1, 1),
        origin_mm: Sequence[float] = (0, 0, 0),
        direction: Sequence[float] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
        modality: str | None = None,
        window: tuple[float, float] | None = None,
        flat: bool = False,
        spacing_known: Sequence[bool] = (True, True, True),
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> RemoteVolume:
        """Give the server a volume, unless it holds it. No name is sent.

        Args:
            voxels, …, spacing_known: see `Volume`. The voxels must not change while the volume is used.
            on_progress: called with bytes sent and in all; raise `Cancelled` in it to stop.
        """
        geometry = spacing_mm, origin_mm, direction
        description = describe(np.asarray(voxels), *geometry, modality, window, flat, spacing_known)
        sent = np.ascontiguousarray(voxels, description.dtype)
        if sent.nbytes > self._body_limit:
            raise UserError(
                f"the volume takes {sent.nbytes:,} bytes and the server takes {self._body_limit:,} at most; "
                "crop the volume, or start the server with a larger --body-mb"
            )
        digest = new_volume_id(description.to_json())
        digest.update(sent.data)
        path = f"/volumes/{digest.hexdigest()}"

        def give() -> None:
            if self._holds(path):
                return
            headers = {VOLUME_HEADER: description.to_json(), "Content-Length": str(sent.nbytes)}
            self._json("PUT", path, _pieces(sent, on_progress), headers)

        give()
        millilitres = _voxel_volume_ml(spacing_mm, direction, spacing_known)
        return RemoteVolume(digest.hexdigest(), sent.shape[:3], millilitres, give)

    def put_path(self, path: str, series: str | None = None, frame: int | None = None) -> RemoteVolume:
        """Have the server read a file or a DICOM folder of its own machine, where it allows that."""

        def give() -> dict:
            wanted = {"path": str(path), "series": series, "frame": frame}
            return self._json("POST", "/volumes", wanted, silence_seconds=READING_SECONDS)

        there = give()
        millilitres = _voxel_volume_ml(there["spacing_mm"], there["direction"], there["spacing_known"])
        return RemoteVolume(there["id"], tuple(there["shape"][:3]), millilitres, give)

    def segment(
        self,
        volume: RemoteVolume,
        prompts: Sequence[str],
        adapter: str | None = None,
        base: str | None = None,
        plane: str | None = None,
        window: str | None = None,
        threshold: float | None = None,
        on_progress: Callable[[dict], None] = lambda event: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[Result]:
        """Segment prompts in a volume, in their order.

        Args:
            adapter, …, threshold: see `Segmenter`; what is None is the adapter's own.
            on_progress: called at least four times a second with the job's state: "waiting" (with jobs "ahead"),
                "loading", "encoding" and "decoding" (with "done", "total" and "seconds_left"), or "done".
            cancelled: asked as often; the job is stopped when it says yes.

        Raises:
            Cancelled: `cancelled` said yes, or somebody else cancelled the job.
        """
        task = {"adapter": adapter, "base": base, "plane": plane, "window": window, "threshold": threshold}
        if not self._holds(f"/volumes/{volume.id}"):
            volume._give()
        last = {}
        with self._request("POST", "/jobs", {"volume": volume.id, "prompts": list(prompts), **task}) as answer:
            for event in self._events(answer):
                last = event
                if cancelled():
                    raise Cancelled  # hanging up stops the job
                on_progress(event)
        if last.get("state") == "cancelled":
            raise Cancelled
        if last.get("state") != "done":
            raise UserError(last.get("message") or self._gone("it stopped in the middle of a job"))
        try:
            return [self._result(volume, last["job"], number, row) for number, row in enumerate(last["results"])]
        finally:
            self._json("DELETE", f"/jobs/{last['job']}")

    def forget(self, volume: RemoteVolume) -> None:
        """Have the server forget a volume, what was encoded of it, and its results."""
        self._json("DELETE", f"/volumes/{volume.id}")

    def _result(self, volume: RemoteVolume, job: str, number: int, row: dict) -> Result:
        probability = np.empty(volume.shape, np.uint8)
        with self._request("GET", f"/jobs/{job}/results/{number}/probability") as answer:
            rest = memoryview(probability.reshape(-1))
            with self._talking():
                while rest and (count := answer.readinto(rest)):
                    rest = rest[count:]
        if rest:
            raise UserError(self._gone("it stopped in the middle of a result"))
        keys = ("prompt", "presence", "found", "threshold", "base", "base_sha256", "adapter_sha256", "seconds")
        warnings = tuple(row.get("warnings", ()))
        kept = {key: row[key] for key in keys}
        return Result(probability=probability, voxel_volume_ml=volume.voxel_volume_ml, warnings=warnings, **kept)

    def _holds(self, path: str) -> bool:
        with self._request("GET", path, accept=(200, 404)) as answer:
            return answer.status == 200

    def _json(self, method: str, path: str, body: object = None, headers: dict | None = None, **more) -> dict:
        with self._request(method, path, body, headers, **more) as answer, self._talking():
            return json.loads(answer.read())

    def _events(self, answer: http.client.HTTPResponse) -> Iterator[dict]:
        while True:
            with self._talking():
                line = answer.readline()
                event = json.loads(line) if line else None
            if event is None:
                return
            yield event

    @contextmanager
    def _request(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict | None = None,
        accept: tuple[int, ...] = (200,),
        silence_seconds: float = SILENCE_SECONDS,
    ) -> Iterator[http.client.HTTPResponse]:
        """Ask, and yield the answer to be read; a connection serves one request."""
        headers = {
            "Authorization": f"Bearer {self._token}",
            PROTOCOL_HEADER: str(PROTOCOL),
            ENGINE_HEADER: __version__,
            SESSION_HEADER: self._session,
            "Connection": "close",
            **(headers or {}),
        }
        if isinstance(body, dict):
            body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        connection = self._kind(self._host, self._port, timeout=silence_seconds)
        try:
            with self._talking():
                answer = self._ask(connection, method, self._root + path, body, headers)
                refusal = None if answer.status in accept else _detail(answer)
            with answer:  # closes the connection, also where an error keeps the answer alive
                if refusal:
                    raise UserError(refusal)
                yield answer
        finally:
            connection.close()

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Say it in words when the server goes away while it is talked to."""
        try:
            yield
        except TimeoutError as error:
            raise UserError(self._gone("it said nothing for a long time")) from error
        except (OSError, http.client.HTTPException) as error:
            raise UserError(self._gone(type(error).__name__)) from error
        except ValueError as error:
            raise UserError(
                f"what answers at {self.url} is no server of VLSMSegmenter; check the address"
            ) from error

    @staticmethod
    def _ask(connection, method: str, path: str, body, headers: dict) -> http.client.HTTPResponse:
        if isinstance(body, Iterator) and not isinstance(connection, http.client.HTTPSConnection):
            body = _until_answered(body, connection)  # TLS has more to say than answers
        try:
            connection.request(method, path, body, headers)
        except (BrokenPipeError, ConnectionResetError) as error:
            try:  # a server that refuses a body says why before it hangs up
                return connection.getresponse()
            except (OSError, http.client.HTTPException):
                raise error from None
        return connection.getresponse()

    def _gone(self, reason: str) -> str:
        if self._is_alive and not self._is_alive():
            return f"the server at {self.url} has stopped ({reason}); start it again"
        return f"the server at {self.url} does not answer ({reason}); start it again, or check address and network"


def _pieces(array: np.ndarray, on_progress: Callable[[int, int], None]) -> Iterator[memoryview]:
    view = array.reshape(-1).view(np.uint8).data
    for start in range(0, len(view), PIECE_BYTES):
        yield view[start : start + PIECE_BYTES]
        on_progress(min(start + PIECE_BYTES, len(view)), len(view))


def _until_answered(pieces: Iterator[memoryview], connection: http.client.HTTPConnection) -> Iterator[memoryview]:
    """Send no more of a body once the server answers: it does not want it."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.sock, selectors.EVENT_READ)
        for piece in pieces:
            if selector.select(0):
                return
            yield piece


def _detail(answer: http.client.HTTPResponse) -> str:
    """Return what the server says of a request that it refuses."""
    try:
        return str(json.loads(answer.read(1 << 16))["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the answer was {answer.status} {answer.reason}, without a reason; check the address"


def _voxel_volume_ml(
    spacing_mm: Sequence[float], direction: Sequence[float], known: Sequence[bool]
) -> float | None:
    if not all(known):
        return None
    return math.prod(map(float, spacing_mm)) * abs(np.linalg.det(np.reshape(direction, (3, 3)))) / 1000
