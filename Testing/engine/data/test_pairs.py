"""Volumes with .seg.nrrd files beside them: which belong together, where their segments lie, how they are split."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ball

from engine.data import open_data_set, open_splits
from engine.errors import UserError
from engine.imaging.labels import read_segmentation
from engine.imaging.reading import read_volume
from engine.imaging.volumes.segments import Segment
from engine.imaging.writing import write_segments

SHAPE = (8, 10, 12)
BALL, BIG = ball(SHAPE, (4, 5, 5), 2), ball(SHAPE, (4, 5, 6), 3)  # they overlap
MASKS = {"ball": BALL, "big ball": BIG, "nothing": np.zeros(SHAPE, bool)}
OBLIQUE = (0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1)


def write_pair(volume_path, segmentation_path=None, masks=MASKS, seed=0):
    voxels = np.random.default_rng(seed).integers(0, 99, SHAPE).astype(np.int16) + BIG * 200
    image = sitk.GetImageFromArray(voxels.astype(np.int16))
    image.SetSpacing((0.8, 1.1, 2.5))
    image.SetOrigin((-40, 25, 310))
    image.SetDirection(OBLIQUE)
    volume_path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, volume_path)
    if segmentation_path is None:
        segmentation_path = volume_path.with_name(volume_path.name.split(".")[0] + ".seg.nrrd")
    segments = [Segment(name, mask, (1, 0, 0)) for name, mask in masks.items()]
    write_segments(segmentation_path, segments, read_volume(volume_path))
    return segmentation_path


@pytest.fixture
def pair(tmp_path):
    """A volume and its segmentation, as files."""
    return tmp_path / "scan.nrrd", write_pair(tmp_path / "scan.nrrd")


@pytest.fixture
def pairs(tmp_path):
    """Three pairs in the folder itself, two patients with one scan, and one patient with two."""
    folder = tmp_path / "pairs"
    for number, suffix in enumerate((".nii.gz", ".mha", ".nrrd")):
        write_pair(folder / f"top{number}{suffix}", seed=number)
    write_pair(folder / "anna" / "T1.nrrd", folder / "anna" / "Segmentation.seg.nrrd", seed=3)
    write_pair(folder / "ben" / "T1.nrrd", folder / "ben" / "T1-label.seg.nrrd", seed=4)
    for number in (5, 6):
        write_pair(folder / "cleo" / f"day{number}.nii", seed=number)
    return folder


def rewritten(path, change=lambda image: image, names=("ball", "big ball", "nothing"), fields=""):
    """Change the image of a .seg.nrrd and write it with a header of Slicer's kind."""
    image = change(sitk.ReadImage(path))
    sitk.WriteImage(image, path)
    head, voxels = path.read_bytes().split(b"\n\n", 1)
    lines = [line for line in head.split(b"\n") if not line.startswith((b"Segment", b"ITK"))]
    texts = [f"Segment{i}_ID:=S{i}\nSegment{i}_Name:={name}" for i, name in enumerate(names)]
    path.write_bytes(b"\n".join(lines) + ("\n" + "\n".join(texts) + fields).encode() + b"\n\n" + voxels)


def test_segments_that_overlap_are_read_where_they_were_written(pair):
    labels = read_segmentation(pair[1], read_volume(pair[0]))
    assert len(labels.layers) == 2
    assert {name: labels.mask(name).sum() for name in labels.places} == {n: m.sum() for n, m in MASKS.items()}
    assert all(np.array_equal(labels.mask(name), mask) for name, mask in MASKS.items())


def test_segments_of_one_name_are_one_structure(tmp_path):
    path = write_pair(tmp_path / "scan.nrrd", masks={"ball": BALL, "rest": BIG & ~BALL})
    path.write_bytes(path.read_bytes().replace(b"Name:=rest", b"Name:=ball"))
    labels = read_segmentation(path, read_volume(tmp_path / "scan.nrrd"))
    assert [*labels.places] == ["ball"] and np.array_equal(labels.mask("ball"), BIG)


PLACES = {
    "crop": lambda image: image[1:11, 1:9, 1:],
    "crop and turn": lambda image: sitk.PermuteAxes(
        sitk.Flip(image[1:11, 1:9, 1:], (True, False, True)), (2, 0, 1)
    ),
    "pad": lambda image: sitk.ConstantPad(image, (3, 0, 1), (0, 4, 2)),
}


@pytest.mark.parametrize("place", PLACES)
def test_cropped_turned_and_padded_extents_land_on_the_same_voxels(tmp_path, place):
    path = write_pair(tmp_path / "scan.nrrd", masks={"big ball": BIG})
    rewritten(path, PLACES[place], ["big ball"], "\nSegment0_Layer:=0\nSegment0_LabelValue:=1")
    assert np.array_equal(read_segmentation(path, read_volume(tmp_path / "scan.nrrd")).mask("big ball"), BIG)


def test_files_of_old_slicers_have_a_layer_of_ones_for_each_segment(tmp_path):
    path = write_pair(tmp_path / "scan.nrrd")
    layers = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in MASKS.values()]

    def change(image):
        stacked = sitk.Compose(layers)
        stacked.CopyInformation(sitk.VectorIndexSelectionCast(image, 0))
        return stacked

    rewritten(path, change)
    labels = read_segmentation(path, read_volume(tmp_path / "scan.nrrd"))
    assert all(np.array_equal(labels.mask(name), mask) for name, mask in MASKS.items())


def moved(millimetres):
    def change(image):
        image.SetOrigin(tuple(np.add(image.GetOrigin(), millimetres)))
        return image

    return change


def spaced(image):
    image.SetSpacing((0.9, 1.1, 2.5))
    return image


def turned(image):
    image.SetDirection(np.eye(3).ravel())
    return image


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved((0, 0, 1.25)), r"scan\.seg\.nrrd does not lie on the voxels of scan\.nrrd"),
        (spaced, r"does not lie on the voxels"),
        (turned, r"does not lie on the voxels"),
        (lambda image: image[::2, :, :], r"does not lie on the voxels"),
        (moved((0, 0, 2.5 * 5)), r"has segments beyond the edge of scan\.nrrd"),
        (moved((0, 0, 2.5 * 50)), r"has segments beyond the edge"),
        (lambda image: sitk.Cast(image, sitk.sitkFloat32), r"is no segmentation"),
    ],
)
def test_a_segmentation_on_another_grid_is_refused(tmp_path, change, message):
    path = write_pair(tmp_path / "scan.nrrd", masks={"big ball": BIG})
    rewritten(path, change, ["big ball"])
    with pytest.raises(UserError, match=message):
        read_segmentation(path, read_volume(tmp_path / "scan.nrrd"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) - 30], r"scan\.seg\.nrrd ends before its last voxel"),
        (lambda content: content.replace(b"Segment1_Layer:=1", b"Segment1_Layer:=7"), "has no layer 7"),
        (lambda content: content.replace(b"Segment1_Layer:=1", b"Segment1_Layer:=x"), "no valid layer"),
        (lambda content: content.replace(b"Segment", b"Xegment"), "names no segments"),
        (lambda content: b"\n", r"scan\.seg\.nrrd is no NRRD"),
        (
            lambda content: content.replace(b"Representation:=Binary", b"Representation:=Fractional"),
            "save it from Slicer as binary",
        ),
    ],
)
def test_a_damaged_segmentation_is_refused(pair, damage, message):
    pair[1].write_bytes(damage(pair[1].read_bytes()))
    with pytest.raises(UserError, match=message):
        read_segmentation(pair[1], read_volume(pair[0]))


def test_pairs_are_found_with_their_segment_names_as_prompts(pairs):
    (pairs / "unlabelled.nrrd").write_bytes((pairs / "top2.nrrd").read_bytes())
    data_set = open_data_set(pairs, "train")
    names = ["top0.nii.gz", "top1.mha", "top2.nrrd", "anna/T1.nrrd", "ben/T1.nrrd"]
    assert sorted(data_set.paths) == sorted(names)
    assert {a.plain_prompt for a in data_set.annotations} == {*MASKS}
    for annotation in data_set.annotations[::5]:
        mask = data_set.mask(annotation)
        assert mask.any() == annotation.present
        assert (mask <= (data_set.image(annotation) > 127)).all()
    for case in data_set.cases():
        assert all(np.array_equal(truth.mask, MASKS[truth.plain_prompt]) for truth in case.truths)


def test_a_patients_volumes_are_never_parted(pairs):
    sets = open_splits(pairs, ("axial",))
    assert [*sets["val"].paths] == ["cleo/day5.nii", "cleo/day6.nii"]
    assert sets["train"].case_count == 5 and not sets["test"].case_count


def test_splits_json_names_volumes_and_sub_folders(pairs):
    chosen = {"train": ["top0", "top1.mha", "cleo"], "val": ["anna/T1.nrrd"], "test": ["ben", "top2"]}
    (pairs / "splits.json").write_text(json.dumps(chosen))
    sets = open_splits(pairs, ("axial",))
    assert [sorted(s.paths) for s in sets.values()] == [
        ["cleo/day5.nii", "cleo/day6.nii", "top0.nii.gz", "top1.mha"],
        ["anna/T1.nrrd"],
        ["ben/T1.nrrd", "top2.nrrd"],
    ]


ALL = ["top0", "top1", "top2", "anna", "ben", "cleo"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"train": [*ALL, "dora"]}, r"splits\.json names 'dora' in 'train', and there is no such"),
        ({"train": ALL, "val": ["anna"]}, r"names anna/T1\.nrrd twice"),
        ({"train": ALL, "val": ["day5"]}, r"names cleo/day5\.nii twice"),
        ({"train": ALL[1:]}, r"gives no split to top0\.nii\.gz"),
        ({"training": ALL}, r"unknown splits: training"),
        ([ALL], r"is no table"),
        ({"train": [*ALL[:5], "day5"], "val": ["day6"]}, r"'val' shares 1 image.*both of patient cleo"),
    ],
)
def test_a_wrong_splits_json_is_refused(pairs, chosen, message):
    (pairs / "splits.json").write_text(json.dumps(chosen))
    with pytest.raises(UserError, match=message):
        open_splits(pairs, ("axial",))


def test_what_cannot_be_paired_is_refused(pairs):
    (pairs / "cleo" / "day5.seg.nrrd").rename(pairs / "cleo" / "day7.seg.nrrd")
    with pytest.raises(UserError, match=r"day7\.seg\.nrrd has no volume beside it"):
        open_data_set(pairs, "train")
    (pairs / "cleo" / "day7.seg.nrrd").rename(pairs / "cleo" / "day6-label.seg.nrrd")
    with pytest.raises(UserError, match=r"two segmentations of cleo/day6\.nii"):
        open_data_set(pairs, "train")


def test_wordings_of_segments_stand_in_prompts_yaml(pairs):
    (pairs / "prompts.yaml").write_text("ball: [small sphere, ball]\n")
    prompts = {a.plain_prompt for a in open_data_set(pairs, "val").annotations}
    assert prompts == {"small sphere", "big ball", "nothing"}
    (pairs / "prompts.yaml").write_text("Ball: small sphere\n")
    with pytest.raises(UserError, match=r"unknown labels: Ball; there are ball, big ball, nothing"):
        open_data_set(pairs, "val")
