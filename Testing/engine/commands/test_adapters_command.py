"""Import of the paper's own checkpoints: the same adapter under other names, or one clear line."""

import functools
import os
import shutil
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import files, make_adapter, make_base, run_command
from safetensors.torch import load_file, save_file

from engine import adapters
from engine.imaging.volumes.volume import Volume
from engine.models.bases import open_base
from engine.models.bundle import load_model, read_card
from engine.models.converting import convert, read_checkpoint
from engine.nets.clipseg import CLIPSeg
from engine.prompts import encode_prompts
from engine.segmentation.segmenter import Segmenter

KINDS = [(method, placement) for method in ("shallow", "dense") for placement in ("V", "VL", "VLC")]
THEIRS = {  # written out here once more, so that a wrong table in the engine is seen
    "shallow": {"vision": "vision_extract_adapters", "text": "text_extract_adapters"},
    "dense": {
        "vision_attentions": "v_attn_adapters",
        "vision_mlps": "v_out_adapters",
        "text_attentions": "l_attn_adapters",
        "text_mlps": "l_out_adapters",
    },
}


def reference_state(bundle, base_folder) -> dict:
    """Return the state dict that the reference's Lightning module has with a bundle's adapter on a base."""
    method = read_card(bundle).method
    state = {}
    for name, weight in load_file(bundle / "adapter.safetensors").items():
        part, *number, layer, kind = name.split(".")
        theirs = "cond_adapter" if part == "conditional" else THEIRS[method][part]
        state[".".join(["net", theirs, *number, {"down": "fc1", "up": "fc2"}[layer], kind])] = weight
    for name, weight in open_base(str(base_folder)).load_network().state_dict().items():
        state[f"net.clipseg.{name}"] = weight
        if method == "shallow" and name.startswith("clip."):
            state[f"net.{name}"] = weight
    return state


def lightning(state: dict, **settings) -> dict:
    """Return what Lightning 2.0 saves beside the state dict for the reference's module and its callbacks."""
    optimizer = functools.partial(torch.optim.AdamW, lr=0.001, weight_decay=0.001)
    scheduler = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, factor=0.3, patience=5)
    settings = {"optimizer": optimizer, "scheduler": scheduler, "threshold": 0.5, "multi_class": False} | settings
    return {
        "epoch": 7,
        "global_step": 80,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 8}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val/dice'}": {"best_model_score": torch.tensor(0.9)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(80.0)}}, "param_groups": [{"lr": 0.001}]}],
        "lr_schedulers": [{"factor": 0.3, "best": 0.2, "mode_worse": float("inf"), "_last_lr": [0.001]}],
        "MixedPrecisionPlugin": {"scale": 65536.0, "growth_factor": 2.0},
        "hparams_name": "kwargs",
        "hyper_parameters": settings | {"scheduler_monitor": "val/loss", "log_output_masks": True},
        "datamodule_hyper_parameters": {"train_val_split": (0.8, 0.2), "batch_size": 32},
    }


@pytest.fixture
def checkpoint(tmp_path, tiny_base):
    """Write a checkpoint of a random adapter, after `change` to its state dict; return its path."""

    def write(method="dense", placement="VL", change=lambda state: None):
        state = reference_state(make_adapter(tmp_path / "original", tiny_base, method, placement), tiny_base)
        change(state)
        torch.save(lightning(state), tmp_path / "best.ckpt")
        return tmp_path / "best.ckpt"

    return write


@pytest.fixture
def import_command(monkeypatch, capsys, tmp_path, tiny_base):
    """Run the command on the tiny base, or another; return exit code, output and errors."""

    def run(path, *arguments, base=tiny_base):
        output = ["-o", tmp_path / "imported", "--base", base]
        return run_command(monkeypatch, capsys, adapters.main, "import", path, *output, *arguments)

    return run


def refused(result, tmp_path) -> str:
    """Check that a run ended with code 2, in one line, with nothing written; return the line."""
    code, _, errors = result
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert not (tmp_path / "imported").exists()
    return errors


@pytest.mark.parametrize(("method", "placement"), KINDS)
def test_an_imported_adapter_gives_the_very_same_probabilities(
    import_command, checkpoint, tmp_path, tiny_base, method, placement
):
    code, printed, errors = import_command(checkpoint(method, placement), "--prompts", "brain", "polyp")
    assert code == 0, errors
    assert f"{method} {placement}, width" in printed and "cannot be checked" not in printed
    pixels = np.random.default_rng(0).integers(0, 255, (2, 40, 50)).astype(np.uint8)
    results = []
    for folder in (tmp_path / "original", tmp_path / "imported"):
        segmenter = Segmenter(str(folder), str(tiny_base), device="cpu", precision="fp32")
        segmenter.set_volume(Volume(pixels))
        results.append(segmenter.segment("left lung").probability)
    assert results[0].std() > 0 and np.array_equal(*results)


@pytest.mark.parametrize(("method", "placement"), KINDS)
def test_an_imported_adapter_computes_what_the_reference_does(checkpoint, tmp_path, tiny_base, method, placement):
    def enlarge(state):  # so that no adapter hides behind the base
        for name in state:
            if "adapter" in name:
                state[name] = state[name] * 3

    path, base = checkpoint(method, placement, enlarge), open_base(str(tiny_base))
    converted = convert(read_checkpoint(path), base)
    network = base.load_network()
    tokens = encode_prompts(base.load_tokenizer(), ["polyp", "the left lung of a brain"])
    torch.manual_seed(0)
    pixel_values = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = network(pixel_values=pixel_values, input_ids=tokens).logits
        expected = reference_logits(network, read_checkpoint(path).weights, pixel_values, tokens)
        ours = CLIPSeg(base.load_network(), converted.adapter).eval()(pixel_values, tokens)
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def reference_logits(network, state, pixel_values, tokens):
    """The reference in other words: Hugging Face's own encoders and decoder, its adapters applied by hooks."""

    def adapted(name, features):
        weights = [state[f"{name}.{layer}.{kind}"] for layer in ("fc1", "fc2") for kind in ("weight", "bias")]
        return features + F.linear(F.linear(features, *weights[:2]).relu(), *weights[2:]).relu()

    def has(name):
        return f"{name}.fc1.weight" in state

    def hook(module, name):
        def replace(module, inputs, output):
            if isinstance(output, tuple):
                return adapted(name, output[0]), *output[1:]
            return adapted(name, output)

        if has(name):
            module.register_forward_hook(replace)

    vision, text, layers = network.clip.vision_model, network.clip.text_model, network.config.extract_layers
    for number in range(max(layers)):
        for letter, encoder in (("v", vision), ("l", text)):
            hook(encoder.encoder.layers[number].self_attn, f"{letter}_attn_adapters.{number}")
            hook(encoder.encoder.layers[number].mlp, f"{letter}_out_adapters.{number}")
    states = vision(pixel_values=pixel_values, output_hidden_states=True).hidden_states
    activations = [states[layer + 1] for layer in layers]
    if has("vision_extract_adapters.0"):
        activations = [adapted(f"vision_extract_adapters.{i}", a) for i, a in enumerate(activations)]
    output = text(input_ids=tokens, output_hidden_states=True)
    condition = network.clip.text_projection(output.pooler_output)
    if has("cond_adapter"):
        condition = adapted("cond_adapter", condition)
    end = (tokens == network.config.text_config.eos_token_id).int().argmax(dim=1)
    for index, layer in enumerate(layers):
        if has(f"text_extract_adapters.{index}"):
            token = output.hidden_states[layer + 1][torch.arange(len(tokens)), end]
            condition = condition + adapted(f"text_extract_adapters.{index}", token)
    return network.decoder(activations, condition).logits


def test_the_card_says_where_the_adapter_is_from(import_command, checkpoint, tmp_path, tiny_base):
    path = checkpoint("dense", "VLC")
    options = ["--prompts", "polyp", "--data-set", "Kvasir-SEG", "--licence", "CC-BY-4.0", "--name", "kvasir"]
    code, _, errors = import_command(path, *options)
    assert code == 0, errors
    card = read_card(tmp_path / "imported")
    assert (card.name, card.data_set, card.licence, card.prompts) == (
        "kvasir",
        "Kvasir-SEG",
        "CC-BY-4.0",
        ["polyp"],
    )
    assert (card.method, card.placement, card.hidden_size, card.threshold) == ("dense", "VLC", 64, 0.5)
    assert card.metrics == {} and card.base_sha256 == open_base(str(tiny_base)).sha256
    assert card.training["imported_from"] == "best.ckpt" and card.training["base_checked"] is True
    text = (tmp_path / "imported" / "README.md").read_text()
    assert card.training["imported_sha256"] in text and "not measured" in text


def test_by_default_it_goes_into_the_users_models_under_the_checkpoints_name(
    monkeypatch, capsys, checkpoint, tmp_path, tiny_base
):
    arguments = ["import", checkpoint(), "--base", tiny_base]
    code, printed, errors = run_command(monkeypatch, capsys, adapters.main, *arguments)
    assert code == 0, errors
    folder = tmp_path / "models" / "best"
    assert files(folder) == {"adapter.safetensors", "card.json", "README.md"} and str(folder) in printed
    assert "Prompts: not stated" in (folder / "README.md").read_text()
    assert Segmenter("best", str(tiny_base), device="cpu").card.prompts == []
    code, _, errors = run_command(monkeypatch, capsys, adapters.main, *arguments)
    assert code == 2 and "--overwrite" in errors and "--resume" not in errors
    assert run_command(monkeypatch, capsys, adapters.main, *arguments, "--overwrite")[0] == 0


def test_the_width_and_the_threshold_are_those_of_the_checkpoint(tmp_path, tiny_base):
    state = reference_state(make_adapter(tmp_path / "a", tiny_base, "dense", "V"), tiny_base)
    for name in [name for name in state if "_adapters" in name]:
        state[name] = (
            state[name][:5] if "fc1" in name else state[name][..., :5] if "weight" in name else state[name]
        )
    torch.save(lightning(state, threshold=0.3), tmp_path / "narrow.ckpt")
    checkpoint = read_checkpoint(tmp_path / "narrow.ckpt")
    assert checkpoint.threshold == 0.3
    assert convert(checkpoint, open_base(str(tiny_base))).hidden_size == 5


@pytest.mark.parametrize("kind", ["state dict", "net alone", "safetensors", "old format"])
def test_weights_alone_are_read_from_every_kind_of_file(import_command, tmp_path, tiny_base, kind):
    original = make_adapter(tmp_path / "original", tiny_base, "shallow", "VL")
    state = {k: w for k, w in reference_state(original, tiny_base).items() if "clip" not in k}
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "net alone":
        state = {name.removeprefix("net."): weight for name, weight in state.items()}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind != "old format")
    code, printed, errors = import_command(path)
    assert code == 0, errors
    assert "cannot be checked" in printed and read_card(tmp_path / "imported").training["base_checked"] is False
    ours = load_model(open_base(str(tiny_base)), original, read_card(original)).adapter.state_dict()
    imported = load_file(tmp_path / "imported" / "adapter.safetensors")
    assert imported.keys() == ours.keys() and all(torch.equal(imported[name], ours[name]) for name in ours)


def drop(name):
    return lambda state: state.pop(name)


def put(name, weight):
    return lambda state: state.update({name: weight})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("net.l_out_adapters.1.fc2.bias"), "lacks l_out_adapters.1.fc2.bias"),
        (put("net.v_attn_adapters.2.fc1.bias", torch.zeros(64)), "left over v_attn_adapters.2.fc1.bias"),
        (put("net.head.weight", torch.zeros(3)), "left over head.weight"),
        (put("net.v_out_adapters.0.fc1.bias", torch.zeros(63)), "v_out_adapters.0.fc1.bias (63,) for (64,)"),
        (put("net.v_out_adapters.0.fc2.bias", torch.full((32,), torch.nan)), "not finite (v_out_adapters.0.fc2"),
        (put("net.text_extract_adapters.0.fc1.bias", torch.zeros(1)), "holds no shallow or dense adapter"),
        (put("net.v_attn_adapters.0.fc1.weight", torch.zeros(())), "v_attn_adapters.0.fc1.weight () for"),
        (drop("net.clipseg.decoder.film_add.bias"), "1 weights differ, decoder.film_add.bias"),
        (put("net.cond_adapter.fc1.weight", torch.zeros(9, 16)), "cond_adapter.fc1.weight (9, 16) for (256, 16)"),
    ],
)
def test_weights_that_do_not_fit_are_named(import_command, checkpoint, tmp_path, change, message):
    assert message in refused(import_command(checkpoint("dense", "VL", change)), tmp_path)


def test_adapters_in_the_text_branch_alone_are_refused(import_command, checkpoint, tmp_path):
    def without_vision(state):
        for name in [name for name in state if name.startswith("net.v_")]:
            del state[name]

    line = refused(import_command(checkpoint("dense", "VLC", without_vision)), tmp_path)
    assert "has its adapters in LC; this engine knows VL, V, VLC" in line


def test_another_base_is_refused_and_the_right_one_named(
    import_command, checkpoint, tmp_path, tiny_base, other_base
):
    path = checkpoint("shallow", "VL")
    assert "it is no base here" in refused(import_command(path, base=other_base), tmp_path)
    shutil.copytree(tiny_base, tmp_path / "models" / "mine")
    line = refused(import_command(path, base=other_base), tmp_path)
    assert "is not the base 'other'" in line and "add --base mine" in line


def test_a_checkpoint_for_a_larger_base_is_refused(import_command, checkpoint, tmp_path):
    line = refused(import_command(checkpoint("dense", "V"), base="mini"), tmp_path)
    assert "is not the base 'mini'" in line

    def alone(state):
        for name in [name for name in state if "clipseg" in name]:
            del state[name]

    line = refused(import_command(checkpoint("dense", "V", alone), base="mini"), tmp_path)
    assert "does not fit the base 'mini'" in line and "lacks" in line and "of another shape" in line


def test_checkpoints_of_other_models_and_truncated_files_are_refused(import_command, checkpoint, tmp_path):
    torch.save({"state_dict": {"net.backbone.weight": torch.zeros(2)}}, tmp_path / "unet.ckpt")
    assert "but backbone" in refused(import_command(tmp_path / "unet.ckpt"), tmp_path)
    for content in ({"state_dict": 3}, [1], {"a": "text"}):
        torch.save(content, tmp_path / "odd.pt")
        assert "holds no state dict" in refused(import_command(tmp_path / "odd.pt"), tmp_path)
    whole = checkpoint().read_bytes()
    for suffix, content in ((".ckpt", whole[:-999]), (".ckpt", b""), (".ckpt", b"text"), (".safetensors", whole)):
        path = tmp_path / f"bad{suffix}"
        path.write_bytes(content)
        assert "is damaged or no checkpoint" in refused(import_command(path), tmp_path)
    assert "there is no file" in refused(import_command(tmp_path / "nowhere.ckpt"), tmp_path)


class Hostile:
    """Runs `function(*arguments)` where it is unpickled without care."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("function", [os.mkdir, eval, open])
def test_a_hostile_checkpoint_is_refused_and_runs_nothing(
    import_command, checkpoint, tmp_path, function, new_format
):
    trap = tmp_path / "trap"
    attack = {os.mkdir: [str(trap)], eval: [f"__import__('os').mkdir({str(trap)!r})"], open: [str(trap), "w"]}
    settings = {"optimizer": Hostile(function, *attack[function])}
    state = {"net.v_attn_adapters.0.fc1.bias": torch.zeros(64)}
    torch.save(
        lightning(state) | {"hyper_parameters": settings},
        tmp_path / "hostile.ckpt",
        _use_new_zipfile_serialization=new_format,
    )
    line = refused(import_command(tmp_path / "hostile.ckpt"), tmp_path)
    assert ("save its weights alone" in line) is new_format
    assert not trap.exists()
    torch.load(tmp_path / "hostile.ckpt", weights_only=False)  # the trap is a real one
    assert trap.exists()


def test_code_named_like_the_settings_is_not_run_either(import_command, tmp_path, monkeypatch, tiny_base):
    trap = tmp_path / "trap"
    code = ModuleType("src.losses")
    code.spring = lambda: trap.mkdir()
    code.spring.__module__, code.spring.__qualname__ = "src.losses", "spring"
    monkeypatch.setitem(sys.modules, "src", ModuleType("src"))
    monkeypatch.setitem(sys.modules, "src.losses", code)
    state = reference_state(make_adapter(tmp_path / "a", tiny_base, "dense", "V"), tiny_base)
    torch.save(lightning(state, loss_fn=Hostile(code.spring)), tmp_path / "best.ckpt")
    code, _, errors = import_command(tmp_path / "best.ckpt")
    assert code == 0, errors
    assert not trap.exists() and (tmp_path / "imported" / "card.json").is_file()


def test_an_adapter_is_not_written_into_a_bases_folder(import_command, checkpoint, tmp_path, capsys, monkeypatch):
    folder = make_base(tmp_path / "models" / "best", seed=2)
    before = files(folder)
    code, _, errors = run_command(monkeypatch, capsys, adapters.main, "import", checkpoint(), "--base", folder)
    assert code == 2 and "holds a base" in errors and files(folder) == before


@pytest.mark.parametrize("name", ["a/b", "..", "."])
def test_a_name_that_is_a_path_is_refused(monkeypatch, capsys, checkpoint, tiny_base, name):
    arguments = ["import", checkpoint(), "--base", tiny_base, "--name", name]
    code, _, errors = run_command(monkeypatch, capsys, adapters.main, *arguments)
    assert code == 2 and "is no name for an adapter" in errors
