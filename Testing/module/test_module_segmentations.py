"""Segments that the module writes, in Slicer's own MRML: where they lie, what they carry, what they leave alone."""

import json

import numpy as np
import pytest
from conftest import ball
from harness import DIRECTIONS, add_transform, add_volume, ids_by_name, mask_of, open_scene, slicer, util, vtk
from VLSMSegmenterLib.shared import segmentations
from VLSMSegmenterLib.shared.terminology import TISSUE, terminology_of
from VLSMSegmenterLib.shared.volumes import box_of, grid_of, modality_of, voxels_of

from engine.errors import UserError
from engine.imaging.images import image_from_volume
from engine.imaging.volumes.volume import Volume

SHAPE = (10, 14, 18)
BALL, NEIGHBOUR = ball(SHAPE, (4, 5, 11), 3), ball(SHAPE, (5, 6, 12), 3)
SHIFT = np.array([[0.0, -1, 0, 15], [1, 0, 0, -7], [0, 0, 1, 100], [0, 0, 0, 1]])
RED = (0.9, 0.2, 0.1)


@pytest.fixture
def scene(tmp_path):
    with open_scene(tmp_path) as scene:
        yield scene


@pytest.fixture(params=DIRECTIONS)
def volume(request, scene):
    voxels = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)
    return add_volume(voxels, DIRECTIONS[request.param])


def write(volume, mask, name="ball", node=None):
    node = segmentations.prepare(volume, node)
    identifier = segmentations.add_segment(node, name, RED)
    segmentations.write_mask(node, identifier, mask, grid_of(volume))
    return node, identifier


def test_the_engine_is_told_the_grid_that_slicer_writes_to_a_file(volume, tmp_path):
    import SimpleITK as sitk

    writer = slicer.vtkMRMLVolumeArchetypeStorageNode()
    writer.SetFileName(str(tmp_path / "scan.nrrd"))
    assert writer.WriteData(volume)
    written, grid = sitk.ReadImage(str(tmp_path / "scan.nrrd")), grid_of(volume)
    told = image_from_volume(Volume(voxels_of(volume), grid.spacing_mm, grid.origin_lps, grid.direction_lps))
    for index in ((0, 0, 0), (17, 0, 3), (5, 13, 9)):
        place = told.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(place, written.TransformIndexToPhysicalPoint(index), atol=1e-4)
    assert np.array_equal(sitk.GetArrayFromImage(written), voxels_of(volume))


def test_masks_come_back_on_exactly_the_volumes_voxels(volume):
    node, first = write(volume, BALL)
    node, second = write(volume, NEIGHBOUR, "neighbour", node)
    assert np.array_equal(mask_of(node, first, volume), BALL)
    assert np.array_equal(mask_of(node, second, volume), NEIGHBOUR)
    assert np.array_equal(segmentations.read_mask(node, first, grid_of(volume)), BALL)


def test_the_reference_geometry_is_the_volumes(volume):
    node, _ = write(volume, BALL)
    assert segmentations.volume_of(node) is volume
    assert util.arrayFromSegmentBinaryLabelmap(node, "ball").shape == SHAPE  # with no volume named


def test_a_volume_under_a_transform_has_its_segments_under_it_too(volume):
    transform = add_transform(SHIFT)
    volume.SetAndObserveTransformNodeID(transform.GetID())
    node, identifier = write(volume, BALL)
    assert node.GetParentTransformNode() is transform
    assert np.array_equal(mask_of(node, identifier, volume), BALL)
    transform.SetMatrixTransformToParent(util.vtkMatrixFromArray(np.linalg.inv(SHIFT)))
    assert np.array_equal(mask_of(node, identifier, volume), BALL)


def test_segments_follow_when_their_volume_is_put_under_a_transform_later(volume):
    node, identifier = write(volume, BALL)
    transform = add_transform(SHIFT)
    volume.SetAndObserveTransformNodeID(transform.GetID())
    assert node.GetParentTransformNode() is transform
    assert np.array_equal(mask_of(node, identifier, volume), BALL)
    volume.SetAndObserveTransformNodeID(None)
    assert node.GetParentTransformNode() is None


def test_segments_stay_on_their_anatomy_when_the_volume_is_hardened(volume):
    volume.SetAndObserveTransformNodeID(add_transform(SHIFT).GetID())
    node, identifier = write(volume, BALL)
    assert volume.HardenTransform()
    assert np.array_equal(mask_of(node, identifier, volume), BALL)
    assert segmentations.segmentation_for(volume) is None  # its geometry is another now
    node, identifier = write(volume, NEIGHBOUR)
    assert np.array_equal(mask_of(node, identifier, volume), NEIGHBOUR)


def test_a_segmentation_that_lies_elsewhere_is_refused(scene):
    voxels = np.zeros(SHAPE, np.int16)
    node, _ = write(add_volume(voxels, DIRECTIONS["ras"]), BALL)
    with pytest.raises(UserError, match="another geometry or transform"):
        segmentations.segmentation_for(add_volume(voxels, DIRECTIONS["oblique"]), node)


def test_the_same_segmentation_is_used_again_but_not_one_of_somebody_else(volume):
    node, _ = write(volume, BALL)
    assert segmentations.segmentation_for(volume) is node
    foreign = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    foreign.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    foreign.GetSegmentation().AddEmptySegment("", "mine")
    assert segmentations.segmentation_for(volume) is node


def test_rgb_is_sent_as_it_is_and_its_mask_fits(scene):
    picture = np.random.default_rng(0).integers(0, 255, (1, 14, 18, 4)).astype(np.uint8)
    node = add_volume(picture, DIRECTIONS["lps"])
    assert np.array_equal(voxels_of(node), picture[..., :3])  # without alpha
    segmentation, identifier = write(node, BALL[4:5])
    assert np.array_equal(mask_of(segmentation, identifier, node), BALL[4:5])


@pytest.mark.parametrize("voxels", [np.zeros((2, 3, 4, 3), np.float32), np.zeros((2, 3, 4, 6), np.uint8)])
def test_what_is_no_picture_is_refused(scene, voxels):
    with pytest.raises(UserError, match="choose a scalar volume"):
        voxels_of(add_volume(voxels))


def test_a_volume_without_voxels_is_refused(scene):
    with pytest.raises(UserError, match="holds no voxels"):
        voxels_of(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing"))


def test_an_empty_mask_makes_an_empty_segment_and_erases_none(volume):
    node, first = write(volume, BALL)
    node, empty = write(volume, np.zeros(SHAPE, bool), "nothing", node)
    assert not segmentations.read_mask(node, empty, grid_of(volume)).any()
    assert np.array_equal(mask_of(node, first, volume), BALL)
    segmentations.write_mask(node, empty, NEIGHBOUR, grid_of(volume))
    assert np.array_equal(mask_of(node, empty, volume), NEIGHBOUR)
    segmentations.write_mask(node, empty, np.zeros(SHAPE, bool), grid_of(volume))
    assert not segmentations.read_mask(node, empty, grid_of(volume)).any()
    assert np.array_equal(mask_of(node, first, volume), BALL)


def test_a_segment_grows_over_others_without_taking_their_voxels(volume):
    node, first = write(volume, BALL)
    node, second = write(volume, np.zeros(SHAPE, bool) | (NEIGHBOUR & ~BALL), "neighbour", node)
    assert node.GetSegmentation().GetNumberOfLayers() == 1
    segmentations.write_mask(node, second, np.ones(SHAPE, bool), grid_of(volume))
    assert np.array_equal(mask_of(node, first, volume), BALL)
    assert mask_of(node, second, volume).all()


def test_a_surface_that_is_shown_is_made_anew(volume):
    node, identifier = write(volume, BALL)
    assert node.CreateClosedSurfaceRepresentation()

    def surface_points():
        surface = vtk.vtkPolyData()
        node.GetClosedSurfaceRepresentation(identifier, surface)
        return surface.GetNumberOfPoints()

    before = surface_points()
    segmentations.write_mask(node, identifier, ball(SHAPE, (4, 5, 11), 1.5), grid_of(volume))
    assert 0 < surface_points() < before


def test_names_are_told_apart_and_ids_are_written_not_names(volume):
    node, first = write(volume, BALL)
    node, second = write(volume, NEIGHBOUR, "ball", node)
    assert set(ids_by_name(node)) == {"ball", "ball (2)"}
    segmentations.write_mask(node, first, NEIGHBOUR, grid_of(volume))
    assert np.array_equal(mask_of(node, first, volume), NEIGHBOUR)
    assert first != second


def test_a_snapshot_brings_back_mask_name_colour_and_tags(volume):
    node, identifier = write(volume, BALL)
    segmentations.set_tags(node, identifier, {segmentations.PROMPT: "ball"})
    before = segmentations.snapshot(node, identifier)
    segmentations.set_tags(node, identifier, {segmentations.PROMPT: "cube", segmentations.ADAPTER: "other"})
    segmentations.write_mask(node, identifier, NEIGHBOUR, grid_of(volume))
    node.GetSegmentation().GetSegment(identifier).SetName("cube")
    node.GetSegmentation().GetSegment(identifier).SetColor(0, 0, 1)
    segmentations.restore(node, identifier, before)
    assert np.array_equal(mask_of(node, identifier, volume), BALL)
    assert ids_by_name(node) == {"ball": identifier}
    assert segmentations.tags_of(node, identifier) == {segmentations.PROMPT: "ball"} | before.tags
    np.testing.assert_allclose(node.GetSegmentation().GetSegment(identifier).GetColor(), RED, atol=1e-6)


def test_a_snapshot_of_an_empty_segment_brings_it_back_empty(volume):
    node, _ = write(volume, BALL)
    identifier = segmentations.add_segment(node, "empty", RED)
    before = segmentations.snapshot(node, identifier)
    segmentations.write_mask(node, identifier, NEIGHBOUR, grid_of(volume))
    segmentations.restore(node, identifier, before)
    assert not segmentations.read_mask(node, identifier, grid_of(volume)).any()
    assert np.array_equal(mask_of(node, "ball", volume), BALL)


def save_and_load(node, path):
    writer = slicer.vtkMRMLSegmentationStorageNode()
    writer.SetFileName(str(path))
    assert writer.WriteData(node)
    loaded = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    reader = slicer.vtkMRMLSegmentationStorageNode()
    reader.SetFileName(str(path))
    assert reader.ReadData(loaded)
    return loaded


def test_a_saved_segmentation_keeps_masks_and_what_they_were_made_from(volume, tmp_path):
    node, identifier = write(volume, BALL, "Köpfchen 脑")
    tags = {
        segmentations.PROMPT: "Köpfchen 脑 | upper",
        segmentations.THRESHOLD: "0.5",
        segmentations.TERMINOLOGY: TISSUE,
    }
    segmentations.set_tags(node, identifier, tags)
    loaded = save_and_load(node, tmp_path / "out.seg.nrrd")
    again = ids_by_name(loaded)["Köpfchen 脑"]
    assert np.array_equal(mask_of(loaded, again, volume), BALL)
    assert segmentations.tags_of(loaded, again) == tags | {segmentations.PROMPT: "Köpfchen 脑 / upper"}
    assert segmentations.segment_of_prompt(loaded, "köpfchen 脑 | UPPER") == again


def test_a_saved_scene_comes_back_and_is_written_on(scene, tmp_path):
    transform = add_transform(SHIFT)
    volume = add_volume(np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32))
    volume.SetAndObserveTransformNodeID(transform.GetID())
    node, identifier = write(volume, BALL)
    segmentations.set_tags(node, identifier, {segmentations.PROMPT: "ball"})
    for saved, name in ((volume, "scan.nrrd"), (node, "out.seg.nrrd"), (transform, "shift.h5")):
        saved.AddDefaultStorageNode()
        saved.GetStorageNode().SetFileName(str(tmp_path / name))
        assert saved.GetStorageNode().WriteData(saved)
    scene.SetURL(str(tmp_path / "scene.mrml"))
    scene.SetRootDirectory(str(tmp_path))
    assert scene.Commit()
    scene.Clear(0)
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    assert scene.Connect()

    volume, node = util.getNode("scan"), scene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
    assert segmentations.segmentation_for(volume) is node
    identifier = segmentations.segment_of_prompt(node, "ball")
    assert np.array_equal(mask_of(node, identifier, volume), BALL)
    node, second = write(volume, NEIGHBOUR, "neighbour", node)
    assert np.array_equal(mask_of(node, second, volume), NEIGHBOUR)
    assert np.array_equal(mask_of(node, identifier, volume), BALL)
    other = add_transform(np.linalg.inv(SHIFT))
    volume.SetAndObserveTransformNodeID(other.GetID())
    assert node.GetParentTransformNode() is other


def test_a_region_of_interest_becomes_the_box_of_voxels_in_it(volume):
    transform = add_transform(SHIFT)
    volume.SetAndObserveTransformNodeID(transform.GetID())
    grid = grid_of(volume)
    low, high = np.array([3, 4, 2]), np.array([12, 9, 6])  # i, j, k
    middle = (grid.ijk_to_ras @ [*(low + high) / 2, 1])[:3]
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetAndObserveTransformNodeID(transform.GetID())
    to_node = np.eye(4)
    to_node[:3, :3], to_node[:3, 3] = grid.axes, middle
    roi.SetAndObserveObjectToNodeMatrix(util.vtkMatrixFromArray(to_node))
    roi.SetSize(*((high - low) * grid.spacing_mm))
    box = box_of(roi, volume)
    assert box == (slice(2, 7), slice(4, 10), slice(3, 13))
    part = grid.cropped(box)
    np.testing.assert_allclose(part.ijk_to_ras @ [0, 0, 0, 1], grid.ijk_to_ras @ [3, 4, 2, 1])
    roi.SetAndObserveTransformNodeID(None)
    roi.SetCenter(1e4, 0, 0)
    with pytest.raises(UserError, match="holds no voxel"):
        box_of(roi, volume)


def test_the_modality_is_known_from_the_subject_hierarchy(scene):
    volume = add_volume(np.zeros(SHAPE, np.int16))
    assert modality_of(volume) is None
    subjects = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = subjects.CreateItem(subjects.GetSceneItemID(), volume)  # Slicer's plugins do this
    subjects.SetItemAttribute(item, "DICOM.Modality", "CT")
    assert modality_of(volume) == "CT"


@pytest.fixture
def terminologies(tmp_path):
    """The logic of Slicer's module Terminologies with a short list in the format of its own."""

    def code(value, meaning, **more):
        return {"CodingSchemeDesignator": "SCT", "CodeValue": value, "CodeMeaning": meaning, **more}

    def side(value, meaning, label):
        return code(value, meaning, **{"3dSlicerLabel": label})

    lungs = [side("24028007", "Right", "right lung"), side("7771000", "Left", "left lung")]
    types = [
        code("10200004", "Liver", **{"3dSlicerLabel": "liver"}),
        code("39607008", "Lung", Modifier=lungs),
        code("12738006", "Brain", **{"3dSlicerLabel": "brain"}),
        code("389080008", "Gray matter of brain", **{"3dSlicerLabel": "gray matter"}),
    ]
    category = code("123037004", "Anatomical Structure", showAnatomy=True, Type=types)
    name = "Segmentation category and type - 3D Slicer General Anatomy list"
    context = {
        "SegmentationCategoryTypeContextName": name,
        "@schema": "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/schemas/segment-context-schema.json#",
        "SegmentationCodes": {"Category": [category]},
    }
    (tmp_path / "list.json").write_text(json.dumps(context))
    logic = slicer.vtkSlicerTerminologiesModuleLogic()
    assert logic.LoadTerminologyFromFile(str(tmp_path / "list.json")) == name
    return logic


@pytest.mark.parametrize(
    ("prompt", "codes"),
    [
        ("liver", "SCT^10200004^Liver~^^"),
        ("the Livers", "SCT^10200004^Liver~^^"),
        ("left lung", "SCT^39607008^Lung~SCT^7771000^Left"),
        ("lung", "SCT^39607008^Lung~^^"),
        ("grey matter", "SCT^389080008^Gray matter of brain~^^"),
        ("something else", "SCT^85756007^Tissue~^^"),
    ],
)
def test_prompts_have_the_codes_of_slicers_terminology(terminologies, prompt, codes):
    text = terminology_of(prompt, terminologies)
    assert codes in text
    entry = slicer.vtkSlicerTerminologyEntry()
    assert terminologies.DeserializeTerminologyEntry(text, entry)
    assert entry.GetTypeObject().GetCodeMeaning() in codes


def test_without_terminologies_a_segment_is_tissue(scene):
    assert terminology_of("liver") == TISSUE
