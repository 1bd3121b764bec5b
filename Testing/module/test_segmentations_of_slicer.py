"""Segmentations that 3D Slicer's own MRML saved (the slicer-core wheel), read as labels for training."""

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ball
from harness import OBLIQUE, slicer, util, vtk

from engine.data import open_data_set
from engine.imaging.labels import read_segmentation
from engine.imaging.reading import read_volume

SHAPE = (10, 14, 18)
BALLS = {"Köpfchen 脑": ((4, 5, 11), 3), "its neighbour": ((5, 6, 12), 3), "alone": ((7, 8, 4), 1)}
DIRECTIONS = {
    "axial": np.eye(3),
    "left-handed": np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]),  # Slicer turns such a volume's slices round
    "oblique": OBLIQUE,
}


@pytest.fixture
def scene(monkeypatch):
    scene = slicer.vtkMRMLScene()
    monkeypatch.setattr(slicer, "mrmlScene", scene, raising=False)
    logic = slicer.vtkSlicerSegmentationsModuleLogic()  # knows how to make label maps
    logic.SetMRMLScene(scene)
    yield scene
    logic.SetMRMLScene(None)


def save_from_slicer(scene, scan, path, masks_of, crop):
    """Load a scan in Slicer, make a segment of each mask of its voxels, and save them."""
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    reader = slicer.vtkMRMLVolumeArchetypeStorageNode()
    reader.SetFileName(str(scan))
    reader.SetCenterImage(0)
    assert reader.ReadData(node)
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(node)
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    for name, mask in masks_of(util.arrayFromVolume(node)).items():
        label_map = slicer.vtkOrientedImageData()
        label_map.SetDimensions(*mask.shape[::-1])
        label_map.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        label_map.SetImageToWorldMatrix(matrix)
        vtk.util.numpy_support.vtk_to_numpy(label_map.GetPointData().GetScalars())[:] = mask.ravel()
        identifier = segmentation.GetSegmentation().AddEmptySegment("", name)
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        assert logic.SetBinaryLabelmapToSegment(label_map, segmentation, identifier)
    writer = slicer.vtkMRMLSegmentationStorageNode()
    writer.SetFileName(str(path))
    writer.SetCropToMinimumExtent(crop)
    assert writer.WriteData(segmentation)


@pytest.fixture(params=DIRECTIONS)
def scan(request, tmp_path):
    """A scan whose voxels say to which balls they belong: the sum of 1, 2 and 4."""
    folder = tmp_path / "study"
    folder.mkdir()
    voxels = sum(ball(SHAPE, *place) * 2**i for i, place in enumerate(BALLS.values()))
    image = sitk.GetImageFromArray(voxels.astype(np.int16))
    image.SetSpacing((0.8, 1.1, 2.5))
    image.SetOrigin((-40.3, 25.7, 310.1))
    image.SetDirection(DIRECTIONS[request.param].ravel())
    sitk.WriteImage(image, folder / "scan.nii.gz" if request.param != "left-handed" else folder / "scan.nrrd")
    return next(folder.iterdir())


def balls_in(voxels):
    return {name: (voxels.astype(int) >> i) % 2 == 1 for i, name in enumerate(BALLS)} | {"empty": voxels < 0}


@pytest.mark.parametrize("crop", [False, True])
def test_what_slicer_saved_is_read_on_the_scans_own_voxels(scan, scene, crop):
    path = scan.parent / "Segmentation.seg.nrrd"
    save_from_slicer(scene, scan, path, balls_in, crop)
    assert (sitk.ReadImage(path).GetSize() != sitk.ReadImage(scan).GetSize()) == crop
    volume = read_volume(scan)
    labels = read_segmentation(path, volume)
    assert len(labels.layers) == 2  # the first two overlap
    expected = balls_in(volume.voxels)
    assert labels.places.keys() == expected.keys()
    assert all(np.array_equal(labels.mask(name), mask) for name, mask in expected.items())


def test_a_folder_that_slicer_saved_is_a_data_set(scan, scene):
    save_from_slicer(scene, scan, scan.parent / "Segmentation.seg.nrrd", balls_in, crop=True)
    data_set = open_data_set(scan.parent.parent, "train")
    assert {a.plain_prompt for a in data_set.annotations} == {*BALLS, "empty"}
    assert any(a.present for a in data_set.annotations)
    for a in data_set.annotations:
        assert data_set.mask(a).any() == a.present
