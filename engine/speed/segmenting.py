"""How long segmenting takes and what memory it needs, and how both grow."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from engine.evaluation.metrics import dice
from engine.imaging.volumes.volume import Volume
from engine.models.bundle import load_model
from engine.nets.faster import pack_for_cpu
from engine.nets.prompted import PromptedNet
from engine.segmentation.cache import EncodingCache
from engine.segmentation.segmenter import DEFAULT_THRESHOLD, Segmenter
from engine.speed.clock import MIB, held_mib, peak_memory, seconds_of, side_by_side
from engine.speed.inputs import PROMPTS, random_volume
from engine.speed.plain import PlainForward

WINDOW = "percentiles"
PLAIN_SLICES = 8  # of a larger volume are run the plain way, whose time is proportional to the slices
OPERATIONS_SHOWN = 8
PRODUCT_SIDE, PRODUCT_REPEATS = 4096, 10
BATCH_REPEATS = 3
Row = dict[str, float]


def compare(segmenter: Segmenter, plain: PlainForward, slices: int, repeats: int) -> Row:
    """Return seconds of both ways for the same volume, the memory of the cache and the largest difference."""
    volume = random_volume(slices)
    _warm_up(segmenter, plain)
    numbers = iter(range(1, repeats + 1))  # added to the voxels, so that nothing is found in the cache
    found: dict[str, np.ndarray] = {}
    encoding: list[float] = []

    def first() -> None:
        other = volume.with_voxels(volume.voxels + next(numbers))
        encoding.append(seconds_of(lambda: _set_volume(segmenter, other), segmenter.device))
        found["engine"] = segmenter.segment(PROMPTS[0]).probability

    def plainly() -> None:
        found["plain"] = plain.segment(volume, PROMPTS[0])

    works = {"plain": plainly, "first": first, "further": lambda: segmenter.segment(PROMPTS[1])}
    seconds = side_by_side(works, repeats, segmenter.device)
    return {
        "slices": slices,
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "encode_seconds": statistics.median(encoding),
        "first_speedup": seconds["plain"] / seconds["first"],
        "further_speedup": seconds["plain"] / seconds["further"],
        "cache_kb_per_slice": segmenter.cache.nbytes / len(segmenter.cache) / slices / 1000,
        "largest_difference": float(np.abs(found["plain"] - found["engine"].astype(np.float32)).max()),
        "dice": _agreement(*found.values()),
    }


def over_slices(segmenter: Segmenter, plain: PlainForward, counts: Sequence[int]) -> list[Row]:
    """Return seconds to encode and to answer a prompt, and the peak of memory, for volumes of several lengths."""
    rows = []
    for count in counts:
        volume = random_volume(count)
        _forget(segmenter)
        plain_seconds = _plain_seconds(plain, count)
        with peak_memory(segmenter.device) as peak_mib:
            encode = seconds_of(lambda: _set_volume(segmenter, volume), segmenter.device)  # noqa: B023
            prompt = seconds_of(lambda: segmenter.segment(PROMPTS[1]), segmenter.device)
            row = {"encode_seconds": encode, "prompt_seconds": prompt, "peak_mib": peak_mib()}
        rows.append({"slices": count, "plain_seconds": plain_seconds} | row)
    return rows


def over_prompts(segmenter: Segmenter, plain: PlainForward, slices: int, counts: Sequence[int]) -> list[Row]:
    """Return the seconds of one volume with growing numbers of prompts, each run anew from the volume on."""
    volume, rows = random_volume(slices), []
    plain_seconds = _plain_seconds(plain, slices)

    def answer(count: int) -> None:
        _forget(segmenter)
        _set_volume(segmenter, volume)
        for number in range(count):
            segmenter.segment(f"{PROMPTS[number % len(PROMPTS)]} {number}")

    with peak_memory(segmenter.device) as peak_mib:
        for count in counts:
            seconds = seconds_of(lambda: answer(count), segmenter.device)  # noqa: B023
            row = {"prompts": count, "plain_seconds": plain_seconds * count, "seconds": seconds}
            rows.append(row | {"peak_mib": peak_mib()})
    return rows


def over_adapters(
    adapters: Sequence[Path], settings: dict, plain: PlainForward, slices: int, counts: Sequence[int]
) -> list[Row]:
    """Return seconds and memory held where growing numbers of adapters stay warm and are asked about one volume.

    Args:
        settings: of each `Segmenter`.
    """
    volume, encodings = random_volume(slices), EncodingCache()
    plain_seconds = _plain_seconds(plain, slices)
    rows, warm = [], []
    load = encode = prompt = 0.0
    before = held_mib(plain.device)
    for number, adapter in enumerate(adapters, start=1):
        started = time.perf_counter()
        warm.append(Segmenter(str(adapter), **settings))
        warm[-1].cache = encodings  # of the volume, as on the server
        load += time.perf_counter() - started
        encode += seconds_of(lambda: _set_volume(warm[-1], volume), plain.device)
        prompt += seconds_of(lambda: warm[-1].segment(PROMPTS[0]), plain.device)
        if number in counts:
            seconds = {"load_seconds": load, "encode_seconds": encode, "prompt_seconds": prompt}
            held = held_mib(plain.device) - before
            plain_total = plain_seconds * number
            rows.append({"adapters": number, **seconds, "plain_seconds": plain_total, "held_mib": held})
    return rows


def over_volumes(segmenter: Segmenter, plain: PlainForward, slices: int, counts: Sequence[int]) -> list[Row]:
    """Return what growing numbers of held volumes take, and the seconds to ask about the first one again."""
    rows: list[Row] = []
    plain_seconds = _plain_seconds(plain, slices)
    _forget(segmenter)
    first, held = random_volume(slices, seed=1), []
    for number in range(1, max(counts) + 1):
        held.append(first if number == 1 else random_volume(slices, seed=number))
        _set_volume(segmenter, held[-1])
        if number in counts:

            def come_back() -> None:
                _set_volume(segmenter, first)
                segmenter.segment(PROMPTS[0])

            seconds = seconds_of(come_back, segmenter.device)
            voxels = sum(volume.voxels.nbytes for volume in held) / MIB
            maps = segmenter.cache.nbytes / MIB
            row = {"plain_seconds": plain_seconds, "return_seconds": seconds}
            rows.append({"volumes": number, **row, "voxels_mib": voxels, "encodings_mib": maps})
    return rows


def over_batches(segmenter: Segmenter, plain: PlainForward, counts: Sequence[int]) -> list[Row]:
    """Return seconds a slice, and the peak of memory, where the encoder takes several slices at a time."""
    rows = []
    for count in counts:
        pixel_values = _pixel_values(segmenter, count)
        works = {
            "plain": partial(plain.encode, pixel_values.float()),
            "engine": partial(_encode, segmenter.model, pixel_values),
        }
        with peak_memory(segmenter.device) as peak_mib:
            works["engine"]()
            row = {"slices_at_a_time": count, "peak_mib": peak_mib()}
        seconds = side_by_side(works, BATCH_REPEATS, segmenter.device)
        rows.append(row | {f"{name}_slice_seconds": value / count for name, value in seconds.items()})
    return rows


def compiled(segmenter: Segmenter, repeats: int) -> Row:
    """Return the seconds that a batch takes as the engine runs it and through `torch.compile`, and those that the
    compiler takes first. Where it cannot work, as without a C++ compiler, nothing."""
    pixel_values = _pixel_values(segmenter, segmenter.batch_size)
    net = load_model(segmenter.base).to(segmenter.device, segmenter.model.dtype)
    net.encode_images = torch.compile(net.encode_images)
    nets = {"engine": segmenter.model, "compiled": net}
    works = {name: partial(_encode, each, pixel_values) for name, each in nets.items()}
    try:
        with torch.compiler.config.patch(force_disable_caches=True):  # as if for the first time
            warm_up = seconds_of(works["compiled"], segmenter.device)
    except Exception:  # PyTorch raises many kinds
        return {}
    seconds = side_by_side(works, repeats, segmenter.device)
    found, expected = (work().float() for work in works.values())
    return {
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "batch_size": segmenter.batch_size,
        "warm_up_seconds": warm_up,
        "relative_difference": float((found - expected).norm() / expected.norm()),
    }


def product_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the rate at which the device multiplies large square matrices, in 10⁹ operations a second."""
    layer = nn.Sequential(nn.Linear(PRODUCT_SIDE, PRODUCT_SIDE, device=device, dtype=dtype))
    if device.type == "cpu":
        pack_for_cpu(layer)
    features = torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, device=device, dtype=dtype)
    with torch.inference_mode():
        seconds = [seconds_of(lambda: layer(features), device) for _ in range(PRODUCT_REPEATS)]
    return 2 * PRODUCT_SIDE**3 / min(seconds) / 1e9


@torch.inference_mode()
def _encode(net: PromptedNet, pixel_values: Tensor) -> Tensor:
    return net.encode_images(pixel_values)


def _pixel_values(segmenter: Segmenter, count: int) -> Tensor:
    side = segmenter.base.side
    return torch.randn(count, 3, side, side, device=segmenter.device).to(segmenter.model.dtype)


def encoder_gflop(segmenter: Segmenter) -> float:
    """Return the operations of the vision layers that one slice of a CLIPSeg needs, in 10⁹."""
    vision = segmenter.model.vision.config
    tokens = (segmenter.base.side // vision.patch_size) ** 2 + 1
    width, inside = vision.hidden_size, vision.intermediate_size
    layer = 2 * tokens * (4 * width**2 + 2 * width * inside) + 4 * tokens**2 * width
    return len(segmenter.model.vision.encoder.layers) * layer / 1e9


def where_the_time_goes(segmenter: Segmenter, slices: int) -> dict[str, list[Row]]:
    """Return the shares of PyTorch's operations in encoding and in answering a prompt, the largest first."""
    volume = random_volume(slices)
    _forget(segmenter)
    works = {"encoding": lambda: _set_volume(segmenter, volume), "a prompt": lambda: segmenter.segment(PROMPTS[0])}
    return {name: _shares(work, segmenter.device) for name, work in works.items()}


def _shares(work: Callable[[], None], device: torch.device) -> list[Row]:
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        work()
    kind = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    spent = {event.key: getattr(event, kind) for event in profiler.key_averages()}
    whole = sum(spent.values()) or 1  # some systems let no program see the times of their GPU
    largest = sorted(spent, key=spent.get, reverse=True)[:OPERATIONS_SHOWN]
    return [{"operation": name, "share": spent[name] / whole} for name in largest]


def _plain_seconds(plain: PlainForward, slices: int) -> float:
    """Return the seconds of the plain way for a prompt, from at most `PLAIN_SLICES` of the slices."""
    few = random_volume(min(slices, PLAIN_SLICES))
    return seconds_of(lambda: plain.segment(few, PROMPTS[0]), plain.device) * slices / len(few.voxels)


def _agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Dice of the masks of two probabilities."""
    one, other = one >= DEFAULT_THRESHOLD, other >= DEFAULT_THRESHOLD
    return dice(int((one & other).sum()), int(one.sum()), int(other.sum()))


def _warm_up(segmenter: Segmenter, plain: PlainForward) -> None:
    few = random_volume(2)
    plain.segment(few, PROMPTS[0])
    _set_volume(segmenter, few)
    segmenter.segment(PROMPTS[0])
    _forget(segmenter)


def _set_volume(segmenter: Segmenter, volume: Volume) -> None:
    segmenter.set_volume(volume, "axial", WINDOW)


def _forget(segmenter: Segmenter) -> None:
    segmenter.forget_volume()
    segmenter.cache = EncodingCache()
    gc.collect()
