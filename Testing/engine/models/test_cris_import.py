"""CRIS of its authors' checkpoint: the same net under other names, from which training can start."""

import pytest
import torch
from conftest import run_command

from engine import adapters, train
from engine.models import converting
from engine.models.bases import open_base
from engine.models.bundle import load_model, read_card
from engine.nets.cris import CRIS
from engine.nets.towers import new_clip
from engine.prompts import encode_prompts

RN50 = {
    "embed_dim": 1024,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
AUTHORS = {  # some names and shapes in DerrickWang005/CRIS.pytorch, for CLIP RN50
    "backbone.visual.conv1.weight": (32, 3, 3, 3),
    "backbone.visual.layer2.0.downsample.0.weight": (512, 256, 1, 1),
    "backbone.visual.attnpool.positional_embedding": (50, 2048),
    "backbone.visual.attnpool.connect.0.weight": (1024, 2048, 1, 1),
    "backbone.transformer.resblocks.11.attn.in_proj_weight": (1536, 512),
    "backbone.text_projection": (512, 1024),
    "neck.txt_proj.0.weight": (1024, 1024),
    "neck.f1_v_proj.0.weight": (1024, 1024, 1, 1),
    "neck.norm_layer.0.running_var": (1024,),
    "neck.f2_v_proj.0.weight": (512, 1024, 3, 3),
    "neck.f2_cat.0.weight": (512, 1536, 1, 1),
    "neck.f3_v_proj.0.weight": (256, 512, 3, 3),
    "neck.f3_cat.0.weight": (512, 768, 1, 1),
    "neck.f4_proj5.0.weight": (512, 1024, 3, 3),
    "neck.f4_proj4.0.weight": (512, 512, 3, 3),
    "neck.f4_proj3.1.bias": (512,),
    "neck.aggr.0.weight": (512, 1536, 1, 1),
    "neck.coordconv.0.conv1.0.weight": (512, 514, 3, 3),
    "neck.coordconv.1.0.weight": (512, 512, 3, 3),
    "decoder.layers.2.self_attn.in_proj_weight": (1536, 512),
    "decoder.layers.0.multihead_attn.out_proj.weight": (512, 512),
    "decoder.layers.0.cross_attn_norm.weight": (512,),
    "decoder.layers.0.norm3.bias": (512,),
    "decoder.layers.0.ffn.4.weight": (512, 2048),
    "decoder.norm.weight": (512,),
    "proj.vis.1.0.weight": (512, 512, 3, 3),
    "proj.vis.4.weight": (256, 256, 1, 1),
    "proj.txt.weight": (2305, 1024),
}


def test_our_weights_have_the_authors_names_and_shapes():
    with torch.device("meta"):
        net = CRIS(new_clip(RN50))
    theirs = {converting._their_cris_name(name): tuple(weight.shape) for name, weight in net.state_dict().items()}
    assert len(theirs) == len(net.state_dict())
    assert {name: theirs.get(name) for name in AUTHORS} == AUTHORS


@pytest.fixture
def cris(clip_bases, tmp_path):
    """A net with random weights, its base, and the checkpoint of it as several GPUs wrote it."""
    base = open_base(str(clip_bases / "residual"))
    torch.manual_seed(7)
    net = CRIS(base.load_network(), "released").eval()
    names = {name: f"module.{converting._their_cris_name(name)}" for name in net.state_dict()}
    state = {names[name]: weight for name, weight in net.state_dict().items()}
    state["module.backbone.logit_scale"] = torch.ones(())
    torch.save({"epoch": 3, "best_iou": 0.7, "state_dict": state}, tmp_path / "cris_best.pth")
    return net, base, tmp_path / "cris_best.pth"


def test_an_imported_cris_is_the_same_and_training_starts_from_it(cris, monkeypatch, capsys, tmp_path, pictures):
    net, base, checkpoint = cris
    words = ["import", checkpoint, "--base", base.folder, "-o", tmp_path / "refcoco"]
    code, printed, errors = run_command(monkeypatch, capsys, adapters.main, *words)
    assert code == 0, errors
    assert "wrote" in printed and ": cris, " in printed
    card = read_card(tmp_path / "refcoco")
    assert (card.method, card.variant, card.training["code"]) == ("cris", "released", "DerrickWang005/CRIS.pytorch")
    inputs = torch.randn(2, 3, base.side, base.side), encode_prompts(base.load_tokenizer(), ["disc", "left lung"])
    with torch.no_grad():
        torch.testing.assert_close(load_model(base, tmp_path / "refcoco", card)(*inputs), net(*inputs))

    words = ["--data", pictures, "--base", base.folder, "--method", "cris", "--protocol", "paper", "--epochs", 1]
    words += ["--precision", "fp32", "--device", "cpu", "--start", tmp_path / "refcoco", "--learning-rate", 1e-30]
    code, _, errors = run_command(monkeypatch, capsys, train.main, *words, "-o", tmp_path / "trained")
    assert code == 0, errors
    trained = load_model(base, tmp_path / "trained", read_card(tmp_path / "trained"))
    torch.testing.assert_close(trained.projector.kernel.weight, net.projector.kernel.weight)


def test_a_checkpoint_of_another_width_is_refused(cris, monkeypatch, capsys, tmp_path):
    _, base, checkpoint = cris
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["module.proj.txt.weight"] = torch.zeros(3, 3)
    torch.save(content, checkpoint)
    words = ["import", checkpoint, "--base", base.folder, "-o", tmp_path / "refcoco"]
    code, _, errors = run_command(monkeypatch, capsys, adapters.main, *words)
    assert code == 2 and "of another shape proj.txt.weight" in errors and not (tmp_path / "refcoco").exists()
