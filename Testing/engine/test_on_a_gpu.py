"""A GPU gives what the CPU gives. Skipped where there is none."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from conftest import ball, make_adapter

from engine.data import open_data_set
from engine.errors import Cancelled
from engine.imaging.volumes.planes import ALL_PLANES
from engine.imaging.volumes.volume import Volume
from engine.models.bases import open_base
from engine.segmentation.segmenter import Segmenter
from engine.training.plan import Plan
from engine.training.trainer import Trainer

GPU = torch.device("cuda" if torch.cuda.is_available() else "mps")
pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() or torch.backends.mps.is_available()), reason="this machine has no GPU"
)
SHAPE = (9, 40, 48)
PLANES = ("axial", "sagittal", ALL_PLANES)


@pytest.fixture
def volume() -> Volume:
    voxels = np.random.default_rng(0).normal(100, 30, SHAPE).astype(np.int16)
    voxels[ball(SHAPE, (4, 20, 24), 8)] += 200
    voxels[[0, 5]] = voxels.min()  # slices of empty air
    return Volume(voxels, (1, 1, 2), (5, 6, 7), (-1, 0, 0, 0, -1, 0, 0, 0, 1))


def probabilities(adapter, volume: Volume, device: torch.device, precision: str = "fp32") -> list[np.ndarray]:
    segmenter = Segmenter(str(adapter), device=str(device), precision=precision, batch_size=2)
    results = []
    for plane in PLANES:
        for shifted in (volume, volume.with_voxels(volume.voxels + 1), volume):  # the last one is kept
            segmenter.set_volume(shifted, plane=plane)
            results += [segmenter.segment(prompt).probability for prompt in ("brain", "left lung")]
    assert segmenter.device == device  # and not the CPU in its place
    return results


@pytest.mark.parametrize("method", ["dense", "shallow", "lora", "full"])
def test_segments_are_those_of_the_cpu(tmp_path, tiny_base, volume, method):
    adapter = make_adapter(tmp_path / "a", tiny_base, method, noise=0.05)
    of_cpu, of_gpu = (probabilities(adapter, volume, device) for device in (torch.device("cpu"), GPU))
    assert np.std(of_cpu) > 0.01
    np.testing.assert_allclose(of_gpu, of_cpu, atol=5e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_close(tmp_path, tiny_base, volume, precision):
    adapter = make_adapter(tmp_path / "a", tiny_base, "dense", noise=0.05)
    exact = probabilities(adapter, volume, torch.device("cpu"))
    np.testing.assert_allclose(probabilities(adapter, volume, GPU, precision), exact, atol=0.05)


def test_large_results_come_back_in_pieces(tmp_path, tiny_base, volume, monkeypatch):
    adapter = make_adapter(tmp_path / "a", tiny_base)
    whole = probabilities(adapter, volume, GPU)
    monkeypatch.setattr("engine.segmentation.transfers.STAGED_BYTES", 1000)
    assert np.array_equal(probabilities(adapter, volume, GPU), whole)


def test_after_cancelling_in_the_middle_the_next_result_is_right(tmp_path, tiny_base, volume):
    def cancel(done: int, total: int) -> None:
        raise Cancelled

    adapter = make_adapter(tmp_path / "a", tiny_base)
    segmenter = Segmenter(str(adapter), device=str(GPU), precision="fp32", batch_size=1)
    with pytest.raises(Cancelled):
        segmenter.set_volume(volume, on_progress=cancel)
    segmenter.set_volume(volume)
    with pytest.raises(Cancelled):
        segmenter.segment("left lung", on_progress=cancel)
    after = segmenter.segment("brain").probability
    fresh = Segmenter(str(adapter), device=str(GPU), precision="fp32", batch_size=1)
    fresh.set_volume(volume)
    assert np.array_equal(after, fresh.segment("brain").probability)


def test_training_takes_the_cpus_steps_and_goes_on_from_its_checkpoint(tmp_path, tiny_base, pictures):
    def start(device: torch.device, folder: str) -> Trainer:
        plan = Plan(method="dense", batch_size=2, epochs=2, absent_rate=0, precision="fp32")
        data_set = open_data_set(pictures, "train")
        checkpoint = tmp_path / folder / "checkpoint.safetensors"
        return Trainer(open_base(str(tiny_base)), plan, data_set, data_set, (), checkpoint, device)

    def losses(trainer: Trainer, epochs: int = 2) -> list[float]:
        def stop(epoch) -> None:
            if epoch.number == epochs < 2:
                raise Cancelled

        with suppress(Cancelled):
            trainer.train(lambda done, total: None, stop)
        return [epoch.training_loss for epoch in trainer.history]

    of_cpu, of_gpu = losses(start(torch.device("cpu"), "cpu")), losses(start(GPU, "gpu"))
    np.testing.assert_allclose(of_gpu, of_cpu, rtol=1e-3)
    losses(start(GPU, "resumed"), epochs=1)
    resumed = start(GPU, "resumed")
    resumed.resume()
    np.testing.assert_allclose(losses(resumed), of_gpu, rtol=1e-4)
