"""Packed pictures, what is drawn from them, how they are changed, and the words for them."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT

from engine.data import open_data_set
from engine.data.synonyms import Wordings, exchange_sides, misspell
from engine.errors import UserError
from engine.training import packing
from engine.training.changes import Changes
from engine.training.packing import pack, read_pack, unpack_masks
from engine.training.store import Asking, PictureStore, Source

SIDE = 32
CPU = torch.device("cpu")


def packed(data_set, folder, **settings):
    pack(data_set, SIDE, folder, lambda done, total: None, **settings)
    return read_pack(folder)


@pytest.fixture
def sets(pictures, volumes, tmp_path):
    return [
        packed(open_data_set(folder, "train"), tmp_path / "packed" / folder.name) for folder in (pictures, volumes)
    ]


@pytest.fixture
def store(sets):
    sources = [
        Source("discs", "sky", weight=1, mirror=True),
        Source("balls", "court", weight=1, mirror=False, complete=True),
    ]
    return PictureStore(sets, sources, Wordings(), CPU)


def test_masks_lie_where_the_pictures_are_bright(sets):
    for packed_set, brightness in zip(sets, (0.45, 0.2), strict=True):
        for item in packed_set.labelled:
            bright = packed_set.images[item.picture].float().mean(0) / 255 > brightness
            if item.mask is None:
                assert item.plain_prompt in ("ball", "cube")
            elif item.plain_prompt != "cube":
                mask = unpack_masks(packed_set.masks[item.mask][None])[0] > 0
                assert 2 * (bright & mask).sum() > 0.8 * (bright.sum() + mask.sum()) - 2 * 40


def test_colours_stay_and_grey_pictures_take_one_channel(sets):
    discs, balls = sets
    assert discs.images.shape == (2, 3, SIDE, SIDE) and balls.images.shape[1:] == (1, SIDE, SIDE)
    assert discs.wordings == {"disc", "bright disc", "round thing"}


def test_a_pack_in_many_parts_holds_what_one_holds(volumes, tmp_path, monkeypatch):
    data_set = open_data_set(volumes, "train")
    whole = packed(data_set, tmp_path / "whole" / "balls")
    monkeypatch.setattr(packing, "LARGEST_PART_BYTES", 20_000)
    parts = packed(data_set, tmp_path / "parts" / "balls")
    sizes = [path.stat().st_size for path in (tmp_path / "parts" / "balls").iterdir()]
    assert len(sizes) > 5 and max(sizes) < 40_000
    assert torch.equal(whole.images, parts.images) and torch.equal(whole.masks, parts.masks)
    assert whole.labelled == parts.labelled


def test_a_part_of_the_pictures_is_of_those_that_show_something(volumes, tmp_path):
    few = packed(open_data_set(volumes, "train"), tmp_path / "few", at_most=5)
    assert len(few.images) == 5
    assert {item.picture for item in few.labelled if item.mask is not None} == set(range(5))


def test_damaged_packs_are_refused(sets, tmp_path):
    path = tmp_path / "packed" / "discs" / "000.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged or no packed pictures"):
        read_pack(path.parent)
    with pytest.raises(UserError, match="holds no packed pictures"):
        read_pack(tmp_path)


def test_prompts_come_with_their_masks_and_absent_ones_with_none(store, sets):
    asking, random = Asking(prompts_per_image=2, absent_rate=0.3, plain_rate=0.5), np.random.default_rng(0)
    discs, balls = sets
    items = [(0, item) for item in discs.labelled] + [(len(discs.masks), item) for item in balls.labelled]
    meant = {first + i.mask: {w for words in i.prompts for w in words} for first, i in items if i.mask is not None}
    known, seen = discs.wordings | balls.wordings, Counter()
    for _ in range(100):
        pictures = store.draw(8, random)
        prompts, masks = store.ask(pictures, torch.zeros(8, dtype=torch.bool), asking, random)
        for prompt, mask in zip(prompts, masks.flatten().tolist(), strict=True):
            seen[prompt, mask >= 0] += 1
            assert mask < 0 or prompt in meant[mask] or prompt not in known  # which is then misspelt
    assert seen["round thing", True] and seen["liver", False]
    assert seen["cube", False] and seen["cube", True]
    assert sum(seen[word, True] for word in discs.wordings) > 300  # though there are 2 of them in 110 pictures


def test_absent_prompts_have_empty_masks(store):
    masks = store.masks(torch.tensor([[0, -1], [-1, 1]]))
    assert masks.shape == (2, 2, SIDE, SIDE)
    assert masks.sum((2, 3)).bool().tolist() == [[True, False], [False, True]]


def test_a_held_out_wording_in_a_set_is_refused(sets):
    source = Source("discs", "sky", weight=1, mirror=True)
    held_out = Wordings({"disc": ["disc"]}, {"disc": ["Round Thing"]})
    with pytest.raises(UserError, match="held out"):
        PictureStore(sets[:1], [source], held_out, CPU)


def test_changes_move_the_mask_with_the_picture(store):
    pictures = torch.zeros(64, dtype=torch.int64)
    changes = Changes.draw(store.mirror[pictures], store.coloured[pictures], seed=1)
    images = changes.of_images(store.images(pictures), SIDE)
    masks = changes.of_masks(store.masks(pictures[:, None]), SIDE)[:, 0] > 0
    bright = images.mean(1) > images.mean((1, 2, 3))[:, None, None] + 0.15
    overlap = 2 * (bright & masks).sum((1, 2)) / (bright.sum((1, 2)) + masks.sum((1, 2)))
    assert overlap.median() > 0.85
    assert 10 < changes.mirrored.sum() < 54
    assert images.min() >= 0 and images.max() <= 1


def test_changes_depend_on_the_seed_and_none_change_nothing(store):
    pictures = torch.arange(4)
    draws = [Changes.draw(store.mirror[pictures], store.coloured[pictures], seed) for seed in (1, 1, 2)]
    assert torch.equal(draws[0].places, draws[1].places) and not torch.equal(draws[0].places, draws[2].places)
    images = store.images(pictures)
    assert torch.allclose(Changes.none(4).of_images(images, SIDE), images, atol=1e-3)
    assert Changes.none(4).of_images(images, SIDE // 2).shape == (4, 3, SIDE // 2, SIDE // 2)


def test_wordings_are_trained_or_held_out(tmp_path):
    path = tmp_path / "wordings.yaml"
    path.write_text("liver: {trained: [liver, livers, liver on CT], held_out: [hepatic tissue]}")
    words, random = Wordings.read(path), np.random.default_rng(0)
    drawn = {words.draw((("liver on CT",),), 0.3, random) for _ in range(100)}
    assert drawn == {"liver", "livers", "liver on CT"}
    assert words.structure("Liver on CT") == "liver" and words.structure("moon") == "moon"
    assert words.held_out_among(["liver", "Hepatic tissue"]) == "Hepatic tissue"
    path.write_text("liver: {trained: [liver, gut]}\ngut: {trained: [GUT]}")
    with pytest.raises(UserError, match="'gut' twice"):
        Wordings.read(path)
    path.write_text("liver: [liver]")
    with pytest.raises(UserError, match="no file of wordings"):
        Wordings.read(path)


def test_every_structure_of_the_project_holds_out_three_wordings():
    words = Wordings.read(ROOT / "Resources" / "Models" / "wordings.yaml")
    assert min(len(held_out) for held_out in words.held_out.values()) >= 3
    assert json.dumps(words.trained).isascii()


def test_sides_are_exchanged_and_letters_lost():
    assert exchange_sides("left lung, right of the heart") == "right lung, left of the heart"
    random = np.random.default_rng(0)
    typed = {misspell("liver", random) for _ in range(50)}
    assert all(word != "" and abs(len(word) - 5) <= 1 and word[0] == "l" for word in typed) and len(typed) > 4
