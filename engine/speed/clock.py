"""Seconds and memory of pieces of work, measured side by side in one run."""

import ctypes
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version

import psutil
import torch

from engine.segmentation.devices import cpu_capabilities

PACKAGES = ("torch", "transformers", "numpy")
SAMPLE_SECONDS = 0.01
MIB = 1 << 20


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a piece of work takes until its device is done."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def side_by_side(works: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of several pieces of work, which take turns so that all meet the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            seconds[name].append(seconds_of(work, device))
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], float]]:
    """Watch memory (see `held_mib`).

    Yields:
        a function that returns the highest so far, in MiB, without what was held before.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = held_mib(device)
        yield lambda: torch.cuda.max_memory_allocated(device) / MIB - before
        return
    _give_back()
    ended = threading.Event()
    before = highest = held_mib(device)

    def watch() -> None:
        nonlocal highest
        while not ended.wait(SAMPLE_SECONDS):
            highest = max(highest, held_mib(device))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: max(highest, held_mib(device)) - before
    finally:
        ended.set()
        watcher.join()


def held_mib(device: torch.device) -> float:
    """Return the memory that is taken now: on a GPU by PyTorch's tensors there, on a CPU by the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / MIB
    return psutil.Process().memory_info().rss / MIB


def machine(device: torch.device) -> dict:
    """Return what a figure must be read with: the device's name, threads, load and versions."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "load": round(psutil.getloadavg()[0], 1),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30)),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_capabilities().get("cpu_name") or platform.processor() or platform.machine()


def _give_back() -> None:
    """Give freed memory back to the system, where the C library would keep it and a peak could hide in it."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
