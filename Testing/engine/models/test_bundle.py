"""Bases and adapter bundles: what loads, and what is refused with a remedy."""

import json
import shutil

import pytest
import torch
from conftest import make_adapter
from safetensors.torch import load_file, save_file

from engine.errors import UserError
from engine.models.bases import open_base
from engine.models.bundle import SCHEMA_VERSION, check_base, find_adapter, load_model, read_card
from engine.nets.methods import METHODS


def load(adapter, base_folder):
    base = open_base(str(base_folder))
    return load_model(base, adapter, read_card(adapter)).trained


@pytest.mark.parametrize("method", METHODS)
def test_a_bundle_comes_back_as_it_was_saved(tmp_path, tiny_base, clip_bases, method):
    placement = METHODS[method].placements[-1]
    base = clip_bases / "residual" if method == "cris" else tiny_base
    folder = make_adapter(tmp_path / "a", base, method, placement, prompts=["polyp"], plane="coronal")
    card = read_card(folder)
    assert (card.method, card.placement, card.prompts, card.plane) == (method, placement, ["polyp"], "coronal")
    saved, loaded = load_file(folder / "adapter.safetensors"), load(folder, base).state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)
    assert "polyp" in (folder / "README.md").read_text()


def test_another_base_is_refused_and_the_remedy_named(tiny_adapter, other_base):
    with pytest.raises(UserError, match=r"was trained on the base .* choose that base with --base"):
        load(tiny_adapter, other_base)


def test_a_changed_byte_is_refused(tiny_adapter, tiny_base):
    path = tiny_adapter / "adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"checksum differs.*get the adapter again"):
        load(tiny_adapter, tiny_base)


def test_a_truncated_file_is_refused(tiny_adapter, tiny_base):
    path = tiny_adapter / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="get the adapter again"):
        load(tiny_adapter, tiny_base)


def test_missing_weights_are_refused(tiny_adapter, tiny_base):
    (tiny_adapter / "adapter.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter\.safetensors is missing"):
        load(tiny_adapter, tiny_base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, "update the engine"),
        ({"schema_version": None}, "is not the card of an adapter"),
        ({"threshold": "high"}, "wrong or unknown entries: threshold"),
        ({"surprise": 1}, "wrong or unknown entries: surprise"),
        ({"hidden_size": 7}, "does not fit its card"),
        ({"placement": "X"}, "does not fit its card"),
        ({"method": "future"}, "this engine knows shallow, dense"),
    ],
)
def test_a_card_that_cannot_be_right_is_refused(tiny_adapter, tiny_base, change, message):
    path = tiny_adapter / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load(tiny_adapter, tiny_base)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff"])
def test_a_card_that_is_no_card_is_refused(tiny_adapter, text):
    (tiny_adapter / "card.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="get the adapter again"):
        read_card(tiny_adapter)


def test_an_incomplete_card_is_refused(tiny_adapter):
    path = tiny_adapter / "card.json"
    values = json.loads(path.read_text())
    del values["base_sha256"]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="incomplete"):
        read_card(tiny_adapter)


def test_an_unknown_adapter_lists_those_there_are(tmp_path, tiny_adapter):
    shutil.copytree(tiny_adapter, tmp_path / "models" / "mine")
    assert find_adapter("mine") == tmp_path / "models" / "mine"
    with pytest.raises(UserError, match=r"no adapter 'yours'; there are .*mine"):
        find_adapter("yours")


def test_a_pickled_base_is_converted_once_and_equals_its_safetensors_twin(tmp_path, tiny_base):
    pickled = tmp_path / "public"
    shutil.copytree(tiny_base, pickled, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(tiny_base / "model.safetensors"), pickled / "pytorch_model.bin")
    converted, original = open_base(str(pickled)), open_base(str(tiny_base))
    assert converted.sha256 == original.sha256
    assert sorted(p.name for p in pickled.iterdir() if p.suffix == ".safetensors") == []
    stamp = (converted.folder / "model.safetensors").stat().st_mtime_ns
    again = open_base(str(pickled))
    assert (again.folder / "model.safetensors").stat().st_mtime_ns == stamp
    for ours, theirs in zip(again.load_network().parameters(), original.load_network().parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_pickle_that_holds_code_is_refused(tmp_path, tiny_base):
    shutil.copytree(tiny_base, tmp_path / "bad", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"weight": tmp_path}, tmp_path / "bad" / "pytorch_model.bin")
    with pytest.raises(UserError, match="damaged or holds more than weights"):
        open_base(str(tmp_path / "bad"))


def test_damaged_weights_of_a_base_are_refused(tmp_path, tiny_base):
    folder = shutil.copytree(tiny_base, tmp_path / "copy")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match="damaged"):
        open_base(str(folder))


def test_a_base_whose_weights_are_not_those_of_its_card_is_refused(tmp_path, tiny_base):
    folder = shutil.copytree(tiny_base, tmp_path / "copy")
    (folder / "card.json").write_text(json.dumps({"sha256": open_base(str(tiny_base)).sha256}))
    assert open_base(str(folder)).name == "copy"
    tensors = load_file(folder / "model.safetensors")
    tensors["decoder.film_add.bias"] = tensors["decoder.film_add.bias"] + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="not those of its card"):
        open_base(str(folder))


def test_the_hash_tells_bases_apart_and_checks_pass_for_the_right_one(tiny_adapter, tiny_base, other_base):
    assert open_base(str(tiny_base)).sha256 != open_base(str(other_base)).sha256
    assert check_base(read_card(tiny_adapter), open_base(str(tiny_base))) is None


def test_the_public_base_without_a_network_names_the_folder_and_the_flag(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with pytest.raises(UserError, match=r"CIDAS/clipseg-rd64-refined into .*models/clipseg.*--base FOLDER"):
        open_base("clipseg")


def test_the_public_base_is_found_in_the_users_models_folder(tmp_path, tiny_base):
    shutil.copytree(tiny_base, tmp_path / "models" / "clipseg")
    assert open_base("clipseg").folder == tmp_path / "models" / "clipseg"


def test_a_folder_with_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="holds a 'bert' model"):
        open_base(str(tmp_path))


def test_an_unknown_base_lists_those_there_are():
    with pytest.raises(UserError, match=r"no base 'maxi'; there are clip-rn50, clip-vit-b-16, clipseg"):
        open_base("maxi")


def test_a_base_with_weights_missing_is_refused_not_filled_with_chance(tmp_path, tiny_base):
    folder = shutil.copytree(tiny_base, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("decoder.film")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights \(decoder\.film"):
        open_base(str(folder)).load_network()


def test_a_base_without_its_tokenizer_is_refused(tmp_path, tiny_base):
    folder = shutil.copytree(tiny_base, tmp_path / "copy")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        open_base(str(folder)).load_tokenizer()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        open_base(str(folder)).load_tokenizer()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "[]"),
        ("card.json", "[]"),
        ("preprocessor_config.json", '{"size": {"longest_edge": 3}}'),
        ("preprocessor_config.json", '{"size": 64, "image_mean": [0.5]}'),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, tiny_base, name, text):
    folder = shutil.copytree(tiny_base, tmp_path / "copy")
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        open_base(str(folder))


def test_a_configuration_that_does_not_fit_its_weights_is_refused(tmp_path, tiny_base):
    folder = shutil.copytree(tiny_base, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"reduce_dim": 8}))
    with pytest.raises(UserError, match="cannot be loaded"):
        open_base(str(folder)).load_network()


def test_settings_changed_after_the_conversion_are_seen(tmp_path, tiny_base):
    pickled = shutil.copytree(tiny_base, tmp_path / "p", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(tiny_base / "model.safetensors"), pickled / "pytorch_model.bin")
    assert open_base(str(pickled)).side == 64
    (pickled / "preprocessor_config.json").write_text('{"size": 96}')
    assert open_base(str(pickled)).side == 96


@pytest.mark.parametrize("threshold", [0, 5, float("nan")])
def test_a_card_whose_threshold_is_no_probability_is_refused(tiny_adapter, threshold):
    card = json.loads((tiny_adapter / "card.json").read_text()) | {"threshold": threshold}
    (tiny_adapter / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="no probability"):
        read_card(tiny_adapter)
