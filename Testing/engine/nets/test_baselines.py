"""The baselines SAN and CRIS, the towers under them, and bases in open_clip's format."""

import json
import shutil
import sys

import pytest
import torch
from conftest import SIDE, own_folder
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from engine.data import open_splits
from engine.errors import UserError
from engine.models.bases import open_base
from engine.models.vocabulary import clip_tokenizer
from engine.nets.cris import CRIS
from engine.nets.methods import build_model
from engine.nets.san import SAN, attention_mask
from engine.nets.towers import encode_text, new_clip, resize_positions, towers_of
from engine.prompts import encode_prompts
from engine.training.losses import LOSSES
from engine.training.samples import Sampler, collate

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
PUBLIC = {  # model_cfg of timm/vit_base_patch16_clip_224.openai and timm/resnet50_clip.openai
    "clip-vit-b-16": {
        "embed_dim": 512,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
        "text_cfg": TEXT,
    },
    "clip-rn50": {
        "embed_dim": 1024,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None},
        "text_cfg": TEXT,
    },
}
PROMPTS = ["polyp", "left lung", "a bright ball in the brain"]


@pytest.fixture(params=["san", "san-on-clipseg", "cris"])
def case(request, clip_bases, tiny_base):
    """A net with random weights, and the base under it."""
    name = "residual" if request.param == "cris" else "transformer"
    base = open_base(str(tiny_base if request.param == "san-on-clipseg" else clip_bases / name))
    torch.manual_seed(5)
    return build(request.param, base), base


def build(method, base):
    return CRIS(base.load_network()) if method == "cris" else SAN(base.load_network(), hidden_size=24)


def inputs(base, slices=2, prompts=PROMPTS[:2]):
    torch.manual_seed(1)
    return torch.randn(slices, 3, base.side, base.side), encode_prompts(base.load_tokenizer(), prompts)


def count(parameters) -> int:
    return sum(parameter.numel() for parameter in parameters)


def test_san_trains_the_papers_8_4_million():
    with torch.device("meta"):
        net = SAN(new_clip(PUBLIC["clip-vit-b-16"]))
    assert count(net.trained.parameters()) == 8_370_354
    assert count(net.trained.parameters()) == pytest.approx(8.4e6, rel=0.01)


def test_cris_trains_the_papers_147_million():
    with torch.device("meta"):
        net = CRIS(new_clip(PUBLIC["clip-rn50"]))
    assert count(net.trained.parameters()) == 146_849_121
    assert count(net.trained.parameters()) == pytest.approx(147e6, rel=0.01)


def test_released_san_trains_7_12_million_and_fuses_the_first_layers(clip_bases):
    with torch.device("meta"):
        net = SAN(new_clip(PUBLIC["clip-vit-b-16"]), variant="released")
    assert count(net.trained.parameters()) == 8_370_354  # the state of both variants has the same names and shapes
    assert count(p for p in net.trained.parameters() if p.requires_grad) == pytest.approx(7.12e6, abs=0.005e6)
    base = open_base(str(clip_bases / "transformer"))
    torch.manual_seed(5)
    original = SAN(base.load_network(), 24).eval()
    released = SAN(base.load_network(), 24, "released").eval()
    released.trained.load_state_dict(original.trained.state_dict())
    pixel_values, input_ids = inputs(base)
    assert (original(pixel_values, input_ids) - released(pixel_values, input_ids)).abs().max() > 1e-4
    released(pixel_values, input_ids).square().sum().backward()
    for name, weight in released.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name


def test_released_cris_enlarges_bicubically_with_aligned_corners(clip_bases):
    base = open_base(str(clip_bases / "residual"))
    torch.manual_seed(5)
    original = CRIS(base.load_network()).eval()
    released = CRIS(base.load_network(), "released").eval()
    released.load_state_dict(original.state_dict())
    maps = []
    original.projector.register_forward_hook(lambda _, __, result: maps.append(result))
    pixel_values, input_ids = inputs(base)
    with torch.no_grad():
        plain, other = original(pixel_values, input_ids), released(pixel_values, input_ids)
    size = plain.shape[1:]
    expected = F.interpolate(maps[0][:, None], size=size, mode="bicubic", align_corners=True)[:, 0]
    torch.testing.assert_close(other, expected)
    assert (plain - other).abs().max() > 1e-4


def test_variants_that_a_method_does_not_have_are_refused(tiny_base):
    with pytest.raises(ValueError, match="'dense' has no variant 'released'"):
        build_model("dense", open_base(str(tiny_base)).load_network(), "VL", variant="released")


def test_the_towers_of_a_clipseg_give_hugging_faces_features(tiny_base):
    base = open_base(str(tiny_base))
    network = base.load_network()
    clip = towers_of(network).eval()
    pixel_values, input_ids = inputs(base, prompts=PROMPTS)
    with torch.no_grad():
        expected = network.clip.vision_model(pixel_values, output_hidden_states=True)
        ours = clip.visual.transformer.forward_intermediates(clip.visual._embeds(pixel_values))[1]
        for mine, theirs in zip(ours, expected.hidden_states[1:], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
        projected = network.clip.visual_projection(expected.pooler_output)
        torch.testing.assert_close(clip.visual(pixel_values), projected, atol=1e-5, rtol=1e-5)
        text = network.clip.text_projection(network.clip.text_model(input_ids=input_ids).pooler_output)
        torch.testing.assert_close(encode_text(clip, input_ids)[1], text, atol=1e-5, rtol=1e-5)
    assert (text[0] - text[1]).abs().max() > 1e-3


def test_the_highest_token_ends_a_prompt_where_the_configuration_has_the_legacy_id():
    layers = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1}
    config = CLIPSegConfig(
        vision_config={"image_size": 32, **layers},
        text_config={"eos_token_id": 2, "vocab_size": 50, **layers},
        extract_layers=[0],
        decoder_num_attention_heads=1,
    )
    network = CLIPSegForImageSegmentation(config).eval()
    input_ids = torch.tensor([[48, 2, 7, 49, 0], [48, 7, 7, 2, 49]])
    with torch.no_grad():
        expected = network.clip.text_projection(network.clip.text_model(input_ids=input_ids).pooler_output)
        _, sentences, end = encode_text(towers_of(network).eval(), input_ids)
    assert end.tolist() == [3, 4]
    torch.testing.assert_close(sentences, expected, atol=1e-5, rtol=1e-5)


def test_position_embeddings_keep_their_place_on_another_grid():
    grid = torch.arange(16.0).view(16, 1).expand(-1, 3)
    assert resize_positions(grid, (4, 4)) is grid
    finer = resize_positions(grid, (8, 8)).view(8, 8, 3)
    assert (finer.diff(dim=0) > 0).all() and finer[:, -1].gt(finer[:, 0]).all()


def test_gradients_reach_every_trained_weight_and_no_frozen_one(case):
    net, base = case
    net.train()
    # with zeroed last norms, as open_clip starts its ResNets, nothing reaches the convolutions before them
    for name, weight in net.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.ones_(weight)
    pixel_values, input_ids = inputs(base, prompts=PROMPTS[:2])
    (net(pixel_values, input_ids) * torch.randn(2, base.side, base.side)).sum().backward()
    trained = {id(weight) for weight in net.trained.parameters()}
    for name, weight in net.named_parameters():
        if id(weight) in trained:
            # a key's bias shifts all scores of a query alike, so its gradient is nothing but rounding
            assert weight.grad is not None and (weight.grad.any() or "k_proj.bias" in name), name
        else:
            assert weight.grad is None and not weight.requires_grad, name


def test_several_prompts_a_slice_are_as_one_at_a_time(case):
    net, base = case
    net.eval()
    pixel_values, input_ids = inputs(base, prompts=[*PROMPTS, *reversed(PROMPTS)])
    with torch.no_grad():
        together = net(pixel_values, input_ids)
        for row, prompt in enumerate([*PROMPTS, *reversed(PROMPTS)]):
            alone = encode_prompts(base.load_tokenizer(), [prompt])
            expected = net(pixel_values[row // 3, None], alone)[0]
            torch.testing.assert_close(together[row], expected, atol=1e-4, rtol=1e-4)
    assert together.shape == (6, base.side, base.side)
    assert not torch.equal(together[0], together[1]) and not torch.equal(together[0], together[5])


def test_encoding_once_gives_what_a_forward_gives(case):
    net, base = case
    net.eval()
    pixel_values, input_ids = inputs(base, slices=3, prompts=[PROMPTS[2]])
    with torch.no_grad():
        maps = torch.cat([net.encode_images(p[None]) for p in pixel_values])
        logits = net.decode(maps, net.encode_prompts(input_ids))
        expected = net(pixel_values, input_ids.expand(3, -1))
    assert maps.shape[0] == 3
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_squares_of_another_side_are_read(case):
    net, _ = case
    net.eval()
    side = 3 * net.patch_size
    with torch.no_grad():
        logits = net(torch.randn(1, 3, side, side), torch.tensor([[0, 5, 1]]))
    assert logits.shape == (1, side, side) and logits.isfinite().all()


def test_a_proposal_attends_to_itself_and_patches_and_nothing_attends_to_it():
    mask = attention_mask(torch.full((1, 2, 2, 3), 0.5))
    allowed = [  # 2 proposals, class token, 3 patches; a row says what the token attends to
        [1, 0, 0, 1, 1, 1],
        [0, 1, 0, 1, 1, 1],
        *[[0, 0, 1, 1, 1, 1]] * 4,
    ]
    assert mask.shape == (2, 6, 6)
    assert torch.equal(mask[1].isfinite().int(), torch.tensor(allowed, dtype=torch.int32))
    assert (mask[:, :2, 3:] == 0.5).all() and (mask[:, 2:, 2:] == 0).all()


def test_the_bias_steers_a_proposal_to_patches(clip_bases):
    net = SAN(open_base(str(clip_bases / "transformer")).load_network(), hidden_size=24).eval()
    features, biases = torch.randn(1, 1 + 4, 32), torch.zeros(1, 2, 3, 4, 4)
    biases[:, :, 1, 0, 0] = 1e4  # the second proposal sees the first patch alone, in the one layer that runs
    elsewhere = features.clone()
    elsewhere[:, 2:, ::2] += 1
    with torch.no_grad():
        before, after = net._embeddings(features, biases)[0], net._embeddings(elsewhere, biases)[0]
    torch.testing.assert_close(before[0], before[2])
    assert (before[0] - before[1]).abs().max() > 1e-4
    torch.testing.assert_close(after[1], before[1])
    assert (after[0] - before[0]).abs().max() > 1e-3


def test_a_few_steps_reduce_the_loss(case, pictures):
    net, base = case
    samples = Sampler(open_splits(pictures, ("axial",))["train"], base.side)
    tokenizer, loss_of = base.load_tokenizer(), LOSSES["logits"]()
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(net.trained.parameters(), lr=2e-3)
    losses = []
    for _ in range(25):
        drawn = [samples.draw(0, (0, 0)), samples.draw(1, (0, 0))]
        images, (prompts, masks) = torch.stack([sample.image for sample in drawn]), collate(drawn)
        logits = net.train()((images - 0.45) / 0.22, encode_prompts(tokenizer, prompts))
        loss = loss_of(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses


def test_cris_trains_on_a_single_prompt(clip_bases):
    base = open_base(str(clip_bases / "residual"))
    net = CRIS(base.load_network()).train()
    pixel_values, input_ids = inputs(base, slices=1, prompts=["polyp"])
    net(pixel_values, input_ids).sum().backward()
    assert net.neck.project_sentence[0].weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_full(case, dtype):
    net, base = case
    net.eval()
    pixel_values, input_ids = inputs(base)
    with torch.no_grad():
        expected = net(pixel_values, input_ids)
        with torch.autocast("cpu", dtype):
            mixed = net(pixel_values, input_ids)
        half = net.to(dtype)(pixel_values.to(dtype), input_ids)
    assert net.dtype == dtype and half.dtype == dtype
    for logits in (mixed, half):
        assert (logits.float() - expected).abs().max() < 0.1 * expected.abs().max() + 0.01


def test_wrong_kinds_of_base_are_refused(clip_bases, tiny_base):
    for folder, net in (("residual", SAN), ("transformer", CRIS)):
        with pytest.raises(UserError, match="needs a CLIP with a"):
            net(open_base(str(clip_bases / folder)).load_network())
    with pytest.raises(UserError, match="cris needs a CLIP with a ResNet"):
        CRIS(open_base(str(tiny_base)).load_network())
    with pytest.raises(UserError, match="multiple of 6"):
        SAN(open_base(str(tiny_base)).load_network(), hidden_size=64)


def test_a_clip_that_is_not_plain_is_refused(clip_bases, tmp_path):
    folder = shutil.copytree(clip_bases / "transformer", tmp_path / "other")
    path = folder / "open_clip_config.json"
    settings = json.loads(path.read_text())
    settings["model_cfg"]["text_cfg"]["hf_model_name"] = "roberta-base"
    path.write_text(json.dumps(settings))
    with pytest.raises(UserError, match="only plain CLIPs are supported, without text_cfg hf_model_name"):
        open_base(str(folder)).load_network()


def test_a_folder_of_open_clip_is_a_base_with_its_own_settings(clip_bases):
    base = open_base(str(clip_bases / "transformer"))
    assert (base.kind, base.side) == ("clip", SIDE)
    assert base.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    weights = load_file(base.folder / "open_clip_model.safetensors")
    for name, weight in base.load_network().state_dict().items():
        assert torch.equal(weight, weights[name])


def test_a_clip_with_weights_of_another_is_refused(clip_bases, tmp_path):
    folder = shutil.copytree(clip_bases / "transformer", tmp_path / "mixed")
    shutil.copy(clip_bases / "residual" / "open_clip_model.safetensors", folder)
    with pytest.raises(UserError, match="cannot be loaded"):
        open_base(str(folder)).load_network()


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_layout_loads_from_pickled_weights_as_from_safetensors(name, tmp_path):
    folder = public_folder(tmp_path / name, name)
    with own_folder(tmp_path / "models"):
        pickled = open_base(str(folder))
        assert (pickled.kind, pickled.side) == ("clip", {"clip-vit-b-16": 640, "clip-rn50": 416}[name])
        network = pickled.load_network()
        assert all(weight.dtype == torch.float32 for weight in network.parameters())
        tokens = encode_prompts(pickled.load_tokenizer(), ["brain", "a left lung"])
        assert tokens[1, [0, -1]].tolist() == [49406, 49407]
        net = CRIS(network) if name == "clip-rn50" else SAN(network)
        assert net.encode_prompts(tokens)[0].isfinite().all()
        twin = shutil.copytree(folder, tmp_path / "twin", ignore=shutil.ignore_patterns("*.bin"))
        (twin / "open_clip_model.safetensors").symlink_to(pickled.folder / "open_clip_model.safetensors")
        assert open_base(str(twin)).sha256 == pickled.sha256


@pytest.mark.parametrize(("name", "expected"), [("clip-vit-b-16", 149_620_737), ("clip-rn50", 102_007_137)])
def test_the_public_configurations_have_clips_parameter_counts(name, expected):
    with torch.device("meta"):
        assert count(new_clip(PUBLIC[name]).parameters()) == expected


def public_folder(folder, name):
    """The files of the public repository, with random weights in half precision, of two layers where there are
    twelve, and without a tokenizer."""
    folder.mkdir()
    config = json.loads(json.dumps(PUBLIC[name]))
    config["text_cfg"]["layers"] = 2
    if name == "clip-vit-b-16":
        config["vision_cfg"]["layers"] = 2
    network = new_clip(config).half()
    torch.save(network.state_dict(), folder / "open_clip_pytorch_model.bin")
    pixels = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    settings = {"model_cfg": config, "preprocess_cfg": pixels | {"interpolation": "bicubic"}}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 512}))  # timm's own
    return folder


def test_clips_own_tokenizer_gives_open_clips_tokens():
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer, reference = clip_tokenizer(), SimpleTokenizer()
    for prompt in ("a left ventricle, 3cm", "Polyp!! naïve é 12", "it's one small sessile polyp"):
        tokens = tokenizer(prompt).input_ids
        assert tokens == reference([prompt])[0, : len(tokens)].tolist() and tokens[-1] == len(tokenizer) - 1


def test_torchvision_is_as_before_after_open_clip_was_imported():
    new_clip(PUBLIC["clip-vit-b-16"] | {"vision_cfg": {"layers": 1, "width": 64}, "text_cfg": {"layers": 1}})
    assert "open_clip" in sys.modules
    assert not hasattr(sys.modules.get("torchvision"), "__getattr__")


def test_without_open_clip_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match="open-clip-torch"):
        new_clip(PUBLIC["clip-rn50"])
