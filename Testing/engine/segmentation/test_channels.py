"""Neighbouring slices as channels: the same in training and in segmentation."""

import dataclasses
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import SIDE, make_adapter, run_command

from engine import train
from engine.data import open_data_set
from engine.errors import UserError
from engine.imaging.reading import read_volume
from engine.imaging.volumes.planes import CHANNELS, PLANES, with_neighbours
from engine.imaging.volumes.volume import Volume
from engine.models.bundle import read_card
from engine.segmentation.segmenter import Segmenter
from engine.training.samples import Sampler


@pytest.fixture
def deep_segmenter(tmp_path, tiny_base) -> Segmenter:
    folder = make_adapter(tmp_path / "deep", tiny_base, channels="2.5d")
    return Segmenter(str(folder), base=str(tiny_base), device="cpu", precision="fp32")


def write_volume(folder, shape) -> None:
    """Write a volume whose window is exactly 0 to 255, with a label, in the Decathlon layout."""
    voxels = np.random.default_rng(0).choice([0, 0, 60, 100, 255], shape).astype(np.int16)
    voxels.flat[0] = -1  # below the window, which begins above the lowest value
    labels = np.zeros(shape, np.uint8)
    labels[3:, 8:, 8:] = 1
    folder.mkdir()
    for name, array in (("image.nii.gz", voxels), ("label.nii.gz", labels)):
        sitk.WriteImage(sitk.GetImageFromArray(array), folder / name)
    rows = [{"image": "image.nii.gz", "label": "label.nii.gz"}]
    description = {"labels": {"1": "corner"}, "training": rows}
    (folder / "dataset.json").write_text(json.dumps(description))


def seen_in_training(folder, plane: str, channels: str, segmenter) -> torch.Tensor:
    data_set = open_data_set(folder, "train", (plane,), channels)
    samples = Sampler(data_set, SIDE)
    images = torch.stack([samples.draw(i, (0,)).image for i in range(len(data_set.annotations))])
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (segmenter.base.mean, segmenter.base.std))
    return (images - mean) / std


def seen_in_segmentation(folder, plane: str, segmenter, monkeypatch) -> torch.Tensor:
    seen = []
    encode = segmenter.model.encode_images
    monkeypatch.setattr(segmenter.model, "encode_images", lambda pixels: seen.append(pixels) or encode(pixels))
    segmenter.set_volume(read_volume(folder / "image.nii.gz"), plane)
    return torch.cat(seen)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("plane", PLANES)
def test_a_segmenter_sees_exactly_the_pixels_of_the_training(tmp_path, tiny_base, monkeypatch, plane, channels):
    write_volume(tmp_path / "data", (SIDE, SIDE, SIDE))
    adapter = make_adapter(tmp_path / "adapter", tiny_base, channels=channels)
    segmenter = Segmenter(str(adapter), base=str(tiny_base), device="cpu", precision="fp32")
    trained = seen_in_training(tmp_path / "data", plane, channels, segmenter)
    assert torch.equal(seen_in_segmentation(tmp_path / "data", plane, segmenter, monkeypatch), trained)
    alike = torch.equal(trained[:, 0] * segmenter.base.std[0], trained[:, 2] * segmenter.base.std[2])
    assert not alike or channels == "slice"


def test_resized_pixels_differ_by_less_than_a_grey_level(tmp_path, deep_segmenter, monkeypatch):
    write_volume(tmp_path / "data", (9, 40, 50))
    trained = seen_in_training(tmp_path / "data", "axial", "2.5d", deep_segmenter)
    segmented = seen_in_segmentation(tmp_path / "data", "axial", deep_segmenter, monkeypatch)
    assert (segmented - trained).abs().max() * max(deep_segmenter.base.std) < 1 / 255


def test_neighbours_stand_before_and_after_their_slice():
    stack = np.arange(4)[:, None, None] * np.ones((1, 2, 3), int)
    taken = with_neighbours(stack, [0, 2, 3])
    assert taken.shape == (3, 2, 3, 3)
    assert taken[:, 1, 2].tolist() == [[0, 0, 1], [1, 2, 3], [2, 3, 3]]
    assert (with_neighbours(stack[:1], [0]) == 0).all()  # a single slice repeats itself


def test_other_channels_are_encoded_anew(deep_segmenter):
    voxels = np.random.default_rng(0).normal(0, 1, (5, 20, 20)).astype(np.float32)
    volume = Volume(voxels)
    deep_segmenter.set_volume(volume)
    deep = deep_segmenter.segment("brain").probability
    deep_segmenter.card = dataclasses.replace(deep_segmenter.card, channels="slice")
    deep_segmenter.set_volume(volume)
    assert not np.array_equal(deep_segmenter.segment("brain").probability, deep)


def test_colours_are_refused_and_a_single_slice_is_not(deep_segmenter):
    pixels = np.random.default_rng(0).integers(0, 255, (1, 30, 40, 3)).astype(np.uint8)
    with pytest.raises(UserError, match=r"photo\.png is in colour"):
        deep_segmenter.set_volume(Volume(pixels, name="photo.png", flat=True))
    deep_segmenter.set_volume(Volume(pixels[..., 0], flat=True))
    assert deep_segmenter.segment("brain").probability.shape == (1, 30, 40)


def test_training_with_neighbours_is_recorded_and_repeated(volumes, tmp_path, tiny_base, monkeypatch, capsys):
    options = ["--data", volumes, "--base", tiny_base, "--device", "cpu", "--epochs", 1, "--samples-per-epoch", 4]
    out = tmp_path / "out"
    code, _, errors = run_command(monkeypatch, capsys, train.main, *options, "--channels", "2.5d", "-o", out)
    assert code == 0, errors
    assert read_card(out).channels == "2.5d" and "channels: 2.5d" in (out / "README.md").read_text()
    assert Segmenter(str(out), base=str(tiny_base), device="cpu").channels == "2.5d"


def test_a_card_with_unknown_channels_is_refused(tmp_path, tiny_base):
    with pytest.raises(UserError, match=r"channels 'colours'; this engine knows slice, 2\.5d"):
        read_card(make_adapter(tmp_path / "odd", tiny_base, channels="colours"))
