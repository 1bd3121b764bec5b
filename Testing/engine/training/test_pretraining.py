"""Pretraining a base: stages, what an interruption costs, towers and teachers, packed pictures, validation."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, SIDE, run_command, wait_until
from onnx_towers import SIZE, new_dinov2, write_onnx
from safetensors.torch import load_file
from test_training import launch
from transformers import BertConfig, BertModel, BertTokenizerFast, CLIPSegForImageSegmentation

from engine import pretrain
from engine.commands.pretrain import pack_all
from engine.errors import UserError
from engine.imaging.reading import read_volume
from engine.models.bases import open_base
from engine.models.pretrained import PackagedFile
from engine.models.vocabulary import train_tokenizer
from engine.nets.clipseg import CLIPSeg
from engine.prompts import encode_prompts
from engine.segmentation.segmenter import Segmenter
from engine.training.packing import read_pack
from engine.training.pretraining import Pretrainer, learning_rate
from engine.training.recipe import Recipe, Stage, build, open_sources
from engine.training.store import PictureStore
from engine.training.teaching import Lesson


@pytest.fixture
def recipe(pictures, volumes, tmp_path):
    """A recipe for a tiny base on both data sets; the roots of the data sets are the file's folder."""
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    values = {
        "name": "small",
        "licence": "CC0-1.0",
        "seed": 1,
        "network": {
            "vision": widths | {"num_hidden_layers": 3},
            "text": widths,
            "side": SIDE,
            "patch_size": 16,
            "reduce_dim": 16,
            "decoder_intermediate_size": 32,
            "extract_layers": [0, 1, 2],
            "vocabulary": 300,
        },
        "sources": [
            {"folder": pictures.name, "region": "sky", "weight": 1, "mirror": True},
            {
                "folder": volumes.name,
                "region": "court",
                "weight": 1,
                "mirror": False,
                "planes": ["axial", "coronal"],
            },
        ],
        "prompts_per_image": 2,
        "absent_rate": 0.1,
        "plain_rate": 0.5,
        "weight_decay": 0.01,
        "gradient_clip": 1.0,
        "stages": [
            {"side": SIDE // 2, "batch_size": 4, "steps": 6, "learning_rate": 1.0e-3},
            {"side": SIDE, "batch_size": 2, "steps": 4, "learning_rate": 1.0e-3},
        ],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "recipe.yaml"


def test_a_base_is_pretrained_and_segments(recipe, tmp_path, monkeypatch, capsys, pictures):
    out = tmp_path / "small"
    arguments = ["--recipe", recipe, "--data", recipe.parent, "-o", out, "--device", "cpu"]
    code, _, errors = run_command(monkeypatch, capsys, pretrain.main, *arguments)
    assert code == 0, errors
    card = json.loads((out / "card.json").read_text())
    assert card["licence"] == "CC0-1.0" and card["data_sets"] == {"discs": ["disc"], "balls": ["ball", "cube"]}
    assert card["sha256"] == open_base(str(out)).sha256
    assert card["metrics"].keys() == {"discs, test split, plain class prompt"}
    rates = card["presence"]["all data sets, validation splits"]
    assert (rates["present"], rates["absent"]) == (
        3,
        2,
    )  # a disc, a ball and a cube; each set asked for the other's
    assert card["presence_threshold"] == open_base(str(out)).presence_threshold
    assert CLIPSegForImageSegmentation.from_pretrained(out).config.reduce_dim == 16
    segmenter = Segmenter(base=str(out), device="cpu")
    segmenter.set_volume(read_volume(pictures / "images" / "3.png"))
    assert 0 < segmenter.segment("disc").probability.mean() < 1


def new_run(recipe: Recipe, packed: Path, folder: Path, lesson=None, **settings) -> Pretrainer:
    folder.mkdir(exist_ok=True)
    sets = [read_pack(packed / "train" / source.folder) for source in recipe.all_sources]
    tokenizer = train_tokenizer(set.union(*(s.wordings for s in sets)), 300)
    network = build(recipe, tokenizer)
    model = CLIPSeg(network, freeze=False)
    store = PictureStore(sets, recipe.all_sources, recipe.read_wordings(), torch.device("cpu"))
    return Pretrainer(model, tokenizer, recipe, store, lesson, folder, **settings)


@pytest.mark.parametrize("trains", ["all", "decoder"])
def test_pretraining_that_was_stopped_goes_on_as_if_it_had_not_been(recipe, tmp_path, trains):
    values = yaml.safe_load(recipe.read_text())
    values["stages"][1] |= {"trains": trains, "views": 2}
    recipe.write_text(yaml.safe_dump(values))
    recipe = Recipe.read(recipe)
    pack_all(recipe, [recipe.folder], tmp_path / "packed")

    def trained(name, stop_at=None, resume=False):
        run, steps = new_run(recipe, tmp_path / "packed", tmp_path / name, save_every=2), []

        def on_step(step):
            steps.append((step.stage, step.number))
            if steps[-1] == stop_at:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            run.train(on_step, resume=resume)
        return run.model.state_dict(), steps

    whole, _ = trained("whole")
    trained("parts", stop_at=(1, 3))
    parts, steps = trained("parts", resume=True)
    assert steps == [(1, 3), (1, 4)]
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def with_tower(recipe, tmp_path) -> Recipe:
    """The recipe on a pretrained tower, whose file lies where pip would have put it."""
    write_onnx(tmp_path / "tower.onnx", new_dinov2())
    digest = hashlib.sha256((tmp_path / "tower.onnx").read_bytes()).hexdigest()
    tower = {"package": "a-tower", "version": "1.0", "file": "a/tower.onnx", "sha256": digest}
    place = PackagedFile(**tower).place
    place.parent.mkdir(parents=True)
    (tmp_path / "tower.onnx").rename(place)
    values = yaml.safe_load(recipe.read_text()) | {"tower": tower}
    values["network"]["vision"] = {**SIZE, "num_hidden_layers": 3, "intermediate_size": 96, "hidden_act": "gelu"}
    recipe.write_text(yaml.safe_dump(values))
    return Recipe.read(recipe)


def test_a_base_on_a_tower_gives_in_hugging_face_what_it_gives_here(recipe, tmp_path):
    tokenizer = train_tokenizer(["disc", "ball"], 300)
    network = build(with_tower(recipe, tmp_path), tokenizer)
    network.half().save_pretrained(tmp_path / "base")
    loaded = CLIPSegForImageSegmentation.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    pixels, input_ids = torch.randn(2, 3, SIDE, SIDE), encode_prompts(tokenizer, ["disc", "ball"])
    with torch.no_grad():
        theirs = loaded(pixel_values=pixels, input_ids=input_ids).logits
        ours = CLIPSeg(loaded).eval()(pixels, input_ids)
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_towers_layers_move_less_the_nearer_they_are_to_the_picture(recipe, tmp_path):
    values = yaml.safe_load(recipe.read_text())
    rates = {"tower_rate": 0.1, "depth_decay": 0.5}
    values["stages"] = [{"batch_size": 2, "steps": 2, "learning_rate": 1e-3, **rates}]
    recipe.write_text(yaml.safe_dump(values))
    recipe = with_tower(recipe, tmp_path)
    pack_all(recipe, [recipe.folder], tmp_path / "packed")
    run = new_run(recipe, tmp_path / "packed", tmp_path / "out")
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    run.train(lambda step: None)
    moved = {name: (weight - before[name]).abs().max().item() for name, weight in run.model.state_dict().items()}
    layers = [moved[f"vision.encoder.layers.{depth}.mlp.fc1.weight"] for depth in range(3)]
    assert layers == pytest.approx([0.25 * layers[2], 0.5 * layers[2], layers[2]], rel=0.2)
    assert layers[2] == pytest.approx(0.1 * moved["decoder.reduces.0.weight"], rel=0.2)
    assert not any(moved[name] for name in moved if name.startswith(("vision.embeddings", "vision.pre_layrnorm")))


def test_a_sentence_encoder_teaches_what_is_like_what(recipe, tmp_path):
    words = {"trained": ["ball", "round ball", "cube", "square cube"], "held_out": ["sphere"]}
    (tmp_path / "words.yaml").write_text(yaml.safe_dump({"ball": words}))
    place = write_teacher(tmp_path)
    values = yaml.safe_load(recipe.read_text())
    values |= {"teacher": place, "wordings": "words.yaml", "plain_rate": 1.0}
    values["stages"] = [{"batch_size": 8, "steps": 40, "learning_rate": 3e-3, "trains": "text"}]
    recipe.write_text(yaml.safe_dump(values))
    recipe = Recipe.read(recipe)
    pack_all(recipe, [recipe.folder], tmp_path / "packed")
    lesson = Lesson.load(tmp_path / "packed" / "lesson.safetensors")
    assert "round ball" in lesson.phrases and "Kidney" in lesson.phrases and "sphere" not in lesson.phrases
    assert torch.allclose(lesson.embeddings.norm(dim=1), torch.ones(len(lesson.phrases)), atol=1e-2)
    run, losses = new_run(recipe, tmp_path / "packed", tmp_path / "out", lesson=lesson), []
    run.train(lambda step: losses.append(step.loss))
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def write_teacher(tmp_path) -> dict:
    """A tiny sentence encoder in a ZIP file, where pip would have put it."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "aeiou"),
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    folder = tmp_path / "teacher"
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(folder)
    archive = Path(shutil.make_archive(str(tmp_path / "model"), "zip", folder))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    teacher = {"package": "a-teacher", "version": "1.0", "file": "a/model.zip", "sha256": digest}
    place = PackagedFile(**teacher).place
    place.parent.mkdir(parents=True)
    archive.rename(place)
    return teacher


def test_another_machine_trains_from_packed_pictures_alone(recipe, tmp_path, monkeypatch, capsys):
    """Pack here, train there, measure here again."""
    arguments = ["--recipe", recipe, "--packed", tmp_path / "packed", "-o", tmp_path / "out", "--device", "cpu"]
    code, _, errors = run_command(monkeypatch, capsys, pretrain.main, *arguments, "--data", tmp_path, "--pack-only")
    assert code == 0 and not (tmp_path / "out").exists(), errors
    for folder in ("discs", "balls"):
        (tmp_path / folder).rename(tmp_path / f"away-{folder}")
    code, _, errors = run_command(monkeypatch, capsys, pretrain.main, *arguments)
    assert code == 0, errors
    there = open_base(str(tmp_path / "out"))
    assert not (tmp_path / "out" / "card.json").exists()
    (tmp_path / "out" / "checkpoint.safetensors").unlink()  # the base alone comes back
    for folder in ("discs", "balls"):
        (tmp_path / f"away-{folder}").rename(tmp_path / folder)
    code, _, errors = run_command(monkeypatch, capsys, pretrain.main, *arguments, "--data", tmp_path, "--card-only")
    assert code == 0, errors
    assert json.loads((tmp_path / "out" / "card.json").read_text())["sha256"] == there.sha256


def test_a_killed_pretraining_goes_on(recipe, tmp_path):
    values = yaml.safe_load(recipe.read_text())
    values["stages"] = [{"batch_size": 2, "steps": 55, "learning_rate": 1e-3, "trains": "decoder", "views": 2}]
    recipe.write_text(yaml.safe_dump(values))
    pack_all(Recipe.read(recipe), [tmp_path], tmp_path / "packed")
    out = tmp_path / "out"
    options = ["--recipe", recipe, "--packed", tmp_path / "packed", "-o", out, "--device", "cpu"]
    command = [sys.executable, "-m", "engine.pretrain", *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: (out / "checkpoint.safetensors").is_file())
        process.kill()
    result = subprocess.run([*command, "--resume"], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "pretraining 51 / 55" in result.stderr
    assert open_base(str(out)).side == SIDE


def test_a_stage_for_the_decoder_leaves_the_tower_as_it_is(recipe, tmp_path):
    values = yaml.safe_load(recipe.read_text())
    values["stages"] = [{"batch_size": 2, "steps": 3, "learning_rate": 1e-2, "trains": "decoder", "views": 2}]
    recipe.write_text(yaml.safe_dump(values))
    recipe = Recipe.read(recipe)
    pack_all(recipe, [recipe.folder], tmp_path / "packed")
    run = new_run(recipe, tmp_path / "packed", tmp_path / "out")
    before = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    encoded = []
    run.train(lambda step: None, lambda done, total: encoded.append((done, total)))
    moved = {
        name.split(".")[0]
        for name, weight in run.model.state_dict().items()
        if not torch.equal(weight, before[name])
    }
    assert moved == {"text", "text_projection", "decoder"}
    views = list((tmp_path / "out" / "views").glob("*.fp16"))
    assert len(views) == 2 and encoded[-1] == (2 * len(run.store),) * 2

    encoded.clear()
    views[0].write_bytes(views[0].read_bytes()[:-10])  # as a killed process leaves it
    again = new_run(recipe, tmp_path / "packed", tmp_path / "out")
    again.train(lambda step: None, lambda done, total: encoded.append(done))
    assert len(encoded) == 1  # the picture that was cut off alone is encoded anew
    for name, weight in again.model.state_dict().items():
        assert torch.allclose(weight, run.model.state_dict()[name], atol=1e-2), name


def test_two_processes_pretrain_what_one_does(recipe, tmp_path, monkeypatch, capsys):
    arguments = ["--recipe", recipe, "--data", recipe.parent, "--device", "cpu", "-o"]
    assert run_command(monkeypatch, capsys, pretrain.main, *arguments, tmp_path / "one")[0] == 0
    result = launch([*arguments, tmp_path / "two"], 2, "engine.pretrain")
    assert result.returncode == 0, result.stderr
    one, two = (load_file(tmp_path / n / "checkpoint.safetensors") for n in ("one", "two"))
    gradients = [name for name in one if name.endswith("momentum_buffer")]  # what the steps went by, on the whole
    assert gradients and all((one[n] - two[n]).norm() < 0.5 * one[n].norm() for n in gradients)


def test_a_base_starts_from_an_earlier_one_of_another_size(recipe, tmp_path, monkeypatch, capsys):
    arguments = ["--recipe", recipe, "--data", recipe.parent, "--device", "cpu", "-o"]
    assert run_command(monkeypatch, capsys, pretrain.main, *arguments, tmp_path / "first")[0] == 0
    first = open_base(str(tmp_path / "first"))
    values = yaml.safe_load(recipe.read_text())
    values["network"]["side"] = 2 * SIDE
    network = build(Recipe(**values), first.load_tokenizer(), first)
    old, new = first.load_network().state_dict(), network.state_dict()
    resized = {name for name in old if old[name].shape != new[name].shape}
    assert resized == {"clip.vision_model.embeddings.position_embedding.weight"}
    assert all(torch.equal(old[name], new[name]) for name in old.keys() - resized)
    name = resized.pop()
    assert torch.equal(old[name][0], new[name][0])
    grids = [weights[name][1:].mean(0) for weights in (old, new)]
    assert torch.allclose(*grids, atol=0.02) and grids[0].abs().max() > 0

    values["network"]["vision"] = {**values["network"]["vision"], "intermediate_size": 8}
    with pytest.raises(UserError, match="has other layers"):
        build(Recipe(**values), first.load_tokenizer(), first)


def test_the_learning_rate_rises_then_falls_to_a_hundredth():
    stage = Stage(side=SIDE, batch_size=1, steps=1000, learning_rate=1.0)
    rates = [learning_rate(stage, number) for number in range(1, 1001)]
    assert rates[0] == pytest.approx(0.01, rel=0.01) and max(rates) > 0.97
    assert 80 < int(np.argmax(rates)) < 120
    assert rates[-1] == pytest.approx(0.01)


def test_a_data_set_that_is_missing_is_named(recipe, tmp_path):
    values = Recipe.read(recipe)
    with pytest.raises(UserError, match="discs is in none of"):
        open_sources(values, [tmp_path / "elsewhere"])
