"""The benchmark: what it compares is the same thing, and its page holds what it measured."""

import json

import numpy as np
import psutil
import pytest
import torch
from conftest import run_command, wait_until
from torch.utils.flop_counter import FlopCounterMode

from engine import benchmark
from engine.commands import benchmark as work
from engine.data import open_data_set
from engine.models.bases import open_base
from engine.models.bundle import load_model
from engine.segmentation.segmenter import Segmenter
from engine.speed.clock import peak_memory
from engine.speed.inputs import draw_pictures
from engine.speed.page import PLOTS
from engine.speed.segmenting import compiled, encoder_gflop
from engine.speed.training import PlainStep
from engine.training.plan import Plan
from engine.training.samples import Sampler
from engine.training.trainer import Trainer

TINY = work.Sizes((), (2, 3), (1, 2), (1, 2), (1, 2), (1, 2), 2, 3, False)


@pytest.mark.parametrize("method", work.METHODS)
def test_plain_training_takes_the_same_steps_as_the_engines(tmp_path, tiny_base, method):
    base, plan = open_base(str(tiny_base)), Plan(method=method, absent_rate=0).resolved()
    data_set = open_data_set(draw_pictures(tmp_path / "pictures", 2), "train")
    batch = [Sampler(data_set, base.side).draw(position, (0, 0)) for position in range(2)]
    plain = PlainStep(base, plan, torch.device("cpu"))
    folder = tmp_path / "checkpoint.safetensors"
    trainer = Trainer(base, plan, data_set, None, (), folder, torch.device("cpu"), "fp32", "none")
    plain.model.adapter.load_state_dict(trainer.model.trained.state_dict())
    losses = [(plain(batch), trainer.step(batch)) for _ in range(3)]
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-4)
    assert losses[0][0] != losses[-1][0]  # something was learnt


def test_all_that_grows_is_measured_and_shown(tmp_path, tiny_base, monkeypatch, capsys):
    monkeypatch.setattr(work, "QUICK", TINY)
    words = ["--all", "--quick", "--base", tiny_base, "--slices", 2, "--repeats", 1, "--device", "cpu"]
    code, printed, errors = run_command(monkeypatch, capsys, benchmark.main, *words, "-o", tmp_path / "page")
    assert code == 0, errors
    figures = json.loads((tmp_path / "page" / "benchmark.json").read_text())
    page = (tmp_path / "page" / "README.md").read_text()
    assert figures["machine"]["device"] in page and "benchmark.json" in printed
    assert figures["comparisons"][0]["largest_difference"] < 0.01 and figures["comparisons"][0]["dice"] > 0.99
    for name, (_, seconds, memory) in PLOTS.items():
        rows = figures["growth"][name]
        assert [row[name] for row in rows] == list(getattr(TINY, name))
        assert all(row[key] > 0 for row in rows for key in seconds)
        assert all(key in row for row in rows for key in memory)
        assert f"({name}.png)" in page and (tmp_path / "page" / f"{name}.png").stat().st_size > 5000
    assert {row["method"] for row in figures["training"]} == set(work.METHODS)
    (memory,) = figures["training_memory"]
    assert 0 < memory["recomputing_kept_mib"] < memory["engine_kept_mib"] and "the floor" in page
    code, _, errors = run_command(monkeypatch, capsys, benchmark.main, *words, "-o", tmp_path / "page")
    assert code == 2 and "exists already" in errors


def test_a_page_needs_a_folder(monkeypatch, capsys):
    code, _, errors = run_command(monkeypatch, capsys, benchmark.main, "--all")
    assert code == 2 and "-o FOLDER" in errors


def test_the_floor_counts_the_operations_that_pytorch_counts(tiny_base):
    segmenter = Segmenter(base=str(tiny_base), device="cpu", precision="fp32")
    net = load_model(segmenter.base)
    net.vision.config._attn_implementation = "eager"  # PyTorch does not count its fused attention on a CPU
    features = torch.zeros(1, (segmenter.base.side // net.patch_size) ** 2 + 1, net.shape.vision_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for layer in net.vision.encoder.layers:
            features = layer(features, attention_mask=None)
    assert encoder_gflop(segmenter) == pytest.approx(counter.get_total_flops() / 1e9, rel=0.01)


def test_peaks_of_memory_are_seen(monkeypatch):
    looks, look = [], psutil.Process.memory_info
    monkeypatch.setattr(psutil.Process, "memory_info", lambda process: looks.append(None) or look(process))
    with peak_memory(torch.device("cpu")) as peak_mib:
        held = np.ones(64 << 20, np.uint8)
        enough = len(looks) + 3
        wait_until(lambda: len(looks) >= enough)
        del held
        assert 60 < peak_mib() < 200


def test_compiling_is_measured_beside_what_the_engine_does(tiny_base):
    segmenter = Segmenter(base=str(tiny_base), device="cpu", precision="fp32")
    figures = compiled(segmenter, 1)
    if not figures:
        pytest.skip("PyTorch cannot compile here; it needs a C++ compiler")
    assert figures["relative_difference"] < 1e-3
    assert figures["warm_up_seconds"] > figures["compiled_seconds"] > 0
