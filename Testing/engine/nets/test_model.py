"""CLIPSeg in three parts, and the adapters on it."""

import copy

import pytest
import torch
from torch import nn
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation
from transformers.activations import GELUActivation

from engine.models.bases import open_base
from engine.nets.adapter import BaseShape
from engine.nets.clipseg import CLIPSeg
from engine.nets.faster import fold_activations, pack_for_cpu
from engine.nets.initialise import new_network
from engine.nets.methods import build_adapter
from engine.prompts import encode_prompts

FULL_SIZE = BaseShape(vision_size=768, text_size=512, condition_size=512, extract_layers=(3, 6, 9))
ADAPTERS = (
    "shallow",
    "dense",
    "dense-everywhere",
    "telescopic",
    "lora",
)  # the methods that add weights to the base, and change none of its own
TRAINABLE = {  # shallow and dense: measured on the reference implementation
    ("shallow", "V"): 2_363_136,
    ("shallow", "VL"): 3_939_072,
    ("shallow", "VLC"): 4_201_984,
    ("dense", "V"): 1_784_448,
    ("dense", "VL"): 2_974_464,
    ("dense", "VLC"): 3_237_376,
    ("dense-everywhere", "VL"): 2_974_464 + 2 * (2 * 768 * 64 + 768 + 64),
    ("telescopic", "VL"): 2 * (1537 * 180 + 9 * 768) + 2 * (1025 * (28 + 32 + 36) + 3 * 512),
}


@pytest.mark.parametrize(("method", "placement"), TRAINABLE)
def test_trainable_parameters_are_the_papers(method, placement):
    with torch.device("meta"):
        adapter = build_adapter(method, placement, FULL_SIZE)
    assert sum(p.numel() for p in adapter.parameters()) == TRAINABLE[method, placement]


@pytest.fixture
def network(tiny_base) -> CLIPSegForImageSegmentation:
    return open_base(str(tiny_base)).load_network()


@pytest.fixture
def tokenizer(tiny_base):
    return open_base(str(tiny_base)).load_tokenizer()


@pytest.fixture
def inputs(tokenizer):
    torch.manual_seed(5)
    return torch.randn(3, 3, 64, 64), encode_prompts(tokenizer, ["polyp", "the left lung of a brain", "ball"])


@pytest.mark.parametrize("legacy_end_of_text", [False, True])
@pytest.mark.parametrize("complex_convolution", [False, True])
def test_without_an_adapter_the_logits_are_hugging_faces(inputs, network, complex_convolution, legacy_end_of_text):
    pixel_values, input_ids = inputs
    config = CLIPSegConfig(
        **{**network.config.to_dict(), "use_complex_transposed_convolution": complex_convolution}
    )
    if legacy_end_of_text:  # the public configuration: 2 stands for the highest token of each prompt
        config.text_config.eos_token_id = 2
        input_ids = torch.where(
            input_ids == network.config.text_config.eos_token_id, config.text_config.vocab_size - 1, input_ids
        )
    torch.manual_seed(0)
    network = new_network(config).eval()
    with torch.no_grad():
        expected = network(pixel_values=pixel_values, input_ids=input_ids).logits
        ours = CLIPSeg(network).eval()(pixel_values, input_ids)
    assert expected.std() > 1e-3
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_every_kind_of_attention_gives_the_same_logits(network, inputs):
    results = []
    for kind in ("sdpa", "eager"):
        network.set_attn_implementation(kind)
        with torch.no_grad():
            results.append(CLIPSeg(network).eval()(*inputs))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch is built without oneDNN")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("method", ADAPTERS)
def test_a_net_that_is_prepared_for_the_cpu_gives_what_it_gave(network, inputs, method, dtype, tolerance):
    pixel_values, input_ids = inputs
    net = CLIPSeg(network, build_adapter(method, "VLC", BaseShape.of(network.config))).eval()
    with torch.no_grad():
        for weight in net.adapter.parameters():
            weight.normal_(std=0.1)  # no update is zero, as LoRA's is at the start
        expected = [net.encode_images(pixel_values), net.encode_prompts(input_ids)]
        expected.append(net.decode(*expected))
        fold_activations(net)
        pack_for_cpu(net.to(dtype))
        ours = [net.encode_images(pixel_values.to(dtype)), net.encode_prompts(input_ids)]
        ours.append(net.decode(*ours))
    assert net.vision.encoder.layers[0].mlp.fc1.weight is None  # or nothing was prepared
    for values, reference in zip(ours, expected, strict=True):
        assert (values - reference).norm() < tolerance * reference.norm()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch is built without oneDNN")
def test_a_tower_with_the_exact_gelu_is_prepared_too(network, inputs):
    net = CLIPSeg(network).eval()
    for layer in net.vision.encoder.layers:
        layer.mlp.activation_fn = GELUActivation()
    with torch.no_grad():
        expected = net.encode_images(inputs[0])
        pack_for_cpu(net)
        assert all(isinstance(layer.mlp.activation_fn, nn.Identity) for layer in net.vision.encoder.layers)
        torch.testing.assert_close(net.encode_images(inputs[0]), expected, atol=1e-4, rtol=1e-4)


def test_recomputed_activations_give_the_same_gradients_and_are_not_kept(network, inputs):
    net = CLIPSeg(network, build_adapter("dense", "VL", BaseShape.of(network.config)))
    gradients, kept = {}, {}
    for net.recompute_activations in (False, True):
        net.zero_grad()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t
        ):
            loss = net(*inputs).square().mean()
        kept[net.recompute_activations] = sum(sizes)
        loss.backward()
        gradients[net.recompute_activations] = [p.grad.clone() for p in net.adapter.parameters()]
    torch.testing.assert_close(gradients[True], gradients[False], atol=0, rtol=1e-5)
    assert any(gradient.any() for gradient in gradients[True])
    assert kept[True] < 0.8 * kept[False]


def test_layers_beyond_the_last_extracted_one_are_dropped(network):
    assert len(network.clip.vision_model.encoder.layers) == 4
    assert len(CLIPSeg(network).vision.encoder.layers) == 3


def test_a_prompt_gives_the_same_condition_alone_and_beside_longer_ones(network, inputs):
    _, input_ids = inputs
    model = CLIPSeg(network).eval()
    with torch.no_grad():
        together, alone = model.encode_prompts(input_ids), model.encode_prompts(input_ids[:1])
    torch.testing.assert_close(together[:1], alone)


@pytest.mark.parametrize("placement", ["V", "VL", "VLC"])
@pytest.mark.parametrize("method", ADAPTERS)
def test_gradients_reach_every_weight_of_the_adapter_and_none_of_the_base(network, inputs, method, placement):
    adapter = build_adapter(method, placement, BaseShape.of(network.config))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.abs_().add_(0.01)  # neither a dead ReLU nor a start at zero may hide a missing path
    model = CLIPSeg(network, adapter)
    model(*inputs).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("adapter."))


@pytest.mark.parametrize(("placement", "changes_text"), [("V", False), ("VL", True), ("VLC", True)])
@pytest.mark.parametrize("method", ADAPTERS)
def test_the_placement_says_which_branch_an_adapter_changes(network, inputs, method, placement, changes_text):
    pixel_values, input_ids = inputs
    torch.manual_seed(0)
    plain = CLIPSeg(copy.deepcopy(network)).eval()
    adapter = build_adapter(method, placement, BaseShape.of(network.config))
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    adapted = CLIPSeg(network, adapter).eval()
    with torch.no_grad():
        assert not torch.allclose(adapted.encode_images(pixel_values), plain.encode_images(pixel_values))
        same_text = torch.allclose(adapted.encode_prompts(input_ids), plain.encode_prompts(input_ids))
    assert same_text is not changes_text


@pytest.mark.parametrize(
    ("method", "placement"), [("shallow", "V"), ("dense", "V"), ("dense", "VLC"), ("lora", "VLC")]
)
def test_a_zero_adapter_changes_nothing(network, inputs, method, placement):
    adapter = build_adapter(method, placement, BaseShape.of(network.config))
    for parameter in adapter.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        expected = CLIPSeg(copy.deepcopy(network))(*inputs)
        torch.testing.assert_close(CLIPSeg(network, adapter)(*inputs), expected)


def test_lora_starts_from_the_base_as_it_is(network, inputs):
    with torch.no_grad():
        expected = CLIPSeg(copy.deepcopy(network))(*inputs)
        lora = build_adapter("lora", "VL", BaseShape.of(network.config))
        torch.testing.assert_close(CLIPSeg(network, lora)(*inputs), expected)


@pytest.mark.parametrize(("method", "trained"), [("decoder", {"decoder"}), ("full", {"decoder", "text", "vision"})])
def test_fine_tuning_trains_the_parts_it_names_and_no_other(network, inputs, method, trained):
    model = CLIPSeg(network, build_adapter(method, "", BaseShape.of(network.config)))
    model(*inputs).square().mean().backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert reached - {"text_projection"} == trained
    without = [name for name, p in model.adapter.named_parameters() if p.grad is None]
    assert all("post_layernorm" in name for name in without)  # which the logits do not depend on


def test_the_public_decoder_has_the_parameters_that_the_reference_trained():
    config = CLIPSegConfig(
        vision_config={"patch_size": 16}, extract_layers=[3, 6, 9], use_complex_transposed_convolution=True
    )
    with torch.device("meta"):
        model = CLIPSeg(CLIPSegForImageSegmentation(config), build_adapter("decoder", "", BaseShape.of(config)))
    assert sum(p.numel() for p in model.adapter.parameters()) == 1_127_009


def test_a_zero_shallow_text_adapter_adds_the_end_of_text_tokens_to_the_condition(network, inputs):
    adapter = build_adapter("shallow", "VL", BaseShape.of(network.config))
    for parameter in adapter.parameters():
        torch.nn.init.zeros_(parameter)
    projected, tokens = torch.randn(2, 16), [torch.randn(2, 16) for _ in range(3)]
    torch.testing.assert_close(adapter.condition(projected, tokens), projected + sum(tokens))


def test_dense_adapters_leave_the_deepest_extracted_layer_alone():
    with torch.device("meta"):
        adapter = build_adapter("dense", "VL", FULL_SIZE)
    features = torch.randn(1, 2, 768)
    assert len(adapter.vision_mlps) == 9
    assert adapter.vision_mlp(9, features) is features
    with torch.device("meta"):
        everywhere = build_adapter("dense-everywhere", "VL", FULL_SIZE)
    assert everywhere.vision_mlp(9, features.to("meta")).shape == features.shape
    assert (len(everywhere.vision_mlps), len(everywhere.text_mlps)) == (10, 9)


@pytest.mark.parametrize(
    ("method", "placement", "message"),
    [
        ("thick", "VL", "unknown method 'thick'; there are shallow"),
        ("dense", "L", "'dense' has no placement 'L'; there are VL, V, VLC"),
        ("decoder", "VL", "'decoder' has no placement 'VL'"),
    ],
)
def test_unknown_methods_and_placements_are_named(method, placement, message):
    with pytest.raises(ValueError, match=message):
        build_adapter(method, placement, FULL_SIZE)


def test_fresh_weights_give_logits_of_order_one(network, inputs):
    with torch.no_grad():
        logits = network(pixel_values=inputs[0], input_ids=inputs[1]).logits
    assert logits.abs().max() < 10


def test_the_upsampling_starts_smooth(network):
    torch.manual_seed(0)
    config = copy.deepcopy(network.config)
    config.reduce_dim = 64
    mix, relu, spread, *_ = new_network(config).decoder.transposed_convolution
    with torch.no_grad():
        finer = spread(relu(mix(torch.randn(4, mix.in_channels, 8, 8))))
    steps = (finer[..., 1:] - finer[..., :-1]).abs().mean((0, 1, 2))
    assert steps.mean() < 0.7 * finer.std()  # 1.1 for independent values
    assert steps[3::4].mean() < 1.5 * steps.mean()  # as large between patches as inside them
