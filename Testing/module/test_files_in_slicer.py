"""What the engine writes, opened by 3D Slicer's own MRML (the slicer-core wheel)."""

from itertools import pairwise

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ball
from harness import OBLIQUE, slicer, util, vtk

from engine.imaging.reading import read_volume
from engine.imaging.volumes.segments import Segment
from engine.imaging.writing import write_segments

SHAPE = (10, 14, 18)
DIRECTIONS = {
    "axial": np.eye(3),
    "nifti": np.diag([-1.0, -1.0, 1.0]),
    "sagittal": np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]]),
    "left-handed": np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]]),  # Slicer turns such a volume's slices round
    "oblique": OBLIQUE,
}


@pytest.fixture
def scene(monkeypatch):
    scene = slicer.vtkMRMLScene()
    monkeypatch.setattr(slicer, "mrmlScene", scene, raising=False)
    return scene


@pytest.fixture(params=DIRECTIONS)
def scan(request, tmp_path):
    """A scan file with a ball of 1000 and one of 2000, which add up where they overlap."""
    voxels = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)
    voxels += 1000 * ball(SHAPE, (4, 5, 11), 3) + 2000 * ball(SHAPE, (5, 6, 12), 3)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.8, 1.1, 2.5))
    image.SetOrigin((-40, 25, 310))
    image.SetDirection(DIRECTIONS[request.param].ravel())
    sitk.WriteImage(image, tmp_path / "scan.nrrd")
    return tmp_path / "scan.nrrd"


def first_ball(voxels):
    return (voxels // 500 == 2) | (voxels // 500 == 6)


def second_ball(voxels):
    return voxels > 1500


def load_volume(scene, path):
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.SetCenterImage(0)
    assert storage.ReadData(node)
    return node


def load_segmentation(scene, path):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    return node


def segment_named(node, name):
    segmentation = node.GetSegmentation()
    return segmentation.GetSegment(segmentation.GetSegmentIdBySegmentName(name))


def mask_of(scene, node, name, volume_node):
    """Return a segment's voxels on a volume's grid, as Slicer exports them."""
    identifiers = vtk.vtkStringArray()
    identifiers.InsertNextValue(node.GetSegmentation().GetSegmentIdBySegmentName(name))
    label_map = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.ExportSegmentsToLabelmapNode(node, identifiers, label_map, volume_node)
    return util.arrayFromVolume(label_map)


def test_slicer_sees_each_segment_where_the_engine_saw_it(scan, scene, tmp_path):
    volume = read_volume(scan)
    segments = [
        Segment("bright ball", first_ball(volume.voxels), (0.9, 0.2, 0.1)),
        Segment("nothing", np.zeros(SHAPE, bool), (0, 0, 1)),
        Segment("its neighbour", second_ball(volume.voxels), (0.1, 0.8, 0.3)),
    ]
    write_segments(tmp_path / "out.seg.nrrd", segments, volume)

    volume_node, node = load_volume(scene, scan), load_segmentation(scene, tmp_path / "out.seg.nrrd")
    segmentation = node.GetSegmentation()
    names = [segmentation.GetNthSegment(i).GetName() for i in range(segmentation.GetNumberOfSegments())]
    assert names == ["bright ball", "nothing", "its neighbour"]
    assert segmentation.GetNumberOfLayers() == 2
    voxels = util.arrayFromVolume(volume_node)  # by Slicer's own reading of the scan
    seen = [first_ball(voxels), np.zeros_like(voxels, bool), second_ball(voxels)]
    for segment, expected in zip(segments, seen, strict=True):
        mask = mask_of(scene, node, segment.name, volume_node)
        assert np.array_equal(mask > 0, expected), segment.name
        np.testing.assert_allclose(segment_named(node, segment.name).GetColor(), segment.color, atol=1e-5)


def test_slicer_keeps_what_the_segment_was_made_from(scan, scene, tmp_path):
    volume = read_volume(scan)
    tags = {"VLSMSegmenter.Prompt": "left lung, upper part, Köpfchen 脑", "VLSMSegmenter.Threshold": "0.5"}
    write_segments(
        tmp_path / "out.seg.nrrd", [Segment("Köpfchen 脑", volume.voxels > 500, (1, 0, 0), tags)], volume
    )
    segment = segment_named(load_segmentation(scene, tmp_path / "out.seg.nrrd"), "Köpfchen 脑")
    for key, text in tags.items():
        value = vtk.mutable("")
        assert segment.GetTag(key, value)
        assert str(value) == text
    terminology = vtk.mutable("")
    segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology)
    assert "Tissue" in str(terminology)


def test_many_segments_that_do_not_overlap_share_a_layer(scan, scene, tmp_path):
    volume = read_volume(scan)
    steps = np.quantile(volume.voxels, np.linspace(0, 1, 20))
    bands = list(pairwise(steps))
    segments = [
        Segment(f"{low}", (volume.voxels >= low) & (volume.voxels < high), (1, 1, 0)) for low, high in bands
    ]
    write_segments(tmp_path / "out.seg.nrrd", segments, volume)
    volume_node, node = load_volume(scene, scan), load_segmentation(scene, tmp_path / "out.seg.nrrd")
    assert node.GetSegmentation().GetNumberOfLayers() == 1
    voxels = util.arrayFromVolume(volume_node)
    for segment, (low, high) in zip(segments, bands, strict=True):
        mask = mask_of(scene, node, segment.name, volume_node)
        assert np.array_equal(mask > 0, (voxels >= low) & (voxels < high))


def test_a_label_map_opens_on_the_scans_grid(scan, scene, tmp_path):
    volume = read_volume(scan)
    write_segments(tmp_path / "out.nii.gz", [Segment("ball", volume.voxels > 500, (1, 0, 0))], volume)
    scan_node, label_node = load_volume(scene, scan), load_volume(scene, tmp_path / "out.nii.gz")
    matrices = []
    for node in (scan_node, label_node):
        matrix = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(matrix)
        matrices.append(util.arrayFromVTKMatrix(matrix))
    np.testing.assert_allclose(matrices[1], matrices[0], atol=1e-4)
    assert np.array_equal(util.arrayFromVolume(label_node) > 0, util.arrayFromVolume(scan_node) > 500)
