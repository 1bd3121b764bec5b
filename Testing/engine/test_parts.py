"""The small parts: prompts, files, overlap figures, pictures, progress."""

import numpy as np
import pytest
from conftest import ball
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from engine.cli import progress_bar
from engine.errors import UserError
from engine.evaluation.metrics import dice, intersection_over_union
from engine.files import replacing, write_text
from engine.imaging.volumes.segments import (
    Segment,
    drop_small,
    fill_holes,
    keep_largest,
    most_probable,
    segment_colors,
    smooth,
)
from engine.imaging.volumes.volume import Volume
from engine.models.bases import open_base
from engine.pictures.preview import write_preview
from engine.prompts import encode_prompts, split_prompts


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("brain", ["brain"]),
        (" left  lung ;right lung\n heart;", ["left lung", "right lung", "heart"]),
        (" ; \n", []),
    ],
)
def test_prompts_are_split_at_semicolons_and_lines(text, prompts):
    assert split_prompts(text) == prompts


@given(st.text())
def test_no_split_prompt_is_empty_or_has_loose_spaces(text):
    assert all(prompt and prompt == " ".join(prompt.split()) for prompt in split_prompts(text))


def test_a_long_training_prompt_is_cut_and_keeps_its_end(tiny_base):
    tokenizer = open_base(str(tiny_base)).load_tokenizer()
    ids = encode_prompts(tokenizer, ["left lung " * 60, "brain"])
    assert ids.shape == (2, 77)
    assert ids[0, -1] == tokenizer.eos_token_id and ids[0, 0] == tokenizer.bos_token_id


@given(st.text(max_size=20))
def test_any_text_has_tokens_and_case_does_not_matter(tiny_tokenizer, text):
    ids = encode_prompts(tiny_tokenizer, [text])
    assert ids.shape[1] >= 2
    assert (
        encode_prompts(tiny_tokenizer, ["Left LUNG"]).tolist()
        == encode_prompts(tiny_tokenizer, ["left lung"]).tolist()
    )


@pytest.fixture(scope="module")
def tiny_tokenizer(tiny_base):
    return open_base(str(tiny_base)).load_tokenizer()


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "report.json"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_overlap_figures_agree(both, only_result, only_truth):
    result, truth = both + only_result, both + only_truth
    d, i = dice(both, result, truth), intersection_over_union(both, result, truth)
    assert 0 <= i <= d <= 1
    assert d == pytest.approx(2 * i / (1 + i))
    assert dice(0, 0, 0) == 1 and dice(0, 3, 0) == 0


def test_clean_up_keeps_fills_and_drops():
    shell = ball((20, 20, 20), (8, 8, 8), 6) & ~ball((20, 20, 20), (8, 8, 8), 3)
    crumb = np.zeros_like(shell)
    crumb[18, 18, 17:19] = True
    assert np.array_equal(keep_largest(shell | crumb), shell)
    assert np.array_equal(fill_holes(shell), ball((20, 20, 20), (8, 8, 8), 6))
    assert np.array_equal(drop_small(shell | crumb, 0.003, 0.001), shell)  # the crumb has 2 voxels of 0.001 ml
    assert np.array_equal(drop_small(shell | crumb, 0.002, 0.001), shell | crumb)
    assert not keep_largest(np.zeros((3, 3, 3), bool)).any()


def test_smoothing_takes_off_crumbs_and_bumps_and_keeps_what_is_large():
    round_one = ball((24, 24, 24), (12, 12, 12), 8)
    rough = round_one.copy()
    rough[12, 12, 20:23] = True
    rough[2, 2, 2] = True
    smoothed = smooth(rough, (1, 1, 1))
    assert not smoothed[2, 2, 2] and not smoothed[12, 12, 21:].any()
    assert (smoothed ^ round_one).sum() < 0.1 * round_one.sum()
    at_the_edge = np.ones((6, 24, 24), bool)
    assert np.array_equal(smooth(at_the_edge, (1, 1, 1)), at_the_edge)


def test_smoothing_goes_by_millimetres_and_leaves_thick_slices_apart():
    slices = np.zeros((9, 24, 24), bool)
    slices[4, 4:20, 4:20] = True
    assert smooth(slices, (1, 1, 10))[4].any() and not smooth(slices, (1, 1, 1)).any()
    assert smooth(slices[4:5], (1, 1, 1)).any() and not smooth(slices[:1], (1, 1, 1)).any()


def test_a_hole_in_a_single_slice_is_filled_in_the_plane():
    ring = ball((1, 15, 15), (0, 7, 7), 5) & ~ball((1, 15, 15), (0, 7, 7), 2)
    assert np.array_equal(fill_holes(ring), ball((1, 15, 15), (0, 7, 7), 5))


def test_exclusive_masks_share_no_voxel_and_lose_none():
    random = np.random.default_rng(0)
    probabilities = [random.random((4, 5, 6)) for _ in range(3)]
    masks = [p > 0.4 for p in probabilities]
    owned = most_probable(masks, probabilities)
    assert np.array_equal(np.sum(owned, axis=0), np.any(masks, axis=0))
    best = np.argmax(np.where(masks, probabilities, -1), axis=0)
    assert all((best[mask] == index).all() for index, mask in enumerate(owned))


def test_a_name_keeps_its_colour_and_neighbours_differ():
    names = ["brain", "left lung", "polyp", "liver", "spleen"]
    colors = segment_colors(names)
    assert len({*colors}) == len(names)
    assert segment_colors(["brain"]) == segment_colors(["BRAIN", "liver"])[:1]


@pytest.mark.parametrize("shape", [(12, 20, 24), (1, 20, 24), (1, 20, 24, 3)])
def test_a_preview_shows_the_segment_in_its_colour(tmp_path, shape):
    voxels = np.random.default_rng(0).integers(0, 90, shape).astype(np.uint8)
    volume = Volume(voxels, (1, 1, 1.5))
    segment = Segment("ball", ball(shape[:3], (shape[0] // 2, 10, 12), 5), (1.0, 0.0, 0.0))
    write_preview(tmp_path / "with.png", volume, [segment], ["ball: 1 ml"], (0, 255))
    write_preview(tmp_path / "without.png", volume, [], [], (0, 255))
    red = [
        (lambda p: (p[..., 0] > 0.7) & (p[..., 1] < 0.3))(imread(tmp_path / f"{n}.png"))
        for n in ("with", "without")
    ]
    assert red[0].sum() > 200 and red[1].sum() == 0


def test_a_preview_of_nothing_found_is_still_a_picture(tmp_path):
    volume = Volume(np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6))
    segment = Segment("liver", np.zeros((4, 5, 6), bool), (1, 0, 0))
    write_preview(tmp_path / "p.png", volume, [segment], ["liver: not found, $a_{$"], (0, 120))
    assert imread(tmp_path / "p.png").std() > 0.01


def test_progress_without_a_terminal_is_plain_lines(capsys):
    with progress_bar("encoding", 3) as update:
        update()
        update(2, note="loss 0.5")
        with pytest.raises(UserError):
            raise UserError("in the middle")
    assert capsys.readouterr().err.splitlines() == ["encoding 1 / 3"]
