"""The check of a data set: what it counts, and that it lists all that training would stop at."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import files, run_command
from PIL import Image

from engine import train
from engine.data.checking import check, choose_masks
from engine.errors import Cancelled


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda *arguments: run_command(monkeypatch, capsys, train.main, *arguments)


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_grey(path, picture):
    sitk.WriteImage(sitk.GetImageFromArray(picture), path)


def test_pictures_are_counted_and_measured(pictures, command, tmp_path):
    code, printed, errors = command("--data", pictures, "--check", "-o", tmp_path / "out")
    assert code == 0, errors
    assert files(tmp_path / "out") == {"report.md", "report.json", "contact_sheet.png"}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(image["split"], image["case"]) for image in report["images"]] == [
        ("train", "0.png"),
        ("train", "1.png"),
        ("val", "2.png"),
        ("test", "3.png"),
    ]
    assert report["images"][0]["size"] == [50, 40, 1] and report["images"][0]["colour"]
    assert report["prompts"]["train"] == {"disc": 2, "bright disc": 2, "round thing": 2}
    disc = np.pi * 8**2 / (40 * 50)
    assert all(abs(mask["share"] - disc) < 0.01 and 0 < mask["odd_share"] < 0.5 for mask in report["masks"])
    assert "No problems" in printed and "4 mask(s) hold values between 0 and 255" in " ".join(printed.split())
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 200


def test_volumes_are_counted_with_the_slices_that_show_each_structure(volumes):
    report = check(volumes, ("axial", "sagittal"), "2.5d")
    assert not report.problems
    assert [len(report.structures(split).get("cube", [])) for split in ("train", "val", "test")] == [9, 1, 0]
    cube = report.structures("val")["cube"][0]
    assert (cube.voxels, cube.slices) == (2 * 4 * 4, 2 + 4)
    assert "the split 'test' has no images" in report.remarks
    assert report.images[0].size == (20, 16, 12)


def test_every_problem_is_listed_by_the_name_of_its_file(pictures, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cut_off(pictures / "images" / "0.png")
    write_grey(pictures / "images" / "1.png", np.full((40, 50), 7, np.uint8))
    write_grey(pictures / "masks" / "1.jpg", np.zeros((30, 50), np.uint8))
    (pictures / "images" / "3.png").write_bytes((pictures / "images" / "2.png").read_bytes())
    (pictures / "masks" / "2.jpg").unlink()
    code, printed, errors = command("--data", pictures, "--check")
    assert code == 2 and "training would stop at 5 problem(s); see check/report.md" in errors
    problems = json.loads((tmp_path / "check" / "report.json").read_text())["problems"]
    messages = "\n".join(problem["message"] for problem in problems)
    for expected in (
        "images/0.png is damaged",
        "every voxel of 1.png is 7",
        "masks/1.jpg has 50 × 30 pixels and its image 1.png 50 × 40",
        "masks/2.jpg does not exist",
        "shared between splits: 3.png with 2.png in 'val'",
    ):
        assert expected in messages, messages
    assert "0.pngisdamaged" in "".join(printed.split())


def test_every_broken_volume_is_listed(volumes):
    cut_off(volumes / "imagesTr" / "1.nii.gz")
    cut_off(volumes / "labelsTr" / "2.nii.gz")
    nan = sitk.Cast(sitk.ReadImage(volumes / "imagesTr" / "3.nii.gz"), sitk.sitkFloat32)
    nan[2, 3, 4] = float("nan")
    sitk.WriteImage(nan, volumes / "imagesTr" / "3.nii.gz")
    (volumes / "imagesTr" / "5.nii.gz").unlink()
    report = check(volumes, ("axial",), "slice")
    messages = [problem.message for problem in report.problems]
    assert len(messages) == 3, "\n".join(messages)
    names = ("imagesTr/1.nii.gz", "labelsTr/2.nii.gz", "imagesTr/5.nii.gz")
    assert all(name in message for name, message in zip(names, messages, strict=True))
    assert any("3.nii.gz: 1 voxels" in remark and "NaN" in remark for remark in report.remarks), report.remarks


def test_shared_images_are_no_problem_where_training_leaves_them_out(pictures):
    (pictures / "images" / "3.png").write_bytes((pictures / "images" / "2.png").read_bytes())
    assert len(check(pictures, ("axial",), "slice").problems) == 1
    report = check(pictures, ("axial",), "slice", drop_overlap=True)
    assert not report.problems and any("left out of 'test'" in remark for remark in report.remarks)


@pytest.mark.parametrize(
    ("split", "content", "message"),
    [
        ("train", "[]", "nothing is labelled"),
        ("val", "[{", "val.json is not valid JSON"),
        ("test", None, "missing"),
    ],
)
def test_a_split_that_cannot_be_opened_is_a_problem_and_the_others_are_read(pictures, split, content, message):
    path = pictures / "anns" / f"{split}.json"
    path.unlink() if content is None else path.write_text(content)
    report = check(pictures, ("axial",), "slice")
    assert [p.split for p in report.problems] == [split] and message in report.problems[0].message
    assert {image.split for image in report.images} == {"train", "val", "test"} - {split}


def test_empty_and_tiny_masks_and_untrained_structures_are_told(pictures):
    write_grey(pictures / "masks" / "0.png", np.zeros((40, 50), np.uint8))
    write_grey(pictures / "masks" / "3.png", np.eye(40, 50, dtype=np.uint8) * (np.arange(50) < 3).astype(np.uint8))
    for split, number, prompt in (("train", 0, "disc"), ("test", 3, "dot")):
        path = pictures / "anns" / f"{split}.json"
        rows = json.loads(path.read_text())
        rows[0] |= {"mask_name": f"{number}.png", "prompts": {"p1": prompt}}
        path.write_text(json.dumps(rows))
    report = check(pictures, ("axial",), "slice")
    assert sorted(mask.voxels > 0 for mask in report.structures("train")["disc"]) == [False, True]
    remarks = " ".join(report.remarks)
    assert "structures that are not in 'train': dot" in remarks
    assert "1 mask(s) show fewer than 10 pixels or voxels, such as dot in 3.png" in remarks


def test_the_sheet_shows_every_structure_and_split(volumes):
    masks = check(volumes, ("axial",), "slice").masks
    chosen = choose_masks(masks, 6)
    assert {(mask.split, mask.structure) for mask in chosen} == {
        (split, structure) for split in ("train", "val") for structure in ("ball", "cube")
    }
    assert len({(mask.case, mask.structure) for mask in chosen}) == 6
    assert len(choose_masks(masks, 100)) == len(masks)


def test_a_check_can_be_stopped(volumes):
    def stop(done, total):
        assert (done, total) == (1, 10)
        raise Cancelled

    with pytest.raises(Cancelled):
        check(volumes, ("axial",), "slice", on_case=stop)


def test_without_a_check_an_output_is_needed(pictures, command):
    code, _, errors = command("--data", pictures)
    assert code == 2 and "say where the adapter goes: -o FOLDER" in errors


def break_image(folder):
    cut_off(folder / "images" / "1.png")


def break_mask(folder):
    cut_off(folder / "masks" / "1.jpg")


def break_validation(folder):
    cut_off(folder / "images" / "2.png")


def shrink_mask(folder):
    write_grey(folder / "masks" / "1.jpg", np.zeros((40, 30), np.uint8))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_image, "images/1.png is damaged"),
        (break_mask, "masks/1.jpg is damaged"),
        (break_validation, "images/2.png is damaged"),
        (shrink_mask, "masks/1.jpg has 30 × 40 pixels and its image 1.png 50 × 40"),
    ],
)
def test_training_stops_at_a_broken_picture_with_its_name(pictures, command, tmp_path, tiny_base, damage, message):
    damage(pictures)
    options = ["--base", tiny_base, "--device", "cpu", "--epochs", 1, "--batch-size", 1]
    code, _, errors = command("--data", pictures, "-o", tmp_path / "out", *options)
    last = errors.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: ") and message in last and "Traceback" not in errors


def test_training_stops_at_a_broken_volume_with_its_name(volumes, command, tmp_path, tiny_base):
    cut_off(volumes / "imagesTr" / "4.nii.gz")
    code, _, errors = command("--data", volumes, "-o", tmp_path / "out", "--base", tiny_base, "--device", "cpu")
    assert code == 2 and "imagesTr/4.nii.gz ends before its last voxel" in errors and "Traceback" not in errors
