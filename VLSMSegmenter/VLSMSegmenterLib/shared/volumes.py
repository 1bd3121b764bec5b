"""Volume nodes: voxels and grid as the engine wants them, and volumes made on such a grid."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import slicer
import slicer.util
import vtk
import vtk.util.numpy_support

from engine.errors import UserError

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
ROUNDING = 1e-3  # of a voxel
SPACING_UNKNOWN = "VLSMSegmenter.SpacingUnknown"  # an attribute of nodes whose file does not say it
PICTURES = ("US", "XA", "RF", "ES", "XC", "GM", "OP")  # modalities of films, for which Slicer takes 1 mm
Box = tuple[slice, slice, slice]  # along z, y, x


@dataclass(frozen=True)
class Grid:
    """Where voxels lie, in the node's own coordinates: a transform above the node is none of it.

    Attributes:
        shape: sizes along z, y, x.
        spacing_mm: distances of neighbours along x, y, z.
        origin_ras: place of voxel (0, 0, 0).
        axes_ras: nine numbers, row by row; the columns are the directions of x, y, z.
        spacing_known: all of it is; Slicer takes 1 mm where a file does not say it.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_ras: tuple[float, float, float]
    axes_ras: tuple[float, ...]
    spacing_known: bool = True

    @classmethod
    def from_lps(
        cls,
        shape: Sequence[int],
        spacing_mm: Sequence[float],
        origin_mm: Sequence[float],
        direction: Sequence[float],
    ) -> "Grid":
        """Return the grid of voxels that lie as `engine.imaging.volumes.volume.Volume` says it."""
        axes = RAS_TO_LPS @ np.reshape(direction, (3, 3))
        return cls(
            tuple(shape), tuple(spacing_mm), tuple((RAS_TO_LPS @ origin_mm).tolist()), tuple(axes.ravel().tolist())
        )

    @property
    def axes(self) -> np.ndarray:
        return np.reshape(self.axes_ras, (3, 3))

    @property
    def origin_lps(self) -> tuple[float, ...]:
        return tuple((RAS_TO_LPS @ self.origin_ras).tolist())

    @property
    def direction_lps(self) -> tuple[float, ...]:
        """Nine numbers, as `engine.imaging.volumes.volume.Volume` has them."""
        return tuple((RAS_TO_LPS @ self.axes).ravel().tolist())

    @property
    def voxel_volume_ml(self) -> float | None:
        """None where nobody knows it."""
        if not self.spacing_known:
            return None
        return float(np.prod(self.spacing_mm) * abs(np.linalg.det(self.axes)) / 1000)

    @property
    def ijk_to_ras(self) -> np.ndarray:
        """(4, 4)."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.axes * self.spacing_mm
        matrix[:3, 3] = self.origin_ras
        return matrix

    def cropped(self, box: Box) -> "Grid":
        """Return the grid of the voxels in a box."""
        start = [part.start for part in box[::-1]]
        origin = tuple((self.ijk_to_ras @ [*start, 1])[:3].tolist())
        return replace(self, shape=tuple(part.stop - part.start for part in box), origin_ras=origin)

    def label_map(self, mask: np.ndarray) -> "slicer.vtkOrientedImageData":
        """Return a mask (z, y, x) bool on this grid, as Slicer's segments hold it."""
        image = slicer.vtkOrientedImageData()
        image.SetDimensions(*self.shape[::-1])
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        scalars = vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
        scalars[:] = mask.ravel()
        image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(self.ijk_to_ras))
        return image


def grid_of(node: "slicer.vtkMRMLScalarVolumeNode") -> Grid:
    """Return a volume node's grid.

    Raises:
        UserError: the node holds no voxels.
    """
    image = node.GetImageData()
    if image is None or 0 in image.GetDimensions():
        raise UserError(f"the volume '{node.GetName()}' holds no voxels; load or choose another")
    axes = [[0.0] * 3 for _ in range(3)]
    node.GetIJKToRASDirections(axes)
    shape, directions = image.GetDimensions()[::-1], tuple(value for row in axes for value in row)
    return Grid(shape, node.GetSpacing(), node.GetOrigin(), directions, _is_spacing_known(node))


def _is_spacing_known(node: "slicer.vtkMRMLScalarVolumeNode") -> bool:
    """Return whether a node's spacing is more than Slicer's stand-in of 1 mm for films and stacks of pictures."""
    if node.GetAttribute(SPACING_UNKNOWN):
        return False
    films = node.IsA("vtkMRMLVectorVolumeNode") or modality_of(node) in PICTURES
    return not (films and tuple(node.GetSpacing()) == (1.0, 1.0, 1.0))


def voxels_of(node: "slicer.vtkMRMLScalarVolumeNode") -> np.ndarray:
    """Return a view of a volume node's voxels: (z, y, x), or (z, y, x, 3) uint8 for RGB; alpha is left out.

    Raises:
        UserError: the node is no image, or of a kind that cannot be segmented.
    """
    grid_of(node)
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise UserError(f"'{node.GetName()}' is a label map; choose the image that it belongs to")
    voxels = slicer.util.arrayFromVolume(node)
    if voxels.ndim == 3:
        return voxels
    if voxels.ndim == 4 and voxels.shape[3] in (3, 4) and voxels.dtype == np.uint8:
        return voxels[..., :3]
    if voxels.ndim == 4 and voxels.shape[3] == 1:
        return voxels[..., 0]
    raise UserError(
        f"'{node.GetName()}' has {voxels.shape[3:]} values of {voxels.dtype} a voxel; "
        "choose a scalar volume, or a picture of 8 bits in RGB"
    )


def modality_of(node: "slicer.vtkMRMLScalarVolumeNode") -> str | None:
    """Return the DICOM modality, such as "CT", of a volume that was loaded from DICOM."""
    subjects = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    item = subjects.GetItemByDataNode(node) if subjects else 0
    return (subjects.GetItemAttribute(item, "DICOM.Modality") or None) if item else None


def box_of(roi: "slicer.vtkMRMLMarkupsROINode", volume: "slicer.vtkMRMLScalarVolumeNode") -> Box:
    """Return the smallest box of voxels that holds a region of interest, whatever their transforms and directions.

    Raises:
        UserError: the region lies outside the volume.
    """
    planes_to_world = slicer.util.arrayFromVTKMatrix(roi.GetObjectToWorldMatrix())
    half = np.array(roi.GetSize()) / 2
    signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(-1, 3)
    corners = np.c_[signs * half, np.ones(8)] @ planes_to_world.T
    grid, ras_to_ijk = grid_of(volume), np.linalg.inv(grid_of(volume).ijk_to_ras)
    world_to_node = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(None, volume.GetParentTransformNode(), world_to_node)
    inside = np.array([world_to_node.TransformPoint(corner[:3]) for corner in corners])
    indices = np.c_[inside, np.ones(8)] @ ras_to_ijk.T[:, :3]
    low, high = np.ceil(indices.min(0) - ROUNDING), np.floor(indices.max(0) + ROUNDING) + 1
    low, high = np.maximum(low, 0).astype(int), np.minimum(high, grid.shape[::-1]).astype(int)
    if (low >= high).any():
        raise UserError(f"the region '{roi.GetName()}' holds no voxel of '{volume.GetName()}'; move it")
    return tuple(slice(int(a), int(b)) for a, b in zip(low[::-1], high[::-1], strict=True))


def add_volume(values: np.ndarray, grid: Grid, name: str, transform_id: str | None) -> "slicer.vtkMRMLNode":
    """Add a volume, (z, y, x), or (z, y, x, 3) for colours, on a grid to the scene, under a transform."""
    kind = "vtkMRMLVectorVolumeNode" if values.ndim == 4 else "vtkMRMLScalarVolumeNode"
    node = slicer.util.addVolumeFromArray(values, grid.ijk_to_ras, name, kind)
    node.SetAndObserveTransformNodeID(transform_id)
    return node
