"""Samples drawn from labelled images: what depends on chance, and how much."""

import json
from collections import Counter

import pytest
import torch

from engine.data import open_data_set, wordings
from engine.errors import UserError
from engine.prompts import absent_from
from engine.training.samples import Sampler, collate
from engine.training.trainer import Plan, epoch_positions

SIDE = 32


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
    prompts, masks = collate([sampler.draw(0, (1,)), sampler.draw(1, (1,))])
    assert masks.shape == (4, SIDE, SIDE)
    assert [prompt == "liver" for prompt in prompts] == [False, True, False, True]


def test_images_without_the_structure_are_sampled_at_the_rate(volumes):
    annotations = open_data_set(volumes, "train").annotations
    sampler = Sampler(open_data_set(volumes, "train"), SIDE)
    present = sum(a.present for a in annotations)
    for rate in (0.0, 0.1, 0.25, 0.5):
        chosen = [annotations[p] for p in epoch_positions(sampler, Plan(absent_rate=rate), epoch=1)]
        absent = sum(not a.present for a in chosen)
        assert len(chosen) - absent == present  # each once
        assert absent / len(chosen) == pytest.approx(rate, abs=0.01)


def test_other_images_without_the_structure_come_in_other_epochs(volumes):
    sampler = Sampler(open_data_set(volumes, "train"), SIDE)
    plan = Plan(absent_rate=0.2)
    absent = [
        {int(p) for p in epoch_positions(sampler, plan, epoch) if not sampler.annotations[p].present}
        for epoch in (1, 2)
    ]
    assert len(absent[0]) == len(absent[1]) and absent[0] != absent[1]


def test_prompts_are_replaced_by_absent_ones_at_the_rate(volumes):
    data_set = open_data_set(volumes, "train")
    both = next(i for i, a in enumerate(data_set.annotations) if a.present and a.image[2] == 6)
    for rate in (0.1, 0.4):
        sampler = Sampler(data_set, SIDE, absent_prompts=["liver"], absent_rate=rate, prompts_per_image=2)
        samples = [sampler.draw(both, (seed,)) for seed in range(1000)]
        counts = Counter(prompt for sample in samples for prompt in sample.prompts)
        assert counts["liver"] / 2000 == pytest.approx(rate, abs=0.03)
        assert not any(
            mask.any() for s in samples for p, mask in zip(s.prompts, s.masks, strict=True) if p == "liver"
        )


def test_further_prompts_name_what_is_there_and_absent_ones_may_be_the_data_sets_own(volumes):
    data_set = open_data_set(volumes, "train")
    alone = next(i for i, a in enumerate(data_set.annotations) if a.present and a.image[2] == 3)  # no cube here
    sampler = Sampler(data_set, SIDE, absent_prompts=["liver"], prompts_per_image=2)
    samples = [sampler.draw(alone, (seed,)) for seed in range(30)]
    assert {s.prompts[0] for s in samples} == {"ball"} and all(s.masks[0].any() for s in samples)
    assert {s.prompts[1] for s in samples} == {"liver", "cube"} and not any(s.masks[1].any() for s in samples)


def test_what_a_data_set_may_show_is_no_absent_prompt(pictures):
    rows = json.loads((pictures / "anns" / "train.json").read_text())
    rows[0]["prompts"]["p1"] = "Benign tumours in an ultrasound image."
    (pictures / "anns" / "train.json").write_text(json.dumps(rows))
    data_set = open_data_set(pictures, "train")
    assert absent_from(wordings(data_set), ["liver", "optic disc", "tumor", "polyp"]) == ["liver", "polyp"]


def test_a_training_on_absent_prompts_alone_is_refused():
    with pytest.raises(UserError, match=r"absent_rate is 1\.0; give a share below 1"):
        Plan(absent_rate=1.0).resolved()
