"""Pictures with a description each, in the layout of LViT and MedCLIPSeg: what is read, and what is refused."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import run_command
from openpyxl import Workbook

from engine import evaluate, train
from engine.data import is_data_set, open_data_set, open_splits
from engine.data.described import STRUCTURE, images_of_fraction
from engine.errors import UserError
from engine.models.bundle import read_card

SIDE = 48
COUNTS = {"Train": 6, "Val": 2, "Test": 3}
VARIANTS = ("contradictory", "missing_location", "underdescriptive")


def write_sheet(path, rows, titles=("Image", "Description")):
    book = Workbook()
    book.active.append(titles)
    for row in rows:
        book.active.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def draw(folder, name, masks, mask_name, seed):
    random = np.random.default_rng(seed)
    row, column = random.integers(12, SIDE - 12, 2)
    y, x = np.ogrid[:SIDE, :SIDE]
    disc = (y - row) ** 2 + (x - column) ** 2 < 81
    for path, pixels in (
        (folder / "img" / name, random.integers(0, 60, (SIDE, SIDE)) + 150 * disc),
        (folder / masks / mask_name, 255 * disc),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(pixels.astype(np.uint8)), str(path))
    return disc, f"one bright disc in row {row}, column {column}"


@pytest.fixture
def medclipseg(tmp_path):
    """A set as MedCLIPSeg lays them out: label/, sheets in Prompts_Folder, other wordings for the test."""
    folder = tmp_path / "described"
    for number, (part, count) in enumerate(COUNTS.items()):
        rows = []
        for index in range(count):
            name = f"{part.lower()}{index}.png"
            rows.append((name, draw(folder / f"{part}_Folder", name, "label", name, 10 * number + index)[1]))
        original = "_original" if part == "Test" else ""
        write_sheet(folder / "Prompts_Folder" / f"{part}_text{original}.xlsx", rows)
        if part == "Test":
            for kind in VARIANTS:
                sheet = folder / "Prompts_Folder" / f"Test_text_{kind}.xlsx"
                write_sheet(sheet, [(name, f"{kind} {words}") for name, words in rows])
        else:
            write_sheet(folder / "Prompts_Folder" / f"{part}_text_50.xlsx", rows[1 : 1 + count // 2])
    return folder


def test_images_masks_and_descriptions_belong_together(medclipseg):
    assert is_data_set(medclipseg)
    sets = open_splits(medclipseg, ("axial",))
    assert {split: data_set.case_count for split, data_set in sets.items()} == {"train": 6, "val": 2, "test": 3}
    disc, words = draw(medclipseg / "Train_Folder", "train3.png", "label", "train3.png", 3)
    annotation = next(a for a in sets["train"].annotations if a.case == "train3.png")
    assert np.array_equal(sets["train"].mask(annotation), disc)
    assert annotation.prompts == ((words,),) and annotation.structure == STRUCTURE and not annotation.variants
    (truth,) = sets["test"].case("test0.png").truths
    assert dict(truth.variants) == {kind: f"{kind} {truth.plain_prompt}" for kind in VARIANTS}


@pytest.mark.parametrize(
    ("image", "mask", "in_sheet"),
    [
        ("a.jpg", "a.png", "a.png"),  # MoNuSeg: the sheet names masks, whose images are of another format
        ("a.png", "mask_a.png", "mask_a.png"),  # QaTa-COV19
        ("a.png", "a.png", "a.tif"),  # MoNuSeg's sheets
    ],
)
def test_sheets_in_the_folders_of_lvit_name_masks_or_images(tmp_path, image, mask, in_sheet):
    folder = tmp_path / "cells"
    disc, words = draw(folder / "Train_Folder", image, "labelcol", mask, 1)
    write_sheet(folder / "Train_Folder" / "Train_text.xlsx", [(in_sheet, words)])
    (annotation,) = open_data_set(folder, "train").annotations
    assert annotation.plain_prompt == words
    assert np.array_equal(open_data_set(folder, "train").mask(annotation), disc)
    assert open_data_set(folder, "val").case_count == 0


def test_a_fraction_is_the_sets_own_where_it_lists_one(medclipseg):
    listed = images_of_fraction(medclipseg, "train", 50)
    assert [path.name for path in listed] == ["train1.png", "train2.png", "train3.png"]
    assert all(path.is_file() for path in listed)
    assert images_of_fraction(medclipseg, "train", 10) is None


@pytest.mark.parametrize(
    ("rows", "titles", "message"),
    [
        ([("train0.png", "")], ("Image", "Description"), "no description for train0.png in row 2"),
        ([("other.png", "words")], ("Image", "Description"), "names other.png, which is not there"),
        ([("../../x.png", "words")], ("Image", "Description"), "mend it"),
        ([("train0.png", "words")], ("Image", "Text"), "must have Image and Description"),
    ],
)
def test_a_sheet_that_says_too_little_is_named(medclipseg, rows, titles, message):
    write_sheet(medclipseg / "Prompts_Folder" / "Train_text.xlsx", rows, titles)
    with pytest.raises(UserError, match=message) as refusal:
        open_data_set(medclipseg, "train")
    assert "Train_text.xlsx" in str(refusal.value)


def test_what_is_no_sheet_and_what_has_none_is_said(medclipseg):
    sheet = medclipseg / "Prompts_Folder" / "Train_text.xlsx"
    sheet.write_text("Image,Description")
    with pytest.raises(UserError, match="cannot be read as an Excel sheet"):
        open_data_set(medclipseg, "train")
    sheet.unlink()
    with pytest.raises(UserError, match=r"has no Train_text\.xlsx"):
        open_data_set(medclipseg, "train")


def test_a_training_on_a_fraction_is_measured_by_other_wordings_and_on_other_sets(
    monkeypatch, capsys, medclipseg, pictures, tiny_base, tmp_path
):
    adapter = tmp_path / "adapter"
    options = ["--data", medclipseg, "-o", adapter, "--base", tiny_base, "--epochs", 1, "--batch-size", 2]
    options += ["--fraction", 50, "--device", "cpu"]
    code, printed, errors = run_command(monkeypatch, capsys, train.main, *options)
    assert code == 0, errors
    assert "annotations: 3 for training, 1 for validation" in printed
    assert len(read_card(adapter).prompts) == 3

    output = tmp_path / "out"
    options = ["--data", medclipseg, pictures, "-a", adapter, "-o", output, "--prompts", "p1", "variants"]
    code, printed, errors = run_command(
        monkeypatch, capsys, evaluate.main, *options, "--base", tiny_base, "--device", "cpu"
    )
    assert code == 0, errors
    kinds = json.loads((output / "described" / "summary.json").read_text())["adapters"][str(adapter)]["prompts"]
    assert list(kinds) == ["plain", *VARIANTS]
    assert kinds["contradictory"][STRUCTURE]["cases"] == COUNTS["Test"]
    with (output / "described" / "scores.csv").open() as file:
        assert {row["structure"] for row in csv.DictReader(file) if row["kind"] == "plain"} == {STRUCTURE}
    table = (output / "summary.md").read_text()
    assert table.count(f"| {medclipseg.name} |") == 1 + len(VARIANTS)


def test_two_sets_of_one_name_are_refused(monkeypatch, capsys, medclipseg, tmp_path):
    other = tmp_path / "elsewhere" / medclipseg.name
    options = ["--data", medclipseg, other, "-a", "none", "-o", tmp_path / "out"]
    code, _, errors = run_command(monkeypatch, capsys, evaluate.main, *options)
    assert code == 2 and "same name" in errors
