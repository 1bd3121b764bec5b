"""Labelled images in the layouts of MedVLSM, the Decathlon and nnU-Net."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ball

from engine.data import open_data_set, open_splits
from engine.data.splits import shared_with_earlier, spread_evenly
from engine.errors import UserError
from engine.imaging.volumes.planes import CHANNELS, PLANES


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


def test_prompts_yaml_gives_labels_their_wordings(volumes):
    (volumes / "prompts.yaml").write_text("ball: [round thing, the ball]\n")
    annotations = open_data_set(volumes, "train").annotations
    assert {a.target: a.prompts for a in annotations} == {
        "ball": (("round thing", "the ball"),),
        "cube": (("cube",),),  # not named, so it keeps its own name
    }
    assert {a.plain_prompt for a in annotations} == {"round thing", "cube"}
    assert {t.plain_prompt for t in next(open_data_set(volumes, "val").cases()).truths} == {"round thing", "cube"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sphere: ball", r"prompts\.yaml names unknown labels: sphere; there are ball, cube"),
        ("ball: []", r"gives 'ball' no wording"),
        ("ball: [1]", r"gives 'ball' no wording"),
        ("ball: thing\ncube: [box, thing]", r"gives 'thing' to both 'ball' and 'cube'"),
        ("ball: cube", r"gives 'cube' to both"),
        ("- ball", r"holds no labels"),
        ("ball: [", r"cannot be read as YAML"),
    ],
)
def test_wrong_prompts_yaml_is_refused(volumes, text, message):
    (volumes / "prompts.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        open_data_set(volumes, "train")


def as_nnunet(folder):
    """Rename the Decathlon's files as nnU-Net does, with its description, which lists no volumes."""
    for number in range(10):
        (folder / "imagesTr" / f"{number}.nii.gz").rename(folder / "imagesTr" / f"{number}_0000.nii.gz")
    for part in ("images", "labels"):
        (folder / f"{part}Ts").mkdir()
    for path, end in (("images", "9_0000"), ("labels", "9")):
        (folder / f"{path}Tr" / f"{end}.nii.gz").rename(folder / f"{path}Ts" / f"{end}.nii.gz")
    labels = {"background": 0, "ball": 1, "cube": 2}
    description = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 9, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    return description


def test_nnunet_folders_need_no_list_of_volumes(volumes):
    as_nnunet(volumes)
    sets = {split: open_data_set(volumes, split) for split in ("train", "val", "test")}
    assert [data_set.case_count for data_set in sets.values()] == [8, 1, 1]
    assert list(sets["test"].paths) == ["9_0000.nii.gz"]
    assert next(sets["test"].cases()).truths[1].mask.sum() == 2 * 4 * 4


def test_volumes_of_several_channels_are_refused(volumes):
    description = as_nnunet(volumes) | {"channel_names": {"0": "T1", "1": "T2"}}
    (volumes / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"2 channels \(T1, T2\)"):
        open_data_set(volumes, "train")


def set_patients(path, patients, rows_of=lambda description: description):
    description = json.loads(path.read_text())
    for row, patient in zip(rows_of(description), patients, strict=True):
        row["patient"] = patient
    path.write_text(json.dumps(description))


def test_a_patient_in_two_splits_is_refused_or_left_out_of_the_later(pictures):
    for split, patients in {"train": ["a", "b"], "val": ["c"], "test": ["b"]}.items():
        set_patients(pictures / "anns" / f"{split}.json", patients)
    with pytest.raises(
        UserError, match=r"'test' shares 1 image.*3\.png with 1\.png in 'train' \(both of patient b\)"
    ):
        open_splits(pictures, ("axial",))
    sets = open_splits(pictures, ("axial",), drop_overlap=True)
    assert [data_set.case_count for data_set in sets.values()] == [2, 1, 0]


def test_volumes_of_one_patient_are_held_out_together(volumes):
    patients = ["a", "b", "c", "d", "e", "f", "f", "f", "g", "h"]
    set_patients(volumes / "dataset.json", patients, lambda description: description["training"])
    sets = open_splits(volumes, ("axial",))
    assert list(sets["val"].paths) == ["5.nii.gz", "6.nii.gz", "7.nii.gz"]
    assert sets["train"].case_count == 7


@pytest.mark.parametrize("plane", PLANES)
def test_neighbouring_slices_are_the_channels_and_the_ends_repeat_themselves(volumes, plane):
    flat, deep = (open_data_set(volumes, "val", (plane,), channels) for channels in CHANNELS)
    slices = {a.image: flat.image(a) for a in flat.annotations}
    stack = [image for _, image in sorted(slices.items(), key=lambda item: item[0][2])]
    for annotation in deep.annotations:
        position = annotation.image[2]
        expected = [stack[min(max(position + step, 0), len(stack) - 1)] for step in (-1, 0, 1)]
        assert np.array_equal(deep.image(annotation), np.stack(expected, axis=-1))
    masks = [deep.mask(a).sum() for a in deep.annotations]
    assert masks == [flat.mask(a).sum() for a in flat.annotations]


def test_colours_have_no_room_for_neighbours(pictures, volumes):
    with pytest.raises(UserError, match=r"discs holds pictures, which have no neighbouring slices"):
        open_data_set(pictures, "train", channels="2.5d")
    path = volumes / "imagesTr" / "0.nii.gz"
    grey = sitk.Cast(sitk.ReadImage(path), sitk.sitkUInt8)
    sitk.WriteImage(sitk.Compose(grey, grey, grey), path)
    with pytest.raises(UserError, match=r"0\.nii\.gz is in colour"):
        _ = open_data_set(volumes, "train", channels="2.5d").annotations


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("part", ["imagesTr", "labelsTr"])
def test_a_volume_that_is_cut_off_is_named(volumes, part):
    cut_off(volumes / part / "3.nii.gz")
    with pytest.raises(UserError, match=rf"{part}.3\.nii\.gz"):
        _ = open_data_set(volumes, "train").annotations


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((40, 49), np.uint8), r"masks.0\.png has 49 × 40 pixels and its image 0\.png 50 × 40"),
        (np.eye(40, 50, dtype=np.uint8) * 2, r"masks.0\.png holds numbers up to 2"),
        (
            np.eye(40, 50, dtype=np.uint8)[..., None] * np.array([200, 0, 0], np.uint8),
            r"masks.0\.png is a coloured",
        ),
    ],
)
def test_files_that_are_no_mask_of_their_image_are_refused(pictures, mask, message):
    sitk.WriteImage(sitk.GetImageFromArray(mask, isVector=mask.ndim == 3), pictures / "masks" / "0.png")
    rows = json.loads((pictures / "anns" / "train.json").read_text())
    (pictures / "anns" / "train.json").write_text(json.dumps([rows[0] | {"mask_name": "0.png"}]))
    data_set = open_data_set(pictures, "train")
    with pytest.raises(UserError, match=message):
        data_set.mask(data_set.annotations[0])


def test_images_that_are_parted_by_split_may_have_names_that_recur(pictures):
    """As CAMUS is published: `train` holds what is for training and validation."""
    for name in ("images", "masks"):
        folder = pictures / name
        for part, numbers in {"train": (0, 1, 2), "test": (3,)}.items():
            (folder / part).mkdir()
            for number in numbers:
                (path,) = folder.glob(f"{number}.*")
                path.rename(folder / part / f"{0 if part == 'test' else number}{path.suffix}")
    rows = json.loads((pictures / "anns" / "test.json").read_text())
    rows[0] |= {"img_name": "0.png", "mask_name": "0.jpg"}
    (pictures / "anns" / "test.json").write_text(json.dumps(rows))
    sets = open_splits(pictures, ("axial",))
    assert sets["train"].paths["0.png"] == pictures / "images" / "train" / "0.png"
    assert list(sets["val"].paths.values()) == [pictures / "images" / "train" / "2.png"]
    (case,) = sets["test"].cases()
    centre = np.argwhere(case.truths[0].mask[0]).mean(axis=0)
    assert centre == pytest.approx((24, 30), abs=0.5)  # of the fourth disc


def test_masks_begin_above_the_grey_value_that_is_asked_for(pictures):
    data_set = open_data_set(pictures, "train")
    (grey,) = [sitk.GetArrayFromImage(sitk.ReadImage(path)) for path in [pictures / "masks" / "0.jpg"]]
    for above in (0, 127):
        mask = data_set.masks_above(above).mask(data_set.annotations[0])
        assert np.array_equal(mask, grey > above)
    assert (grey > 0).sum() > (grey > 127).sum()  # JPEG's ringing
    assert np.array_equal(data_set.mask(data_set.annotations[0]), grey > 127)


def test_splits_that_share_an_image_are_kept_where_that_is_asked_for(pictures):
    (pictures / "images" / "3.png").write_bytes((pictures / "images" / "0.png").read_bytes())
    kept = open_splits(pictures, ("axial",), keep_overlap=True)
    assert kept["test"].case_count == 1
    (overlap,) = shared_with_earlier(pictures, "test")
    assert str(overlap) == "3.png with 0.png in 'train'" and shared_with_earlier(pictures, "train") == []
    (pictures / "anns" / "val.json").unlink()
    assert shared_with_earlier(pictures, "test") == [overlap]


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (3, [0, 3, 6]), (10, [*range(10)]), (11, [*range(10)])])
def test_a_part_is_spread_evenly(count, expected):
    assert spread_evenly([*range(10)], count) == expected


def test_pictures_of_16_bits_are_seen_as_inference_sees_them(pictures):
    path = pictures / "images" / "0.png"
    bright = sitk.GetArrayFromImage(sitk.ReadImage(path))[..., 0].astype(np.uint16) * 200
    sitk.WriteImage(sitk.GetImageFromArray(bright), path)
    data_set = open_data_set(pictures, "train")
    image = data_set.image(data_set.annotations[0])
    assert image.dtype == np.uint8 and image.min() == 0 and image.max() == 255
    assert len(np.unique(image)) > 50 and np.corrcoef(image.ravel(), bright.ravel())[0, 1] > 0.99
