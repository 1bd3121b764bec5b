"""The recipes of the documentation, run as they stand there, with a real engine and Slicer's own MRML."""

import re
import types
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ball
from harness import add_volume, make_models, mask_of, open_scene, slicer, util, warm_engine
from VLSMSegmenterLib.shared.logic import SegmenterLogic
from VLSMSegmenterLib.shared.volumes import grid_of

from engine.errors import UserError

PAGE = Path(__file__).resolve().parents[2] / "Resources" / "Documentation" / "slicer.md"
RECIPES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
SHAPE = (6, 40, 48)


@pytest.fixture(scope="module")
def engine(tmp_path_factory, tiny_base):
    with warm_engine(make_models(tmp_path_factory.mktemp("models"), tiny_base)) as engine:
        yield engine


@pytest.fixture
def logic(tmp_path, engine):
    """The logic, where the recipes look for it."""
    with open_scene(tmp_path):
        logic = SegmenterLogic(engine)
        module = types.SimpleNamespace(self=lambda: types.SimpleNamespace(logic=logic))
        slicer.modules.vlsmsegmenter = types.SimpleNamespace(widgetRepresentation=lambda: module)
        yield logic


def scan(seed: int) -> np.ndarray:
    voxels = np.random.default_rng(seed).normal(100, 30, SHAPE)
    voxels[ball(SHAPE, (3, 12 + 6 * seed, 20), 9)] += 400
    return voxels.astype(np.int16)


def run_recipe(mark: str, folder: Path, threshold: float = 0.3) -> dict:
    """Run the block of Python of the page that holds `mark`, on files in `folder`, with an adapter that is there;
    return its names."""
    (code,) = (code for code in RECIPES if mark in code)
    names = {"slicer": slicer}
    exec(code.replace("/data/", f"{folder}/").replace('"head-t1"', f'"head", threshold={threshold}'), names)
    return names


def middling(logic, volume) -> float:
    """Return a threshold that about half of a volume's voxels reach; the net knows nothing."""
    (finding,) = logic.findings(logic.segment(volume, "brain", "head"))
    logic.undo()
    return (np.median(finding.result.probability) + 0.5) / 256


def test_one_volume(logic, tmp_path, capsys):
    add_volume(scan(0))
    names = run_recipe("print(logic.status)", tmp_path)
    inner = names["segmentation"].GetSegmentation()
    assert [inner.GetNthSegment(number).GetName() for number in range(2)] == ["brain", "cerebellum"]
    assert capsys.readouterr().out.startswith("brain: ")


def test_a_run_is_adjusted_and_taken_back(logic, tmp_path):
    volume = add_volume(scan(0))
    run_recipe("logic.undo()", tmp_path, middling(logic, volume))
    assert logic.status == "undone: brain"
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_a_folder_becomes_segmentations_and_leaves_the_scene_empty(logic, tmp_path):
    (tmp_path / "studies").mkdir()
    for number in range(2):
        image = sitk.GetImageFromArray(scan(number))
        image.SetSpacing((0.8, 1.1, 2.5))
        sitk.WriteImage(image, tmp_path / "studies" / f"{number}.nii.gz")
    run_recipe('glob("*.nii.gz")', tmp_path)
    written = sorted((tmp_path / "results").iterdir())
    assert [path.name for path in written] == ["0.seg.nrrd", "1.seg.nrrd"]
    assert all(sitk.ReadImage(path).GetSpacing() == pytest.approx((0.8, 1.1, 2.5)) for path in written)
    for kind in ("vtkMRMLScalarVolumeNode", "vtkMRMLSegmentationNode"):
        assert slicer.mrmlScene.GetNumberOfNodesByClass(kind) == 0


def test_nifti_has_the_segments_on_the_volumes_grid(logic, tmp_path):
    volume = add_volume(scan(0))
    names = run_recipe("ExportSegments", tmp_path, middling(logic, volume))
    labels, node = sitk.ReadImage(tmp_path / "labels.nii.gz"), names["segmentation"]
    first, second = (mask_of(node, identifier, volume) for identifier in names["segments"])
    expected = np.where(second, 2, first)
    assert first.any() and np.array_equal(sitk.GetArrayFromImage(labels), expected)
    place = [*labels.TransformIndexToPhysicalPoint((3, 4, 5))]
    node_place = (grid_of(volume).ijk_to_ras @ [3, 4, 5, 1])[:3]
    np.testing.assert_allclose(place, node_place * [-1, -1, 1], atol=1e-3)


def test_a_sequence_gets_a_segmentation_for_each_frame(logic, tmp_path):
    frames, browser = make_sequence([scan(number) for number in range(3)])
    threshold = middling(logic, browser.GetProxyNode(frames))
    names = run_recipe("SequenceBrowser", tmp_path, threshold)
    assert names["found"].GetNumberOfDataNodes() == 3
    masks = []
    for number in (2, 0, 1):
        browser.SetSelectedItemNumber(number)
        volume, node = browser.GetProxyNode(frames), names["segmentation"]
        assert np.array_equal(util.arrayFromVolume(volume), scan(number))
        (finding,) = logic.findings(logic.segment(volume, "brain", "head", threshold=threshold))[-1:]
        shown = mask_of(node, node.GetSegmentation().GetNthSegmentID(0), volume)
        assert np.array_equal(shown, finding.mask()) and shown.any()
        masks.append(shown)
        logic.undo()
    assert not np.array_equal(masks[0], masks[1])


def make_sequence(frames):
    """Make a sequence of volumes and a browser that shows its current frame."""
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "frames")
    for number, voxels in enumerate(frames):
        volume = add_volume(voxels, name="frame")
        sequence.SetDataNodeAtValue(volume, str(number))
        slicer.mrmlScene.RemoveNode(volume)
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    slicer.modules.sequences.logic().UpdateAllProxyNodes()
    return sequence, browser


def test_a_training_is_asked_for_as_it_wants_it(logic, tmp_path):
    """Here it refuses labels that are empty; that and how it trains is in `test_module_training.py`."""
    for number in (1, 2, 3):
        add_volume(scan(number), name=f"scan-{number}")
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"labels-{number}")
    with pytest.raises(UserError, match="labels-1"):
        run_recipe("training.start", tmp_path)
