"""Slicer's own MRML (the slicer-core wheel) with the few parts of the application that the module asks for.

`slicer.app` and widgets are not there; the scene, the module logics and `slicer.util` are the real ones.
"""

import shutil
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import make_adapter, own_folder

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed (Linux with Python 3.11 only)")
util = pytest.importorskip("slicer.util")
vtk = pytest.importorskip("vtk")

MODULE = Path(__file__).resolve().parents[2] / "VLSMSegmenter"
if str(MODULE) not in sys.path:
    sys.path.insert(0, str(MODULE))

LOGICS = {
    "volumes": "vtkSlicerVolumesLogic",
    "segmentations": "vtkSlicerSegmentationsModuleLogic",
    "subjecthierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "sequences": "vtkSlicerSequencesLogic",
}
OBLIQUE = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]) @ np.array(
    [[1, 0, 0], [0, 0.6, -0.8], [0, 0.8, 0.6]]
)
DIRECTIONS = {
    "ras": np.eye(3),
    "lps": np.diag([-1.0, -1.0, 1.0]),
    "flipped": np.diag([1.0, -1.0, -1.0]),
    "left-handed": np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]),
    "oblique": OBLIQUE,
}


class Files:
    """Reads volumes and writes nodes for `slicer.util`, as the application does: by Slicer's own storage nodes."""

    def __init__(self, volumes):
        self._volumes = volumes

    def loadNodes(self, kind: str, properties: dict, loaded, messages) -> bool:
        name = Path(properties["fileName"]).name.split(".")[0]
        node = self._volumes.AddArchetypeVolume(properties["fileName"], name)
        loaded.AddItem(node)
        return node is not None

    def fileWriterFileType(self, node) -> str:
        return node.GetClassName()

    def saveNodes(self, kind: str, properties: dict, messages) -> bool:
        node = slicer.mrmlScene.GetNodeByID(properties["nodeID"])
        node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(properties["fileName"])
        return bool(node.GetStorageNode().WriteData(node))


@contextmanager
def open_scene(folder: Path) -> Iterator["slicer.vtkMRMLScene"]:
    """Yield an empty scene with the module logics that Slicer has; `folder` is for files of theirs."""
    scene, modules, logics = slicer.vtkMRMLScene(), types.ModuleType("slicer.modules"), {}
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    application.GetColorLogic().SetMRMLScene(scene)
    application.SetModuleLogic("Colors", application.GetColorLogic())
    for name, kind in LOGICS.items():
        logic = logics[name] = getattr(slicer, kind)()
        if hasattr(logic, "SetModuleShareDirectory"):
            logic.SetModuleShareDirectory(str(folder))
        logic.SetMRMLScene(scene)
        logic.SetMRMLApplicationLogic(application)
        application.SetModuleLogic(
            kind.removeprefix("vtkSlicer").removesuffix("Logic").removesuffix("Module"), logic
        )
        setattr(modules, name, types.SimpleNamespace(logic=lambda logic=logic: logic))
    files = types.SimpleNamespace(coreIOManager=lambda: Files(logics["volumes"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slicer, "app", files, raising=False)
        patch.setattr(slicer, "mrmlScene", scene, raising=False)
        patch.setattr(slicer, "modules", modules, raising=False)
        patch.setitem(sys.modules, "slicer.modules", modules)
        yield scene
        scene.Clear(1)
        for logic in logics.values():
            logic.SetMRMLScene(None)


def add_volume(voxels: np.ndarray, axes: np.ndarray = DIRECTIONS["oblique"], name: str = "scan"):
    """Add a volume with anisotropic voxels; `axes` are the directions of x, y, z in RAS."""
    matrix = np.eye(4)
    matrix[:3, :3] = axes @ np.diag([0.8, 1.1, 2.5])
    matrix[:3, 3] = (-40, 25, 310)
    kind = "vtkMRMLVectorVolumeNode" if voxels.ndim == 4 else "vtkMRMLScalarVolumeNode"
    return util.addVolumeFromArray(voxels, matrix, name, kind)


def add_transform(matrix: np.ndarray):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    node.SetMatrixTransformToParent(util.vtkMatrixFromArray(matrix))
    return node


def make_models(folder: Path, base: Path) -> Path:
    """Make a folder with the base "tiny" and two adapters: "head", and "strict", which finds nothing."""
    base = Path(shutil.copytree(base, folder / "tiny"))
    figures = {"dice": 0.51, "iou": 0.4, "hd95": 2.0, "cases": 3}
    metrics = {"balls, test split, plain class prompt": {"brain": figures}}
    card = {"prompts": ["brain", "left lung"], "threshold": 0.3, "data_set": "one ball", "metrics": metrics}
    make_adapter(folder / "head", base, **card)
    make_adapter(folder / "strict", base, presence_threshold=0.999)
    return folder


@contextmanager
def warm_engine(models: Path) -> Iterator:
    """Yield a process of the engine that has these models."""
    from VLSMSegmenterLib.shared.engines import LocalEngine

    engine = LocalEngine(arguments=("--device", "cpu"))
    with own_folder(models):
        engine.client()
    yield engine
    engine.stop()


def mask_of(segmentation, identifier: str, volume) -> np.ndarray:
    """Return a segment's voxels on a volume's grid, as Slicer exports them: transforms are heeded."""
    return util.arrayFromSegmentBinaryLabelmap(segmentation, identifier, volume) > 0


def ids_by_name(segmentation) -> dict[str, str]:
    inner = segmentation.GetSegmentation()
    ids = [inner.GetNthSegmentID(number) for number in range(inner.GetNumberOfSegments())]
    return {inner.GetSegment(identifier).GetName(): identifier for identifier in ids}
