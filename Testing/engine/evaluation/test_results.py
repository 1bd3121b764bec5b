"""The shipped adapters measured again: figures, cards, and the page of pictures."""

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import files, make_adapter, run_command
from PIL import Image

from engine import results
from engine.cli import progress_bar
from engine.data import open_data_set
from engine.data.head import head_set
from engine.evaluation.measuring import evaluate, means, random
from engine.evaluation.terms import TERMS, Terms
from engine.models.bundle import measured, read_card, save_bundle, write_card
from engine.pictures import phantoms
from engine.pictures.gallery import JPEG_BYTES
from engine.segmentation.segmenter import Segmenter

SHOWN = Terms("Discs", "drawn for the tests", "CC0", shown=True)


@pytest.fixture
def data(tmp_path, pictures, volumes):
    """A folder with the sets `discs`, all of whose pictures are for testing, and `balls`, with two volumes."""
    folder = tmp_path / "data"
    folder.mkdir()
    for part in (pictures, volumes):
        shutil.move(part, folder / part.name)
    annotations = folder / "discs" / "anns"
    rows = [
        row for split in ("train", "val", "test") for row in json.loads((annotations / f"{split}.json").read_text())
    ]
    for split, chosen in {"train": [], "val": [], "test": rows}.items():
        (annotations / f"{split}.json").write_text(json.dumps(chosen))
    description = json.loads((folder / "balls" / "dataset.json").read_text())
    description["test"] = description["training"][8:]
    description["training"] = description["training"][:8]
    (folder / "balls" / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def adapters(tmp_path, tiny_base):
    """Adapters that find everything everywhere; their cards name two sets, one of which lies nowhere."""
    values = {"threshold": 1e-4, "presence_threshold": 0.0}
    named = {"disc-finder": "discs", "ball-finder": "Ten volumes (balls), made for tests", "lost": "data, balls-2"}
    return [make_adapter(tmp_path / name, tiny_base, data_set=said, **values) for name, said in named.items()]


@pytest.fixture
def results_command(monkeypatch, capsys, data, adapters, tmp_path):
    given = [
        "--data",
        data,
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "-o",
        tmp_path / "out",
        "--adapters",
        *adapters,
    ]
    return lambda *further: run_command(monkeypatch, capsys, results.main, *given, *further)


def rows_of(path):
    table = [line for line in path.read_text().splitlines() if line.startswith("|")]
    columns, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    return [dict(zip(columns, row, strict=True)) for row in rows]


def test_each_adapter_is_measured_on_the_set_that_its_card_names(results_command, adapters, data, tmp_path):
    code, printed, errors = results_command()
    assert code == 0, errors
    assert "lost: left out" in printed and "disc-finder 1 / 28" in errors  # 4 pictures, 2 volumes of 12 slices
    summaries = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {name: (s["data_set"], s["cases"]) for name, s in summaries.items()} == {
        "disc-finder": ("discs", 4),
        "ball-finder": ("balls", 2),
    }
    segmenter = Segmenter(str(adapters[0]), device="cpu", precision="fp32")
    discs = open_data_set(data / "discs", "test")
    metrics = summaries["disc-finder"]["metrics"]
    assert metrics["plain"]["disc"] == means(evaluate(segmenter, discs))
    assert metrics["random"]["disc"] == means(evaluate(segmenter, discs, [random(0)]))
    assert metrics["wrong"] == {"(any)": {"false_positive_rate": 1.0, "false_positive_share": 1.0, "cases": 4}}
    rows = rows_of(tmp_path / "out" / "results.md")
    kinds = ("plain class prompt", "random prompts", "absent prompts")
    assert [row["prompts"] for row in rows if row["adapter"] == "disc-finder"] == list(kinds)
    assert rows[0]["Dice"].startswith(f"{metrics['plain']['disc']['dice']:.3f} (") and rows[0]["cases"] == "4"
    assert rows[2]["false positives"] == "in 100.0% of cases, 100.0% of voxels"
    assert [row["structure"] for row in rows if row["adapter"] == "ball-finder"][:3] == ["ball", "cube", "(all)"]


def test_a_subset_is_spread_evenly_and_said(results_command, tmp_path):
    code, _, errors = results_command("--subset", 2)
    assert code == 0, errors
    with (tmp_path / "out" / "disc-finder.csv").open() as file:
        assert {row["case"] for row in csv.DictReader(file)} == {"0.png", "3.png"}
    assert "At most 2 test cases of each set" in (tmp_path / "out" / "results.md").read_text()
    summary = json.loads((tmp_path / "out" / "results.json").read_text())["disc-finder"]
    assert (summary["cases"], summary["split_cases"]) == (2, 4)


def test_cards_take_the_figures_and_agree_with_them_the_next_time(results_command, adapters, tmp_path):
    old = {"other, test split, plain class prompt": {"disc": {"dice": 0.5, "iou": 0.4, "hd95": None, "cases": 1}}}
    write_card(adapters[0], replace(read_card(adapters[0]), metrics=old))
    assert results_command("--write-cards")[0] == 0
    card = read_card(adapters[0])
    assert [*card.metrics] == [*(measured("discs", kind) for kind in ("plain", "random", "wrong")), *old]
    assert Segmenter(str(adapters[0]), device="cpu").card == card
    text = (adapters[0] / "README.md").read_text()
    assert "## discs, test split, absent prompts" in text and "| (any) | 100.0% | 100.0% | 4 |" in text
    assert f"| disc | {card.metrics[measured('discs', 'random')]['disc']['dice']:.3f} (" in text

    assert results_command()[0] == 0
    agreed = [row for row in rows_of(tmp_path / "out" / "results.md") if row["agrees"]]
    assert {row["agrees"] for row in agreed} == {"yes"} and len(agreed) == 2 + 6
    card.metrics[measured("discs", "plain")]["disc"]["dice"] += 0.3
    write_card(adapters[0], card)
    assert results_command("--adapters", adapters[0])[0] == 0
    assert rows_of(tmp_path / "out" / "results.md")[0]["agrees"] == "no"
    assert results_command("--adapters", adapters[0], "--subset", 3)[0] == 0
    assert rows_of(tmp_path / "out" / "results.md")[0]["agrees"] == "outside the interval"


def test_figures_of_a_part_do_not_go_into_cards(results_command, adapters):
    before = (adapters[0] / "card.json").read_bytes()
    code, _, errors = results_command("--subset", 2, "--write-cards")
    assert code == 2 and "leave out --subset" in errors
    assert (adapters[0] / "card.json").read_bytes() == before


def test_another_plane_is_measured_but_goes_neither_into_cards_nor_into_the_gallery(
    results_command, adapters, tmp_path
):
    for unwanted in (["--write-cards"], ["--gallery", tmp_path / "gallery"]):
        code, _, errors = results_command("--plane", "sagittal", *unwanted)
        assert code == 2 and "leave out --plane" in errors
    code, _, errors = results_command("--plane", "sagittal", "--adapters", adapters[1])
    assert code == 0, errors
    assert "ball-finder 20 / 40" in errors  # volumes of 12 axial slices have 20 sagittal ones


def test_nothing_to_measure_is_refused(results_command, data, tmp_path):
    code, printed, errors = results_command("--data", tmp_path / "nowhere")
    assert code == 2 and "name folders that hold the adapters' data sets" in errors
    assert "there is no folder" in printed and not (tmp_path / "out").exists()


def test_the_gallery_shows_only_what_may_be_shown(results_command, adapters, monkeypatch, tmp_path):
    monkeypatch.setitem(TERMS, "discs", SHOWN)
    gallery = tmp_path / "gallery"
    code, _, errors = results_command("--gallery", gallery, "--write-cards")
    assert code == 0, errors
    assert files(gallery) == {"README.md", "disc-finder.jpg"}
    page = (gallery / "README.md").read_text()
    assert "![disc-finder](disc-finder.jpg)" in page and "Licence: CC0" in page
    assert "over 4 of 4 test cases of `discs`" in page
    assert "## ball-finder" in page and "No image of balls is shown: its terms are not known here" in page
    picture = np.asarray(Image.open(gallery / "disc-finder.jpg"))
    assert picture.std() > 20 and (gallery / "disc-finder.jpg").stat().st_size < JPEG_BYTES
    assert (adapters[0] / "picture.jpg").read_bytes() == (gallery / "disc-finder.jpg").read_bytes()
    assert "](picture.jpg)" in (adapters[0] / "README.md").read_text()
    assert not (adapters[1] / "picture.jpg").exists()
    assert "picture.jpg" not in (adapters[1] / "README.md").read_text()


def test_sets_that_may_not_be_shown_are_replaced_by_drawn_pictures(results_command, monkeypatch, tmp_path):
    monkeypatch.setitem(TERMS, "discs", replace(TERMS["kvasir_polyp"], title="Discs"))
    code, _, errors = results_command("--gallery", tmp_path / "gallery", "--subset", 1)
    assert code == 0, errors
    page = (tmp_path / "gallery" / "README.md").read_text()
    assert "![disc-finder](disc-finder.jpg)" in page and "These pictures are drawn. No image of Discs" in page


def test_several_prompts_are_shown_on_one_image(results_command, monkeypatch, tmp_path):
    monkeypatch.setitem(TERMS, "balls", replace(SHOWN, together=("ball", "cube")))
    code, _, errors = results_command("--gallery", tmp_path / "gallery")
    assert code == 0, errors
    page = (tmp_path / "gallery" / "README.md").read_text()
    assert page.index("](three-prompts.jpg)") < page.index("](ball-finder.jpg)") and "Of the 2 measured" in page
    monkeypatch.setitem(TERMS, "balls", replace(SHOWN, together=("ball", "spleen")))
    assert results_command("--gallery", tmp_path / "other")[0] == 0
    assert files(tmp_path / "other") == {"README.md", "ball-finder.jpg"}


def test_a_new_training_takes_the_old_picture_away(tiny_adapter):
    (tiny_adapter / "picture.jpg").write_bytes(b"of other weights")
    card = read_card(tiny_adapter)
    write_card(tiny_adapter, card)
    assert "](picture.jpg)" in (tiny_adapter / "README.md").read_text()
    save_bundle(tiny_adapter, Segmenter(str(tiny_adapter), device="cpu").model.trained, card)
    assert files(tiny_adapter) == {"adapter.safetensors", "card.json", "README.md"}
    assert "picture.jpg" not in (tiny_adapter / "README.md").read_text()


def test_a_card_for_people_says_how_long_the_training_took(tiny_adapter):
    training = {"seconds": 1234, "parameters": 5678, "device": "cpu"}
    write_card(tiny_adapter, replace(read_card(tiny_adapter), training=training))
    assert "5,678 parameters, trained in 1,234 s on cpu" in (tiny_adapter / "README.md").read_text()


@pytest.mark.parametrize("draw", [phantoms.polyp, phantoms.skin_lesion, phantoms.breast_tumour])
def test_a_drawn_structure_stands_out_where_its_reference_is(draw):
    volume, mask = draw(0)
    assert mask.shape == volume.shape and 0.02 < mask.mean() < 0.3
    assert not mask[0, [0, -1]].any() and not mask[0, :, [0, -1]].any()
    around = np.roll(mask, mask.sum(axis=(0, 1)).astype(bool).sum() + 8, axis=2)  # beside it
    grey = volume.voxels.astype(float).mean(axis=-1) if volume.is_rgb else volume.voxels
    assert abs(grey[mask].mean() - grey[around].mean()) > 5
    again, other = draw(0), draw(1)
    assert np.array_equal(again[0].voxels, volume.voxels) and not np.array_equal(other[1], mask)


def test_images_are_shown_by_licence_and_others_have_a_reason():
    allowed = {name for name, terms in TERMS.items() if terms.shown}
    assert not allowed & {"kvasir_polyp", "isic", "busi"}
    assert all(TERMS[name].reason and TERMS[name].draw for name in TERMS.keys() - allowed)
    assert all(TERMS[name].licence and TERMS[name].source for name in allowed)


def test_the_published_head_is_a_set_of_one_case():
    pytest.importorskip("nilearn", reason="the head is in nilearn's wheel")
    (case,) = head_set().cases()
    masks = {truth.plain_prompt: truth.mask for truth in case.truths}
    brain, grey, white = (masks[name] for name in ("brain", "grey matter", "white matter"))
    assert 1200 < brain.sum() * case.volume.voxel_volume_ml < 2200
    assert not (grey & white).any() and (brain >= (grey | white)).all()


def test_lines_of_progress_tell_the_time_left(capsys, monkeypatch):
    monkeypatch.setattr("engine.cli.LOG_EVERY_SECONDS", 0.0)
    with progress_bar("measuring", 4) as update:
        update(1)
        update(2)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "measuring 1 / 4" and re.fullmatch(r"measuring 2 / 4 about \d+ s left", second)
