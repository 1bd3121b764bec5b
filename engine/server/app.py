"""The server's routes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from engine.client.protocol import (
    PROTOCOL,
    VOLUME_HEADER,
    Description,
    describe,
    mask_of_levels,
    new_volume_id,
    read_description,
)
from engine.errors import UserError
from engine.imaging.volumes.volume import Volume, check_geometry
from engine.models.bundle import adapter_names, find_adapter, read_card
from engine.models.places import SHIPPED_MODELS, local_base_names
from engine.prompts import check_prompts
from engine.segmentation.devices import choose_device
from engine.server.guard import Guard
from engine.server.jobs import FINAL, Event, Job, JobQueue, Task, unexpected
from engine.server.page import describe_routes
from engine.server.paths import read_allowed
from engine.server.refusal import Refusal
from engine.server.store import HeldResults, HeldVolume, Store
from engine.server.warm import WarmSegmenters, check_names
from engine.version import __version__

HEARTBEAT_SECONDS = 0.25  # a line at least so often: one who went away is noticed, and one who waits sees life
PIECE_BYTES = 1 << 20
NAME = "the volume"  # in messages; its true name is never known here
ABOUT = """Text-prompted segmentation over HTTP. For research only; not a medical device.

Every request carries the token: "Authorization: Bearer TOKEN". Errors are {"detail": message}.

PUT a volume, POST a job with its id and prompts, read the job's lines of JSON until its state is done, cancelled or
failed, then GET its results. engine.client does all this."""

VolumeId = Annotated[str, PathParameter(pattern="^[0-9a-f]{32}$", description="hash of description and voxels")]
JobId = Annotated[str, PathParameter(pattern="^[0-9a-f]{32}$", description="as the job's lines name it")]
Number = Annotated[int, PathParameter(ge=0, description="of the prompt, from 0")]


@dataclass(frozen=True)
class Settings:
    """What a server is started with.

    Attributes:
        device, precision, batch_size: see `Segmenter`.
        allowed: the folders in which clients may have files read.
        memory_bytes: of volumes, encodings and results.
        body_bytes: of one volume's voxels.
        volumes, waiting, models: how many are held, may wait, and stay warm.
        step_seconds: in which a mebibyte must come or be taken, or the client is given up.
    """

    token: str
    device: str = "auto"
    precision: str = "auto"
    batch_size: str = "auto"
    allowed: tuple[Path, ...] = ()
    memory_bytes: int = 4 << 30
    body_bytes: int = 1 << 30
    volumes: int = 16
    waiting: int = 32
    models: int = 3
    step_seconds: float = 30.0


class Problem(BaseModel):
    """Why a request is refused."""

    detail: str = Field(description="what is wrong, and what to do")


class FileRequest(BaseModel):
    """A file or DICOM folder of the server's machine."""

    path: str = Field(max_length=4096, description="in a folder that the server was allowed to read")
    series: str | None = Field(None, max_length=200, description="which DICOM series of a folder")
    frame: int | None = Field(None, ge=0, description="which frame of a file with several, from 0")


class JobRequest(BaseModel):
    """What to segment in a volume, and how; what is left out is the adapter's own."""

    volume: str = Field(pattern="^[0-9a-f]{32}$", description="id of a volume that is held")
    prompts: list[Annotated[str, Field(max_length=300)]] = Field(
        min_length=1, max_length=64, description="what to segment"
    )
    adapter: str | None = Field(None, max_length=200, description="name of an adapter; the base alone without it")
    base: str | None = Field(None, max_length=200, description="name of a base; the adapter's own, or mini")
    plane: str | None = Field(None, max_length=20, description="axial, coronal, sagittal, auto or all")
    window: str | None = Field(None, max_length=50, description="name of a window, or center,width")
    threshold: float | None = Field(None, gt=0, lt=1, description="of the probability")


def create_app(settings: Settings) -> Guard:
    """Return the server as an ASGI application.

    Raises:
        UserError: there is no such device.
    """
    device = str(choose_device(settings.device))
    warm = WarmSegmenters(device, settings.precision, settings.batch_size, settings.models)
    queue = JobQueue(warm.segment, lambda job, answer: finish(job, answer), settings.waiting)
    store = Store(
        settings.memory_bytes,
        settings.volumes,
        on_drop=lambda id: queue.thread.submit(warm.forget, id),
    )

    reading = asyncio.Lock()

    def finish(job: Job, answer: tuple[list[dict], HeldResults]) -> Event:
        rows, results = answer
        if store.get_volume(job.held.id) is None:  # dropped while the job waited or ran
            queue.thread.submit(warm.forget, job.held.id)
        store.put(job.id, results)
        return {"state": "done", "shape": job.held.volume.shape, "results": rows}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(queue.run())
        yield
        running.cancel()

    app = FastAPI(
        title="VLSMSegmenter",
        version=__version__,
        description=ABOUT,
        lifespan=lifespan,
        responses={"4XX": {"model": Problem, "description": "refused, with the reason"}},
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere
        redoc_url=None,
    )
    _answer_errors(app)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> str:
        return describe_routes(app.openapi())

    @app.get("/health")
    async def health() -> dict:
        """Versions, limits, and what the server holds and does."""
        return {
            "engine": __version__,
            "protocol": PROTOCOL,
            "device": device,
            "limits": {"memory_bytes": settings.memory_bytes, "body_bytes": settings.body_bytes}
            | {"volumes": settings.volumes, "waiting": settings.waiting},
            "held": {"bytes": store.nbytes, "volumes": len(store.volumes), "results": len(store.results)},
            "jobs": {"running": queue.running is not None, "waiting": queue.waiting},
            "warm": warm.names,
            "paths": bool(settings.allowed),
        }

    @app.get("/adapters")
    def adapters() -> dict:
        """The cards of the adapters on the server's machine, which are shipped, and the names of the bases."""
        cards = []
        for name in adapter_names():
            with suppress(UserError):  # a damaged one is not offered
                folder = find_adapter(name)
                cards.append(asdict(read_card(folder)) | {"name": name, "shipped": folder.parent == SHIPPED_MODELS})
        return {"adapters": cards, "bases": local_base_names()}

    @app.get("/volumes/{id}")
    async def get_volume(id: VolumeId) -> dict:
        """Whether a volume is held, and what it takes; 404 where it is not."""
        held = _held(store, id)
        return {"id": id, "shape": held.volume.shape, "bytes": held.nbytes}

    @app.put("/volumes/{id}", openapi_extra=_BINARY_BODY)
    async def put_volume(id: VolumeId, request: Request) -> dict:
        """Bring a volume: its description as a line of JSON in the header VLSM-Volume (dtype, shape, spacing_mm,
        origin_mm, direction, modality, window, flat), its voxels as raw little-endian bytes in the order z, y, x.

        The id is the BLAKE2b hash, of 16 bytes in hexadecimal, of the description's and the voxels' bytes.
        """
        text = request.headers.get(VOLUME_HEADER, "")
        description = read_description(text)
        check_geometry(NAME, description.spacing_mm, description.origin_mm, description.direction)
        _check_size(description, settings)
        with store.room_for(description.nbytes):
            voxels = await _receive_voxels(request, description, text, id)
            volume = await asyncio.to_thread(_volume, voxels, description)
        if store.get_volume(id) is None:
            store.put(id, HeldVolume(id, volume))
        return {"id": id, "shape": volume.shape}

    @app.post("/volumes")
    async def read_file(wanted: FileRequest) -> dict:
        """Have the server read a volume from a file, where its folder was allowed."""
        limits = settings.allowed, settings.body_bytes
        async with reading:  # one at a time, for the sake of memory
            volume = await asyncio.to_thread(read_allowed, wanted.path, wanted.series, wanted.frame, *limits)
        description = _description(volume)
        _check_size(description, settings)
        id = await asyncio.to_thread(_volume_id, volume, description)
        if store.get_volume(id) is None:
            store.put(id, HeldVolume(id, volume))
        return {"id": id, **asdict(description)}

    @app.delete("/volumes/{id}")
    async def forget_volume(id: VolumeId) -> dict:
        """Forget a volume, what was encoded of it, and its results."""
        return {"forgotten": store.forget(id)}

    @app.post("/jobs", response_class=StreamingResponse)
    async def segment(wanted: JobRequest) -> StreamingResponse:
        """Segment prompts in a volume.

        The answer is a stream of lines of JSON, one at least every quarter of a second. Each has the job's id and
        its state: waiting (with the number of jobs ahead), loading, encoding and decoding (with done, total and
        seconds_left), done (with results: prompt, found, presence, threshold, voxels, volume_ml, or null where
        the size of a voxel is not known, the hashes of base and adapter, and warnings in words), cancelled, or
        failed (with a message). Who hangs up cancels the job.
        """
        task = Task(tuple(wanted.prompts), **wanted.model_dump(exclude={"volume", "prompts"}))
        check_prompts(task.prompts)
        await asyncio.to_thread(check_names, task)
        job = Job(task, _held(store, wanted.volume))
        queue.submit(job)
        return _JobResponse(job, queue)

    @app.delete("/jobs/{id}")
    async def cancel(id: JobId) -> dict:
        """Cancel a job that waits or runs, or forget the results of one that is done."""
        job = queue.find(id)
        if job:
            queue.cancel(job)
        return {"cancelled": job is not None, "forgotten": store.forget(id)}

    @app.get("/jobs/{id}/results/{number}/probability", response_class=Response)
    async def probability(id: JobId, number: Number) -> StreamingResponse:
        """The probability as uint8 in the order z, y, x: n stands for n/256 up to (n + 1)/256."""
        return _raw(_result(store, id, number).levels[number])

    @app.get("/jobs/{id}/results/{number}/mask", response_class=Response)
    async def mask(
        id: JobId, number: Number, threshold: Annotated[float | None, Query(gt=0, lt=1)] = None
    ) -> StreamingResponse:
        """The mask as uint8, 0 or 1, in the order z, y, x, at the job's threshold or at another one, rounded to a
        256th; empty where the prompt was not found."""
        results = _result(store, id, number)
        wanted = results.thresholds[number] if threshold is None else threshold
        return _raw((mask_of_levels(results.levels[number], wanted) & results.found[number]).view(np.uint8))

    guard = Guard(app, settings.token, settings.body_bytes, settings.step_seconds)
    guard.stop = queue.stop
    return guard


_BINARY_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": {}}}}


def _answer_errors(app: FastAPI) -> None:
    """Say every error as {"detail": message}."""

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, getattr(error, "status", 400))

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{'.'.join(map(str, e['loc'][1:])) or 'the body'}: {e['msg']}" for e in error.errors()]
        return JSONResponse({"detail": f"the request is not valid ({'; '.join(problems[:5])}); see /docs"}, 422)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(
            {"detail": f"the server cannot answer this ({error.detail}); see /docs"}, error.status_code
        )

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": unexpected(error)}, 500)  # the guard logs it


class _JobResponse(StreamingResponse):
    """A job's events, line by line as they come; the job is cancelled when nobody takes them any more."""

    def __init__(self, job: Job, queue: JobQueue):
        super().__init__(_lines(job), media_type="application/x-ndjson")
        self._job, self._queue = job, queue

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._queue.cancel(self._job)


async def _lines(job: Job) -> AsyncIterator[bytes]:
    while True:
        job.changed.clear()
        event = job.event
        yield JSONResponse({"job": job.id, **event}).body + b"\n"
        if event["state"] in FINAL:  # this one, not one that came while it was sent
            return
        with suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(job.changed.wait(), HEARTBEAT_SECONDS)


async def _receive_voxels(request: Request, description: Description, text: str, id: str) -> np.ndarray:
    """Return the voxels of the request's body, checked against their hash."""
    voxels, received, digest = np.empty(description.nbytes, np.uint8), 0, new_volume_id(text)
    async for piece in request.stream():
        if received + len(piece) > len(voxels):
            raise Refusal(400, f"more voxels came than the {description.nbytes:,} bytes that were described")
        voxels[received : received + len(piece)] = np.frombuffer(piece, np.uint8)
        digest.update(piece)
        received += len(piece)
    if received < len(voxels):
        raise Refusal(400, f"{received:,} of {len(voxels):,} bytes of voxels came; send the volume again")
    if digest.hexdigest() != id:
        raise Refusal(400, "the voxels are not those that were announced (hash differs); send the volume again")
    return voxels


def _check_size(description: Description, settings: Settings) -> None:
    if description.nbytes > settings.body_bytes:
        limit = f"{settings.body_bytes:,} at most"
        raise Refusal(413, f"the volume takes {description.nbytes:,} bytes and the server takes {limit}; crop it")


def _volume(voxels: np.ndarray, description: Description) -> Volume:
    fields = asdict(description)
    typed = voxels.view(fields.pop("dtype")).reshape(fields.pop("shape"))
    return Volume(typed, name=NAME, **fields)


def _description(volume: Volume) -> Description:
    geometry = volume.spacing_mm, volume.origin_mm, volume.direction
    return describe(volume.voxels, *geometry, volume.modality, volume.window, volume.flat, volume.spacing_known)


def _volume_id(volume: Volume, description: Description) -> str:
    digest = new_volume_id(description.to_json())
    digest.update(np.ascontiguousarray(volume.voxels, description.dtype).data)
    return digest.hexdigest()


def _held(store: Store, id: str) -> HeldVolume:
    held = store.get_volume(id)
    if held is None:
        raise Refusal(404, "the server does not hold this volume, or no longer; send it again")
    return held


def _result(store: Store, id: str, number: int) -> HeldResults:
    results = store.get_results(id)
    if results is None or number >= len(results.levels):
        raise Refusal(404, "the server does not hold this result, or no longer; segment again")
    return results


def _raw(array: np.ndarray) -> StreamingResponse:
    """Answer with an array's bytes, piece by piece, so that a slow reader costs no copy of the whole."""
    view = np.ascontiguousarray(array).reshape(-1).data

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(view), PIECE_BYTES):
            yield bytes(view[start : start + PIECE_BYTES])

    headers = {"Content-Length": str(view.nbytes)}
    return StreamingResponse(pieces(), media_type="application/octet-stream", headers=headers)
