"""Copies between the host and a GPU that go on while the GPU computes."""

from collections import deque

import numpy as np
import torch
from torch import Tensor

MOST_AHEAD = 2  # batches that are queued beside the one that is computed; more would delay progress and cancelling
STAGED_BYTES = 32 << 20


class Transfers:
    """Brings batches to a device and results back.

    With CUDA, copies to the device go through pinned memory in a stream of their own, so that the next batch is cut
    and copied while one is computed. Elsewhere PyTorch's streams and events of the CPU stand in, which do nothing:
    a CPU copies nothing, and MPS copies while the host waits.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._pinned = device.type == "cuda"
        self._runtime = torch.cuda if self._pinned else torch.cpu
        self._copies = self._runtime.Stream(device)
        self._queued: deque[torch.cuda.Event | torch.cpu.Event] = deque()

    def to_device(self, batch: np.ndarray | Tensor) -> Tensor:
        """Return a batch on the device; what is computed of it waits for the copy, and the host does not."""
        batch = torch.as_tensor(batch)
        if not self._pinned:
            return batch.to(self._device)
        computing = self._runtime.current_stream(self._device)
        with self._runtime.stream(self._copies):
            copied = batch.pin_memory().to(self._device, non_blocking=True)
        computing.wait_stream(self._copies)
        copied.record_stream(computing)  # its memory may be used again only after that
        return copied

    def end_batch(self) -> None:
        """Let the host go on to the next batch, or wait while too many are queued."""
        self._queued.append(self._mark())
        if len(self._queued) > MOST_AHEAD:
            self._queued.popleft().synchronize()

    def to_host(self, result: Tensor) -> np.ndarray:
        """Return a result in ordinary memory, through two pinned pieces that take turns: while one fills, the other
        is emptied."""
        if not self._pinned:
            return result.cpu().numpy()
        host = torch.empty(result.shape, dtype=result.dtype)
        length = STAGED_BYTES // result.dtype.itemsize
        filling = None
        for source, target in zip(result.flatten().split(length), host.flatten().split(length), strict=True):
            staged = torch.empty(len(source), dtype=source.dtype, pin_memory=True)
            staged.copy_(source, non_blocking=True)
            filled, filling = filling, (self._mark(), staged, target)
            _empty(filled)
        _empty(filling)
        return host.numpy()

    def _mark(self) -> torch.cuda.Event | torch.cpu.Event:
        event = self._runtime.Event()
        event.record(self._runtime.current_stream(self._device))
        return event


def _empty(filled: tuple | None) -> None:
    if filled:
        event, staged, target = filled
        event.synchronize()
        target.copy_(staged)
