"""Labelled images in both layouts, and the samples that are drawn from them."""

import json

import pytest
import SimpleITK as sitk
import torch
from conftest import ball

from engine.data import open_data_set
from engine.errors import UserError
from engine.imaging.planes import PLANES
from engine.samples import Sampler, collate

SIDE = 32


def test_pictures_have_their_prompts_and_masks_in_every_split(pictures):
    for split, count in {"train": 2, "val": 1, "test": 1}.items():
        data_set = open_data_set(pictures, split)
        assert len(data_set.annotations) == count
    annotation = data_set.annotations[0]
    assert annotation.prompts == (("disc",), ("bright disc", "round thing"))  # all but the empty p0
    assert data_set.image(annotation).shape == (40, 50, 3)
    disc = ball((1, 40, 50), (0, 24, 30), 8)[0]
    mask = data_set.mask(annotation)
    assert mask.dtype == bool and (mask != disc).mean() < 0.005  # JPEG blurs the edge


@pytest.mark.parametrize("plane", PLANES)
def test_volumes_are_sliced_with_their_labels_in_place(volumes, plane):
    data_set = open_data_set(volumes, "train", (plane,))
    for annotation in data_set.annotations[::7]:
        mask, image = data_set.mask(annotation), data_set.image(annotation)
        assert mask.any() == annotation.present
        bright = image > {"ball": 90, "cube": 200}[annotation.plain_prompt]
        assert (mask <= bright).all()


def test_validation_volumes_are_held_out_whole(volumes):
    cases = {split: {a.case for a in open_data_set(volumes, split).annotations} for split in ("train", "val")}
    assert len(cases["val"]) == 1 and len(cases["train"]) == 9
    assert not cases["val"] & cases["train"]
    assert open_data_set(volumes, "test").annotations == []


def test_regions_of_several_labels_are_one_structure(volumes):
    description = json.loads((volumes / "dataset.json").read_text())
    description["labels"] = {"background": 0, "ball": 1, "all": [1, 2]}
    (volumes / "dataset.json").write_text(json.dumps(description))
    data_set = open_data_set(volumes, "train")
    area = {}
    for annotation in data_set.annotations:
        area[annotation.plain_prompt] = area.get(annotation.plain_prompt, 0) + data_set.mask(annotation).sum()
    assert area["all"] == area["ball"] + 9 * 2 * 4 * 4


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("anns/train.json", None, r"train\.json is missing"),
        ("anns/train.json", "[{", r"train\.json is not valid JSON"),
        ("images/0.png", None, r"0\.png does not exist"),
    ],
)
def test_broken_data_sets_are_refused_by_the_name_of_the_file(pictures, file, content, message):
    (pictures / file).unlink()
    if content:
        (pictures / file).write_text(content)
    with pytest.raises(UserError, match=message):
        data_set = open_data_set(pictures, "train")
        data_set.image(data_set.annotations[0])


def test_a_folder_in_neither_layout_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither anns/train\.json"):
        open_data_set(tmp_path, "train")


def test_samples_depend_on_the_seed_alone(pictures):
    data_set = open_data_set(pictures, "train")
    arguments = {"augment": True, "mirror": True, "absent_prompts": ["liver"], "absent_rate": 0.5}
    first, second = (Sampler(data_set, SIDE, **arguments) for _ in range(2))
    second.draw(1, (9,))  # what was drawn before does not matter
    draws = [sampler.draw(0, (seed,)) for seed in range(8) for sampler in (first, second)]
    for one, other in zip(draws[::2], draws[1::2], strict=True):
        assert torch.equal(one.image, other.image) and torch.equal(one.masks, other.masks)
        assert one.prompts == other.prompts
    assert any(not torch.equal(draws[0].image, other.image) for other in draws[2::2])


def test_augmentation_moves_the_mask_with_the_image(pictures):
    sampler = Sampler(open_data_set(pictures, "train"), SIDE, augment=True, mirror=True)
    for seed in range(20):
        sample = sampler.draw(0, (seed,))
        bright = sample.image.mean(0) > 0.45
        mask = sample.masks[0] > 0
        assert mask.any()
        both = (bright & mask).sum()
        assert 2 * both / (bright.sum() + mask.sum()) > 0.8


def test_absent_prompts_have_empty_masks_and_others_their_own(volumes):
    data_set = open_data_set(volumes, "train")
    sampler = Sampler(
        data_set, SIDE, absent_prompts=["liver"], absent_rate=0.3, prompts_per_image=2, plain_rate=1.0
    )
    both = [i for i, a in enumerate(data_set.annotations) if a.present and a.image[2] == 6]
    seen = set()
    for seed in range(30):
        sample = sampler.draw(both[0], (seed,))
        assert len(sample.prompts) == 2
        for prompt, mask in zip(sample.prompts, sample.masks, strict=True):
            seen.add(prompt)
            assert mask.any() == (prompt != "liver")
    assert seen == {"ball", "cube", "liver"}


def test_a_batch_lists_prompts_image_by_image(pictures):
    sampler = Sampler(open_data_set(pictures, "train"), SIDE, absent_prompts=["liver"], prompts_per_image=2)
    images, prompts, masks = collate([sampler.draw(0, (1,)), sampler.draw(1, (1,))])
    assert images.shape == (2, 3, SIDE, SIDE) and masks.shape == (4, SIDE, SIDE)
    assert [prompt == "liver" for prompt in prompts] == [False, True, False, True]


@pytest.mark.parametrize("change", ["flip", "crop"])
def test_labels_on_another_grid_are_refused(volumes, change):
    path = volumes / "labelsTr" / "0.nii.gz"
    labels = sitk.ReadImage(path)
    if change == "flip":
        labels.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))
    sitk.WriteImage(labels if change == "flip" else labels[:, :, :5], path)
    with pytest.raises(UserError, match=r"0\.nii\.gz is not on the grid"):
        _ = open_data_set(volumes, "train").annotations


@pytest.mark.parametrize("prompts", [None, {}, {"p0": ""}, {"p1": []}])
def test_a_row_without_a_prompt_is_refused(pictures, prompts):
    row = {"img_name": "0.png", "mask_name": "0.jpg"} | ({} if prompts is None else {"prompts": prompts})
    (pictures / "anns" / "train.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match=r"train\.json has a row without"):
        open_data_set(pictures, "train")


def test_masks_of_zero_and_one_are_masks(pictures):
    mask = sitk.ReadImage(pictures / "masks" / "0.jpg") > 127
    sitk.WriteImage(mask, pictures / "masks" / "0.png")
    rows = json.loads((pictures / "anns" / "train.json").read_text())
    (pictures / "anns" / "train.json").write_text(json.dumps([rows[0] | {"mask_name": "0.png"}]))
    data_set = open_data_set(pictures, "train")
    assert data_set.mask(data_set.annotations[0]).sum() == sitk.GetArrayFromImage(mask).sum() > 0
