"""A training that is started from the scene: what is written, what is refused, and a real run that is stopped."""

import json

import numpy as np
import pytest
from conftest import ball
from harness import DIRECTIONS, add_transform, add_volume, open_scene, slicer
from VLSMSegmenterLib.shared import segmentations
from VLSMSegmenterLib.shared.engines import LocalEngine, RemoteEngine
from VLSMSegmenterLib.shared.labels import Pair
from VLSMSegmenterLib.shared.logic import SegmenterLogic
from VLSMSegmenterLib.shared.training import METHODS, Settings, Training, _splits, data_folder
from VLSMSegmenterLib.shared.volumes import grid_of

from engine.data import open_splits
from engine.errors import Cancelled, UserError
from engine.models.bundle import read_card
from engine.models.places import user_models
from engine.nets.methods import METHODS as ALL_METHODS

SHAPE = (6, 20, 24)
BALL, CUBE = ball(SHAPE, (3, 9, 12), 5), np.zeros(SHAPE, bool)
CUBE[1:5, 4:12, 10:20] = True  # they overlap
MOVED = np.array([[0.0, -1, 0, 15], [1, 0, 0, -7], [0, 0, 1, 100], [0, 0, 0, 1]])


@pytest.fixture
def scene(tmp_path):
    with open_scene(tmp_path) as scene:
        yield scene


@pytest.fixture
def training(scene):
    return Training(SegmenterLogic(LocalEngine()))


def labelled(masks, axes="oblique", name="Jane Doe", transform=None):
    """Add a volume whose voxels say where the segments should be, with its segmentation."""
    voxels = np.random.default_rng(len(name)).integers(0, 9, SHAPE).astype(np.int16)
    for number, mask in enumerate(masks.values()):
        voxels += mask.astype(np.int16) * 100 * 2**number
    volume = add_volume(voxels, DIRECTIONS[axes], name)
    if transform is not None:
        volume.SetAndObserveTransformNodeID(add_transform(transform).GetID())
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"labels of {name}")
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for prompt, mask in masks.items():
        identifier = segmentations.add_segment(node, prompt, (1, 0, 0))
        segmentations.write_mask(node, identifier, mask, grid_of(volume))
    return Pair(volume, node)


def write(training, pairs, name="mine"):
    settings = Settings(name)
    training._run(lambda job: training._write_data_set(job, pairs, settings), pairs, None, lambda *news: None)
    return data_folder(name)


@pytest.mark.parametrize("axes", DIRECTIONS)
def test_the_data_set_has_each_segment_on_its_voxels(training, axes):
    masks = {"ball": BALL, "a cube": CUBE, "nothing": np.zeros(SHAPE, bool)}
    folder = write(training, [labelled(masks, axes), labelled({"ball": BALL}, axes, "another", MOVED)])
    cases = {case.name: case for split in open_splits(folder, ("axial",)).values() for case in split.cases()}
    assert sorted(cases) == ["patient-001/volume-001.nrrd", "patient-002/volume-002.nrrd"]
    for name, count in (("patient-001/volume-001.nrrd", 3), ("patient-002/volume-002.nrrd", 1)):
        voxels = cases[name].volume.voxels // 100
        found = {truth.plain_prompt: truth.mask for truth in cases[name].truths}
        assert [*found] == [*masks][:count]
        assert all(np.array_equal(mask, voxels >> n & 1) for n, mask in enumerate(found.values()))


def test_a_segmentation_on_another_grid_and_transform_is_resampled(training):
    pair = labelled({"ball": BALL}, "ras")
    pair.segmentation.SetAndObserveTransformNodeID(add_transform(MOVED).GetID())
    pair.segmentation.HardenTransform()
    pair.volume.SetAndObserveTransformNodeID(add_transform(MOVED).GetID())  # they lie on each other again
    folder = write(training, [pair, labelled({"ball": BALL})])
    cases = {case.name: case for split in open_splits(folder, ("axial",)).values() for case in split.cases()}
    (truth,) = cases["patient-001/volume-001.nrrd"].truths
    assert np.array_equal(truth.mask, BALL)


def test_no_name_of_a_node_is_written(training):
    folder = write(training, [labelled({"ball": BALL}), labelled({"ball": BALL}, name="Jane Roe")])
    for path in filter(lambda path: path.is_file(), folder.rglob("*")):
        assert b"Jane" not in path.read_bytes() and "Jane" not in path.name


def test_volumes_of_one_patient_are_not_parted(training, scene):
    pairs = [labelled({"ball": BALL}, name=f"scan {number}") for number in range(3)]
    subjects = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    patient = subjects.CreateSubjectItem(subjects.GetSceneItemID(), "Jane")
    for pair in pairs[:2]:
        subjects.CreateItem(patient, pair.volume)
    folder = write(training, pairs)
    assert sorted(path.parent.name for path in folder.glob("*/*.seg.nrrd")) == ["patient-001"] * 2 + ["patient-002"]
    with pytest.raises(UserError, match="all volumes are of one patient"):
        training.start(pairs[:2], Settings("mine"))


@pytest.mark.parametrize(("patients", "held_out"), [(2, 1), (9, 1), (15, 2), (40, 4)])
def test_a_tenth_of_the_patients_is_for_validation(patients, held_out):
    splits = _splits([f"p{number}" for number in range(patients)])
    assert len(splits["val"]) == held_out and len(splits["train"]) == patients - held_out


def test_what_cannot_be_trained_is_refused_in_words(training, scene):
    good, other = labelled({"ball": BALL}), labelled({"ball": BALL}, name="other")
    bare = add_volume(np.ones(SHAPE, np.int16), name="bare")
    empty = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "empty")
    unnamed = labelled({"Segment_1": BALL}, name="unnamed")
    removed = labelled({"ball": BALL}, name="removed")
    scene.RemoveNode(removed.volume)
    for pairs, settings, message in (
        ([good], Settings("mine"), "two labelled volumes"),
        ([], Settings("mine"), "two labelled volumes"),
        ([good, good], Settings("mine"), "there twice"),
        ([good, Pair(bare, None)], Settings("mine"), "'bare' has no segmentation"),
        ([good, Pair(bare, empty)], Settings("mine"), "'empty' has no segments"),
        ([good, unnamed], Settings("mine"), "Segment_1"),
        ([good, removed], Settings("mine"), "removed from the scene"),
        ([good, other], Settings("../mine"), "no name for an adapter"),
        ([good, other], Settings("head-t1"), "choose another name"),
    ):
        with pytest.raises(UserError, match=message):
            training.start(pairs, settings)
    with pytest.raises(UserError, match="hold no voxel"):
        training.start([good, labelled({"ball": np.zeros(SHAPE, bool)}, name="blank")], Settings("mine"))
    with pytest.raises(UserError, match="no training 'mine'"):
        training.resume("mine")
    assert not data_folder("mine").exists() and not training.is_busy
    training._logic.engine = RemoteEngine("http://127.0.0.1:1", "x")
    with pytest.raises(UserError, match="this computer alone"):
        training.start([good, other], Settings("mine"))


def test_a_training_is_stopped_goes_on_and_is_over(training, tiny_base):
    pairs = [labelled({"ball": BALL, "cube": CUBE}), labelled({"ball": BALL}, name="another")]
    settings, said = Settings("mine", base=str(tiny_base), epochs=1000), []

    def stop(text, event):
        said.append(text)
        if event["state"] == "training" and event["done"]:
            training.cancel()

    with pytest.raises(Cancelled):
        training.start(pairs, settings, on_progress=stop)
    assert said[:2] == ["writing volume 1 of 2", "writing volume 2 of 2"]
    assert "of at most 1000, loss" in said[-1] and "left" in said[-1]
    assert training.status == "stopped; Resume goes on" and training.can_resume("mine")
    done = len((user_models() / "mine/run/log.csv").read_text().splitlines()) - 1
    assert training.resume("mine", epochs=done + 1) == "mine"
    assert len((user_models() / "mine/run/log.csv").read_text().splitlines()) - 1 == done + 1
    card = read_card(user_models() / "mine")
    assert card.prompts == ["ball", "cube"] and training.curves("mine").is_file()
    with pytest.raises(UserError, match="'mine' already"):
        training.start(pairs, settings)


def test_after_ctrl_c_in_a_console_a_training_has_saved_and_goes_on(training, tiny_base):
    pairs = [labelled({"ball": BALL}), labelled({"ball": BALL}, name="another")]

    def interrupt(text, event):
        if event["state"] == "training" and event["done"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.start(pairs, Settings("mine", base=str(tiny_base), epochs=1000), on_progress=interrupt)
    assert not training.is_busy and training.status == "stopped; Resume goes on"
    done = len((user_models() / "mine/run/log.csv").read_text().splitlines()) - 1
    assert training.resume("mine", epochs=done + 1) == "mine"


def test_a_training_that_fails_says_why(training):
    pairs = [labelled({"ball": BALL}), labelled({"ball": BALL}, name="another")]
    with pytest.raises(UserError, match=r"'mine' stopped: .*nobody"):
        training.start(pairs, Settings("mine", base="nobody"))
    assert "nobody" in training.status
    assert json.loads((data_folder("mine") / "training.json").read_text())["base"] == "nobody"


def test_the_methods_that_are_offered_exist():
    assert set(METHODS) < set(ALL_METHODS)
