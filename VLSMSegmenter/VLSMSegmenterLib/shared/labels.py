"""Volumes of the scene with what is labelled in them, as a training wants them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import slicer
import slicer.util

from engine.errors import UserError
from engine.imaging.volumes.segments import Segment
from engine.imaging.volumes.volume import Volume
from VLSMSegmenterLib.shared import segmentations
from VLSMSegmenterLib.shared.volumes import grid_of, voxels_of

UNNAMED = re.compile(r"Segment_\d+")  # as Slicer names a segment that nobody has named
FEWEST_PATIENTS = 2  # one to learn from, and one to see whether it was learnt


@dataclass(frozen=True, eq=False)
class Pair:
    """A volume and the segmentation that labels it."""

    volume: "slicer.vtkMRMLScalarVolumeNode"
    segmentation: "slicer.vtkMRMLSegmentationNode | None"

    @property
    def prompts(self) -> list[str]:
        """The names of the segments."""
        inner = self.segmentation.GetSegmentation()
        return [
            " ".join(inner.GetSegment(i).GetName().split()) for i in segmentations.segment_ids(self.segmentation)
        ]

    @property
    def patient(self) -> str:
        """What volumes of one patient have in common: the patient of Slicer's data tree, or the volume alone."""
        subjects = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.volume.GetScene())
        item = subjects.GetItemByDataNode(self.volume) if subjects else 0
        patient = subjects.GetItemAncestorAtLevel(item, "Patient") if item else 0
        return f"patient {patient}" if patient else self.volume.GetID()


def check_pair(pair: Pair) -> None:
    """Refuse a pair that cannot be learnt from.

    Raises:
        UserError: there is no segmentation, it has no segments, or segments without a name or as surfaces, or
            a node is no longer in the scene.
    """
    name = pair.volume.GetName()
    if any(node is not None and node.GetScene() is None for node in (pair.volume, pair.segmentation)):
        raise UserError(f"the volume '{name}' or its segmentation was removed from the scene; remove its row")
    grid_of(pair.volume)
    if pair.segmentation is None:
        raise UserError(f"the volume '{name}' has no segmentation; choose the one that labels it")
    own = pair.segmentation.GetName()
    if not pair.prompts:
        raise UserError(f"'{own}' has no segments; draw one in '{name}', named by what you would type to see it")
    if unnamed := [prompt for prompt in pair.prompts if not prompt or UNNAMED.fullmatch(prompt)]:
        raise UserError(f"the segment '{unnamed[0]}' of '{own}' has no name that is a prompt; rename it")
    if not segmentations.holds_label_maps(pair.segmentation):
        raise UserError(
            f"the segments of '{own}' are kept as surfaces; make binary labelmap its source representation in the "
            "module Segmentations"
        )


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Refuse pairs of which no adapter can be trained and validated.

    Raises:
        UserError: one cannot be learnt from, a volume is there twice, or there are fewer than two patients.
    """
    for pair in pairs:
        check_pair(pair)
    volumes = [pair.volume for pair in pairs]
    if twice := [volume.GetName() for volume in volumes if volumes.count(volume) > 1]:
        raise UserError(f"the volume '{twice[0]}' is there twice; remove one of its rows")
    if len(volumes) < FEWEST_PATIENTS:
        raise UserError("a training needs two labelled volumes at least: one of them is kept for validation")
    if len({pair.patient for pair in pairs}) < FEWEST_PATIENTS:
        raise UserError(
            "all volumes are of one patient, so there is none to validate with; add a volume of another patient"
        )


def study_of(pair: Pair, name: str) -> tuple[Volume, list[Segment]]:
    """Return a copy of a pair's volume, called `name`, and its segments on exactly the volume's voxels.

    A segmentation on another grid or under another transform is resampled, to the nearest voxel. Belongs to the
    main thread.

    Raises:
        UserError: a node was removed from the scene, no segment has a voxel in the volume, or the voxels cannot be
            used (see `voxels_of` and `Volume`).
    """
    if pair.volume.GetScene() is None or pair.segmentation.GetScene() is None:
        raise UserError("a volume or its segmentation was removed from the scene meanwhile; nothing was trained")
    grid = grid_of(pair.volume)
    volume = Volume(np.array(voxels_of(pair.volume)), grid.spacing_mm, grid.origin_lps, grid.direction_lps, name)
    inner, ids = pair.segmentation.GetSegmentation(), segmentations.segment_ids(pair.segmentation)
    segments = [
        Segment(prompt, _mask(pair, identifier), inner.GetSegment(identifier).GetColor())
        for prompt, identifier in zip(pair.prompts, ids, strict=True)
    ]
    if not any(segment.mask.any() for segment in segments):
        raise UserError(
            f"the segments of '{pair.segmentation.GetName()}' hold no voxel of '{pair.volume.GetName()}'; "
            "is it that volume's?"
        )
    return volume, segments


def _mask(pair: Pair, identifier: str) -> np.ndarray:
    """Return a segment (z, y, x) bool on the voxels of the volume; transforms are heeded."""
    if segmentations.is_empty(pair.segmentation, identifier):
        return np.zeros(grid_of(pair.volume).shape, bool)
    return slicer.util.arrayFromSegmentBinaryLabelmap(pair.segmentation, identifier, pair.volume) > 0
