"""Copies to and from a device: nothing is lost or mixed up, and the host is never far ahead.

Where there is no GPU, PyTorch's streams and events of the CPU stand in for those of CUDA, and ordinary memory for
pinned memory: that shows which pieces go where, and not that copies overlap.
"""

import numpy as np
import pytest
import torch

from engine.segmentation import transfers
from engine.segmentation.transfers import MOST_AHEAD, Transfers

CUDA = torch.cuda.is_available()


@pytest.fixture
def staged(monkeypatch) -> Transfers:
    """Transfers that stage everything, in small pieces."""
    monkeypatch.setattr(transfers, "STAGED_BYTES", 64)
    if CUDA:
        return Transfers(torch.device("cuda"))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **settings: empty(*size, **settings))
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    made = Transfers(torch.device("cpu"))
    made._pinned = True
    return made


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float32])
@pytest.mark.parametrize("shape", [(1,), (32,), (33,), (5, 7, 9)])
def test_what_comes_back_is_what_went_in(staged, shape, dtype):
    values = (100 * np.random.default_rng(0).random(shape)).astype(dtype)
    back = staged.to_host(staged.to_device(values))
    assert back.dtype == dtype and np.array_equal(back, values)


def test_a_cut_that_runs_backwards_arrives_in_its_order(staged):
    stack = np.flip(np.arange(24).reshape(2, 3, 4), (0, 2))[[0, 1]]
    assert np.array_equal(staged.to_host(staged.to_device(stack)), stack)


def test_the_host_waits_for_the_oldest_of_too_many_batches(monkeypatch):
    class Event:
        made = 0

        def __init__(self):
            Event.made += 1
            self.number = Event.made

        def record(self, stream):
            pass

        def synchronize(self):
            waited.append(self.number)

    waited = []
    monkeypatch.setattr(torch.cpu, "Event", Event)
    at_work = Transfers(torch.device("cpu"))
    for _ in range(MOST_AHEAD + 3):
        at_work.end_batch()
    assert waited == [1, 2, 3]
