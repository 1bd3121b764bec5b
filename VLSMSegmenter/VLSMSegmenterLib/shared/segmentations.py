"""Segmentation nodes: made for a volume, written segment by segment by id, and put back as they were.

Masks are in the volume's own coordinates. The segmentation stands under the volume's transform, so nothing is moved
twice, and whoever moves the volume moves the segments.
"""

from dataclasses import dataclass

import numpy as np
import slicer
import vtk
import vtk.util.numpy_support

from engine.errors import UserError
from VLSMSegmenterLib.shared.volumes import Grid, grid_of

TAG_PREFIX = "VLSMSegmenter."
PROMPT, ADAPTER, BASE, THRESHOLD, PRESENCE, CLEAN_UP = (
    TAG_PREFIX + name for name in ("Prompt", "Adapter", "Base", "Threshold", "Presence", "CleanUp")
)
TERMINOLOGY = slicer.vtkSegment.GetTerminologyEntryTagName()
TOLERANCE_MM = 1e-3

_FOLLOWED: dict[tuple[str, str], "vtk.vtkWeakReference"] = {}  # volumes by the ids of segmentation and volume


@dataclass(frozen=True)
class Snapshot:
    """A segment as it was.

    Attributes:
        label_map: a copy in its own geometry; None where it had none.
    """

    name: str
    color: tuple[float, float, float]
    tags: dict[str, str]
    label_map: "slicer.vtkOrientedImageData | None"


def segmentation_for(
    volume: "slicer.vtkMRMLScalarVolumeNode", chosen: "slicer.vtkMRMLSegmentationNode | None" = None
) -> "slicer.vtkMRMLSegmentationNode | None":
    """Return the segmentation for a volume's segments: the chosen one, or the last that this module made for it and
    that still lies where the volume lies; None where a new one is needed.

    Raises:
        UserError: the chosen one lies elsewhere or does not hold label maps, so that writing would move or lose
            its segments.
    """
    if chosen is not None:
        if not _is_blank(chosen) and not _lies_like(chosen, volume):
            raise UserError(
                f"the segmentation '{chosen.GetName()}' has another geometry or transform than the volume "
                f"'{volume.GetName()}'; choose another segmentation, or a new one"
            )
        if not _is_blank(chosen) and not holds_label_maps(chosen):
            raise UserError(
                f"the segments of '{chosen.GetName()}' are kept as surfaces; choose a new segmentation, or make "
                "binary labelmap its source representation in the module Segmentations"
            )
        return chosen
    for node in reversed(of_volume(volume)):
        if node.GetAttribute(TAG_PREFIX + "Made") and _lies_like(node, volume) and holds_label_maps(node):
            return node
    return None


def of_volume(volume: "slicer.vtkMRMLScalarVolumeNode") -> "list[slicer.vtkMRMLSegmentationNode]":
    """Return the segmentations of the scene whose geometry refers to a volume, whoever made them."""
    nodes = volume.GetScene().GetNodesByClass("vtkMRMLSegmentationNode")
    nodes.UnRegister(None)
    found = [nodes.GetItemAsObject(number) for number in range(nodes.GetNumberOfItems())]
    return [node for node in found if volume_of(node) is volume]


def prepare(
    volume: "slicer.vtkMRMLScalarVolumeNode", node: "slicer.vtkMRMLSegmentationNode | None"
) -> "slicer.vtkMRMLSegmentationNode":
    """Return a segmentation that is ready to be written: `node`, given the volume's place where it has none yet, or
    a new one."""
    if node is None:
        name = volume.GetScene().GenerateUniqueName(f"{volume.GetName()} segmentation")
        node = volume.GetScene().AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        node.SetAttribute(TAG_PREFIX + "Made", "1")
        node.CreateDefaultDisplayNodes()
        _put_beside(node, volume)
    if _is_blank(node):
        node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())  # first, or the shift is applied twice
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    _follow(node, volume)
    return node


def segment_ids(node: "slicer.vtkMRMLSegmentationNode") -> list[str]:
    segmentation = node.GetSegmentation()
    return [segmentation.GetNthSegmentID(number) for number in range(segmentation.GetNumberOfSegments())]


def segment_of_prompt(node: "slicer.vtkMRMLSegmentationNode", prompt: str) -> str | None:
    """Return the id of the segment that this module made for a prompt; a segment of that name alone is none."""
    wanted = _tag_text(prompt).lower()
    for identifier in reversed(segment_ids(node)):
        if tags_of(node, identifier).get(PROMPT, "").lower() == wanted:
            return identifier
    return None


def add_segment(node: "slicer.vtkMRMLSegmentationNode", name: str, color: tuple[float, float, float]) -> str:
    """Add an empty segment, with a name that no other segment has, and return its id."""
    segmentation = node.GetSegmentation()
    taken = {segmentation.GetSegment(identifier).GetName() for identifier in segment_ids(node)}
    free, count = name, 1
    while free in taken:
        count += 1
        free = f"{name} ({count})"
    return segmentation.AddEmptySegment(segmentation.GenerateUniqueSegmentID(name), free, color)


def write_mask(node: "slicer.vtkMRMLSegmentationNode", identifier: str, mask: np.ndarray, grid: Grid) -> None:
    """Make a mask (z, y, x) bool, on a grid in the node's coordinates, the content of one segment."""
    _write_label_map(node, identifier, grid.label_map(mask))


def read_mask(node: "slicer.vtkMRMLSegmentationNode", identifier: str, grid: Grid) -> np.ndarray:
    """Return a segment's voxels (z, y, x) bool on a grid in the node's coordinates."""
    mask = np.zeros(grid.shape, bool)
    own = _label_map(node, identifier)
    if own is None:
        return mask
    reference, resampled = grid.label_map(mask), slicer.vtkOrientedImageData()
    resample = slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage
    if not resample(own, reference, resampled, False, False) or not resampled.GetNumberOfPoints():
        return mask
    values = vtk.util.numpy_support.vtk_to_numpy(resampled.GetPointData().GetScalars())
    return values.reshape(resampled.GetDimensions()[::-1]) > 0


def is_empty(node: "slicer.vtkMRMLSegmentationNode", identifier: str) -> bool:
    """Whether a segment has no label map with voxels."""
    return _label_map(node, identifier) is None


def tags_of(node: "slicer.vtkMRMLSegmentationNode", identifier: str) -> dict[str, str]:
    """Return the tags of a segment that this module or Slicer's terminology gave it."""
    segment = node.GetSegmentation().GetSegment(identifier)
    tags = {}
    for key in (PROMPT, ADAPTER, BASE, THRESHOLD, PRESENCE, CLEAN_UP, TERMINOLOGY):
        value = vtk.mutable("")
        if segment.GetTag(key, value):
            tags[key] = str(value)
    return tags


def set_tags(node: "slicer.vtkMRMLSegmentationNode", identifier: str, tags: dict[str, str]) -> None:
    segment = node.GetSegmentation().GetSegment(identifier)
    for key, text in tags.items():
        segment.SetTag(key, text if key == TERMINOLOGY else _tag_text(text))


def geometry_of(node: "slicer.vtkMRMLSegmentationNode") -> str:
    """Return the reference geometry as Slicer writes it; it changes when the node is hardened."""
    key = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    return node.GetSegmentation().GetConversionParameter(key)


def snapshot(node: "slicer.vtkMRMLSegmentationNode", identifier: str) -> Snapshot:
    segment = node.GetSegmentation().GetSegment(identifier)
    tags = tags_of(node, identifier)
    return Snapshot(segment.GetName(), segment.GetColor(), tags, _label_map(node, identifier))


def restore(node: "slicer.vtkMRMLSegmentationNode", identifier: str, before: Snapshot) -> None:
    """Make a segment what it was, also where it has been removed since."""
    segmentation = node.GetSegmentation()
    if segmentation.GetSegment(identifier) is None:
        segmentation.AddEmptySegment(identifier, before.name, before.color)
    segment = segmentation.GetSegment(identifier)
    segment.SetName(before.name)
    segment.SetColor(before.color)
    for key in tags_of(node, identifier).keys() - before.tags.keys():
        segment.RemoveTag(key)
    set_tags(node, identifier, before.tags)
    if before.label_map is None:
        segment.RemoveAllRepresentations()
    else:
        _write_label_map(node, identifier, before.label_map)


def _write_label_map(node, identifier: str, label_map: "slicer.vtkOrientedImageData") -> None:
    if not slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(label_map, node, identifier):
        raise UserError(f"Slicer could not write the segment '{identifier}' of '{node.GetName()}'; see its log")


def _label_map(node, identifier: str) -> "slicer.vtkOrientedImageData | None":
    """Return a copy of a segment's label map in its own geometry; None where it is empty."""
    label_map = slicer.vtkOrientedImageData()
    found = node.GetBinaryLabelmapRepresentation(identifier, label_map)
    return label_map if found and label_map.GetNumberOfPoints() else None


def _is_blank(node) -> bool:
    return node.GetSegmentation().GetNumberOfSegments() == 0


def holds_label_maps(node: "slicer.vtkMRMLSegmentationNode") -> bool:
    """Whether a segmentation's segments are kept as label maps, and not as surfaces."""
    binary = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    return node.GetSegmentation().GetSourceRepresentationName() == binary


def volume_of(node: "slicer.vtkMRMLSegmentationNode") -> "slicer.vtkMRMLNode | None":
    """Return the volume whose geometry a segmentation refers to."""
    return node.GetNodeReference(slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole())


def _lies_like(node, volume) -> bool:
    """Whether a segmentation has a volume's reference geometry and transform."""
    if node.GetParentTransformNode() is not volume.GetParentTransformNode():
        return False
    text = geometry_of(node)
    theirs = slicer.vtkOrientedImageData()
    if not text or not slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, theirs, False):
        return False
    matrix = vtk.vtkMatrix4x4()
    theirs.GetImageToWorldMatrix(matrix)
    grid = grid_of(volume)
    same_place = np.allclose(slicer.util.arrayFromVTKMatrix(matrix), grid.ijk_to_ras, atol=TOLERANCE_MM)
    return same_place and theirs.GetDimensions()[::-1] == grid.shape


def _put_beside(node, volume) -> None:
    """Put a node into the volume's folder or study."""
    subjects = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(volume.GetScene())
    item, own = (subjects.GetItemByDataNode(each) if subjects else 0 for each in (volume, node))
    if item and own:
        subjects.SetItemParent(own, subjects.GetItemParent(item))


def _follow(node, volume) -> None:
    """Put the segmentation under every transform under which its volume is put.

    Hardening is no such move: the volume's own grid changes then, and the segments, which stay where they are in
    the world, are still in the right place.
    """
    known = _FOLLOWED.get((node.GetID(), volume.GetID()))
    if known is not None and known.Get() is volume:  # a scene that is loaded anew has the same ids
        return
    _FOLLOWED[node.GetID(), volume.GetID()] = reference = vtk.vtkWeakReference()
    reference.Set(volume)
    identifier, grid = node.GetID(), grid_of(volume)

    def moved(volume, event) -> None:
        follower = volume.GetScene() and volume.GetScene().GetNodeByID(identifier)
        if follower and volume.GetImageData() and grid_of(volume) == grid:
            follower.SetAndObserveTransformNodeID(volume.GetTransformNodeID())

    volume.AddObserver(slicer.vtkMRMLTransformableNode.TransformModifiedEvent, moved)


def _tag_text(text: str) -> str:
    """Return text that a tag can hold: `.seg.nrrd` ends tags with "|"."""
    return " ".join(text.replace("|", "/").split())
