"""A folder of exactly the public layout and configuration (CIDAS/clipseg-rd64-refined), with random weights."""

import hashlib
import json
import shutil

import pytest
import torch
from conftest import own_folder
from transformers import CLIPSegConfig

from engine.errors import UserError
from engine.models.bases import check_fetched, open_base
from engine.nets.adapter import BaseShape
from engine.nets.clipseg import CLIPSeg
from engine.nets.initialise import new_network
from engine.prompts import encode_prompts

START, END = 49406, 49407


@pytest.fixture(scope="module")
def public_layout(tmp_path_factory):
    """`pytorch_model.bin` with the position ids that old versions saved, and CLIP's own tokenizer files."""
    folder = tmp_path_factory.mktemp("public")
    config = CLIPSegConfig(
        vision_config={"image_size": 224, "patch_size": 16},
        text_config={
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 1,
        },  # as published: 2 is not the real one
        extract_layers=[3, 6, 9],
        reduce_dim=64,
        use_complex_transposed_convolution=True,
    )
    torch.manual_seed(0)
    network = new_network(config).half()
    config.save_pretrained(folder)
    weights = network.state_dict() | {"clip.text_model.embeddings.position_ids": torch.arange(77)[None]}
    torch.save(weights, folder / "pytorch_model.bin")
    write_tokenizer(folder)
    processor = {"size": {"height": 352, "width": 352}, "image_mean": [0.485, 0.456, 0.406]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | {"image_std": [0.229, 0.224, 0.225]}))
    yield folder
    shutil.rmtree(folder)


def write_tokenizer(folder):
    """Bytes, bytes at a word's end and one merge, with the two special tokens where CLIP has them."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merge = "br"
    vocabulary = {token: i for i, token in enumerate([*letters, *(f"{c}</w>" for c in letters), merge])}
    vocabulary |= {"<|startoftext|>": START, "<|endoftext|>": END}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nb r\n")
    specials = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    specials |= {"pad_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | specials))
    (folder / "special_tokens_map.json").write_text(json.dumps(specials))


@pytest.fixture(scope="module")
def base(public_layout, tmp_path_factory):
    """The base, opened from the pickled weights; the converted copy goes to a models folder of its own."""
    with own_folder(tmp_path_factory.mktemp("models")):
        yield open_base(str(public_layout))


def test_the_public_settings_are_read(base):
    assert base.side == 352 and base.mean == (0.485, 0.456, 0.406)
    shape = BaseShape.of(base.load_network().config)
    assert (shape.vision_size, shape.text_size, shape.extract_layers) == (768, 512, (3, 6, 9))


def test_what_was_fetched_is_compared_with_the_hubs_checksum(tmp_path):
    content = b"weights"
    blob = tmp_path / "blobs" / hashlib.sha256(content).hexdigest()
    snapshot = tmp_path / "snapshots"
    for folder in (blob.parent, snapshot):
        folder.mkdir()
    blob.write_bytes(content)
    (snapshot / "model.safetensors").symlink_to(blob)
    (snapshot / "config.json").write_text("{}")
    check_fetched(snapshot)
    blob.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors is not the file that the hub has"):
        check_fetched(snapshot)


def test_a_safetensors_twin_is_the_same_base(base, public_layout, tmp_path):
    twin = tmp_path / "twin"
    shutil.copytree(public_layout, twin, ignore=shutil.ignore_patterns("*.bin"))
    (twin / "model.safetensors").symlink_to(base.folder / "model.safetensors")
    assert open_base(str(twin)).sha256 == base.sha256


def test_the_logits_are_hugging_faces_own(base):
    tokens = encode_prompts(base.load_tokenizer(), ["brain", "a left lung"])
    assert tokens[0, 0] == START and tokens[0, -1] == END  # "brain" is the shorter one, padded by the end token
    network = base.load_network()
    torch.manual_seed(1)
    pixel_values = torch.randn(1, 3, base.side, base.side).expand(2, -1, -1, -1)
    with torch.no_grad():
        expected = network(pixel_values=pixel_values, input_ids=tokens).logits
        ours = CLIPSeg(network).eval()(pixel_values, tokens)
    assert (expected[0] - expected[1]).abs().max() > 1e-3  # the prompts differ
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
