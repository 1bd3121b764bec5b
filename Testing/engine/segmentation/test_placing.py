"""Models on their device: one copy of a base for all adapters that leave it as it is, and the same results."""

import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SIDE, make_adapter
from safetensors.torch import load_file, save_file

from engine.errors import UserError
from engine.imaging.volumes.volume import Volume
from engine.models.bases import open_base
from engine.models.bundle import load_model, read_card
from engine.nets.methods import ADAPTERS
from engine.nets.prompted import PromptedNet
from engine.prompts import encode_prompts
from engine.segmentation import placing
from engine.segmentation.placing import place_model
from engine.segmentation.segmenter import Segmenter

CPU = torch.device("cpu")
CHANGING = {"decoder", "full"}


def place(base_folder: Path, adapter: Path | None) -> PromptedNet:
    card = read_card(adapter) if adapter else None
    return place_model(open_base(str(base_folder)), adapter, card, CPU, torch.float32)


def storages(model: PromptedNet) -> set[int]:
    """Return where the convolutions and embeddings of the base lie, which are never laid out anew."""
    return {p.data_ptr() for name, p in model.vision.embeddings.named_parameters()}


def logits(model: PromptedNet, base_folder: Path) -> torch.Tensor:
    pixel_values = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    input_ids = encode_prompts(open_base(str(base_folder)).load_tokenizer(), ["brain", "left lung"])
    with torch.inference_mode():
        return model(pixel_values, input_ids)


@pytest.mark.parametrize("method", ADAPTERS)
def test_a_model_on_a_shared_base_gives_what_it_gives_alone(tmp_path, tiny_base, method):
    others = [make_adapter(tmp_path / kind, tiny_base, kind, noise=0.05) for kind in ADAPTERS if kind != method]
    held = [place(tiny_base, folder) for folder in others]  # with hooks and weights of their own
    adapter = make_adapter(tmp_path / method, tiny_base, method, noise=0.1)
    model = place(tiny_base, adapter)
    alone = load_model(open_base(str(tiny_base)), adapter, read_card(adapter))
    torch.testing.assert_close(logits(model, tiny_base), logits(alone, tiny_base), atol=1e-4, rtol=0)
    assert any(storages(other) == storages(model) for other in held) == (method not in CHANGING)


def test_a_base_is_let_go_of_with_the_last_model_on_it(tmp_path, tiny_base):
    gc.collect()
    before = len(placing._networks)
    one, other = place(tiny_base, None), place(tiny_base, make_adapter(tmp_path / "a", tiny_base, "dense"))
    assert len(placing._networks) == before + 1
    del one
    gc.collect()
    assert len(placing._networks) == before + 1 and logits(other, tiny_base).isfinite().all()
    del other
    gc.collect()
    assert len(placing._networks) == before


def test_a_base_whose_placing_failed_is_not_taken_for_a_placed_one(tiny_base, monkeypatch):
    gc.collect()
    prepare = placing._prepare

    def run_out_of_memory(net, device, dtype):
        net.to("meta")
        raise torch.OutOfMemoryError

    monkeypatch.setattr(placing, "_prepare", run_out_of_memory)
    with pytest.raises(torch.OutOfMemoryError) as failure:  # it holds the base, as an interactive shell would
        place(tiny_base, None)
    monkeypatch.setattr(placing, "_prepare", prepare)
    assert logits(place(tiny_base, None), tiny_base).isfinite().all(), failure


def test_bases_of_equal_weights_and_other_settings_are_not_shared(tmp_path, tiny_base):
    shutil.copytree(tiny_base, tmp_path / "other")
    config = json.loads((tiny_base / "config.json").read_text())
    config["conditional_layer"] = 1 - config["conditional_layer"]
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    one, other = place(tiny_base, None), place(tmp_path / "other", None)
    assert one.decoder.conditional_layer != other.decoder.conditional_layer


def test_weights_that_were_replaced_after_they_were_hashed_are_refused(tmp_path, tiny_base):
    shutil.copytree(tiny_base, tmp_path / "base")
    base = open_base(str(tmp_path / "base"))
    file = base.folder / "model.safetensors"
    save_file({name: weight + 1 for name, weight in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(UserError, match="were replaced"):
        place_model(base, None, None, CPU, torch.float32)


@pytest.mark.parametrize("method", ["shallow", "decoder"])
def test_adapters_behind_one_encoder_share_what_it_gives(tmp_path, tiny_base, monkeypatch, method):
    volume = Volume(np.random.default_rng(0).normal(100, 10, (5, 20, 24)).astype(np.float32))
    folders = [make_adapter(tmp_path / f"{noise}", tiny_base, method, noise=noise) for noise in (0.05, 0.1)]
    first, second, alone = (Segmenter(str(folder), device="cpu") for folder in (*folders, folders[1]))
    first.set_volume(volume, plane="axial")
    second.cache = first.cache
    encoded = []
    monkeypatch.setattr(second.model, "activations", lambda pixel_values: encoded.append(pixel_values))
    second.set_volume(volume, plane="axial")
    alone.set_volume(volume, plane="axial")
    assert not encoded
    results = [segmenter.segment("brain").probability for segmenter in (first, second, alone)]
    assert np.array_equal(results[1], results[2]) and not np.array_equal(results[0], results[1])


def test_adapters_inside_the_encoder_are_encoded_each(tmp_path, tiny_base):
    volume = Volume(np.random.default_rng(0).normal(100, 10, (5, 20, 24)).astype(np.float32))
    folders = [make_adapter(tmp_path / f"{noise}", tiny_base, "dense", noise=noise) for noise in (0.05, 0.1)]
    first, second = (Segmenter(str(folder), device="cpu") for folder in folders)
    second.cache = first.cache
    for segmenter in (first, second):
        segmenter.set_volume(volume, plane="axial")
    assert len(first.cache) == 2
    assert not np.array_equal(first.segment("brain").probability, second.segment("brain").probability)
