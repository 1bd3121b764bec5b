"""The scans and their segments in Slicer's views: three slice views and one in 3-D. Knows nothing of the page."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import slicer
import vtk
import vtk.util.numpy_support
from PIL import Image
from trame_slicer.core import SlicerApp, VolumeWindowLevel
from trame_slicer.rca_view import register_rca_factories
from trame_slicer.views import SliceView, ViewLayoutDefinition
from trame_slicer.views.view_layout_definition import ViewType
from VLSMSegmenterLib.shared import segmentations
from VLSMSegmenterLib.shared.volumes import SPACING_UNKNOWN, Grid, add_volume, grid_of, voxels_of

from engine.errors import UserError
from engine.imaging.volumes.intensity import CT_WINDOWS, intensity_range
from engine.imaging.volumes.volume import Volume

VIEWS = {
    "axial": ViewLayoutDefinition.axial_view(),
    "3-D": ViewLayoutDefinition.threed_view(background_color="#000000"),
    "coronal": ViewLayoutDefinition.coronal_view(),
    "sagittal": ViewLayoutDefinition.sagittal_view(),
}
WINDOWS = ("auto", "full", *CT_WINDOWS)
STORABLE = {"?": np.uint8, "e": np.float32, "l": np.float64, "q": np.float64, "L": np.float64, "Q": np.float64}
PROBABILITY_COLORS = "vtkMRMLColorTableNodeIron"
PROBABILITY_OPACITY = 0.5
LEAST_PROBABILITY = 0.05  # that is shown


@dataclass(frozen=True, eq=False)
class Scan:
    """A volume that was opened.

    Attributes:
        node: in the scene, with the voxels.
        source: as it was read, but for its voxels.
    """

    node: "slicer.vtkMRMLScalarVolumeNode"
    source: Volume

    @property
    def volume(self) -> Volume:
        return self.source.with_voxels(voxels_of(self.node))


class Scene:
    """A MRML scene of its own, with Slicer's logics and four views.

    Args:
        server: trame's, which the views are drawn for.
        around_slice, around_3d: what the page puts over a view, called with its name and itself.
    """

    def __init__(self, server, around_slice: Callable, around_3d: Callable):
        self._app = SlicerApp()
        slicer.mrmlScene = self._app.scene  # where slicer.util and the module's logic look for it
        terminologies = SimpleNamespace(logic=lambda: self._app.terminologies_logic)
        slicer.modules = SimpleNamespace(terminologies=terminologies)
        names = {definition.singleton_tag: name for name, definition in VIEWS.items()}
        register_rca_factories(
            self._app.view_manager,
            server,
            slice_view_ui_f=lambda server, tag, view: around_slice(names[view.get_singleton_tag()], view),
            three_d_view_ui_f=lambda server, tag, view: around_3d(names[view.get_singleton_tag()], view),
        )
        self.views = {name: self._app.view_manager.create_view(definition) for name, definition in VIEWS.items()}
        self.scans: list[Scan] = []
        self.shown: Scan | None = None

    # Scans

    def add(self, volume: Volume) -> Scan:
        """Take a volume into the scene, and show it.

        Raises:
            UserError: there is nothing to see.
        """
        limits = None if volume.is_rgb else intensity_range(volume)
        values = volume.voxels.astype(STORABLE.get(volume.voxels.dtype.char, volume.voxels.dtype), copy=False)
        grid = Grid.from_lps(volume.shape, volume.spacing_mm, volume.origin_mm, volume.direction)
        name = slicer.mrmlScene.GenerateUniqueName(volume.name)
        without_voxels = volume.with_voxels(np.broadcast_to(np.uint8(0), volume.shape))
        scan = Scan(add_volume(values, grid, name, None), without_voxels)
        if not all(volume.spacing_known):
            scan.node.SetAttribute(SPACING_UNKNOWN, "1")
        if volume.modality:
            subjects = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
            item = subjects.CreateItem(subjects.GetSceneItemID(), scan.node)  # the application would have done it
            subjects.SetItemAttribute(item, "DICOM.Modality", volume.modality)
        self.scans.append(scan)
        if limits:
            VolumeWindowLevel.set_volume_node_display_min_max_range(scan.node, *limits)
        self.show(scan)
        return scan

    def show(self, scan: Scan) -> None:
        """Show one scan with its segments, and none of the others."""
        self.shown = scan
        for other in self.scans:
            for node in segmentations.of_volume(other.node):
                node.GetDisplayNode().SetVisibility(other is scan)
        self._app.display_manager.show_volume_in_slice_background(scan.node)
        self.hide_probability()
        self._app.display_manager.reset_views()

    def remove(self, scan: Scan) -> None:
        """Close a scan with all that was made of it."""
        for node in segmentations.of_volume(scan.node):
            slicer.mrmlScene.RemoveNode(node)
        slicer.mrmlScene.RemoveNode(scan.node)
        self.scans.remove(scan)
        self.shown = None
        if self.scans:
            self.show(self.scans[-1])

    def segmentation(self) -> "slicer.vtkMRMLSegmentationNode | None":
        """Return the segmentation of the scan that is shown."""
        return segmentations.segmentation_for(self.shown.node) if self.shown else None

    def load_segments(self, path: Path, scan: Scan) -> None:
        """Read a `.seg.nrrd` file for a scan.

        Raises:
            UserError: it is none.
        """
        storage = slicer.vtkMRMLSegmentationStorageNode()
        storage.SetFileName(str(path))
        read = slicer.vtkMRMLSegmentationNode()
        slicer.mrmlScene.AddNode(read)
        try:
            if not storage.ReadData(read):
                raise UserError(f"{path} is no segmentation that can be read; give a .seg.nrrd file")
            node = segmentations.prepare(scan.node, None)
            node.GetSegmentation().DeepCopy(read.GetSegmentation())
            node.SetReferenceImageGeometryParameterFromVolumeNode(scan.node)
        finally:
            slicer.mrmlScene.RemoveNode(read)

    # How it looks

    def set_window(self, scan: Scan, window: str) -> None:
        """Choose which intensities are black and white, by the names that the engine has for windows.

        Raises:
            UserError: there is nothing to see.
        """
        volume = scan.volume
        if not volume.is_rgb:
            VolumeWindowLevel.set_volume_node_display_min_max_range(scan.node, *intensity_range(volume, window))

    def set_opacity(self, opacity: float) -> None:
        """Make the segments in slices more or less opaque, 0..1; their outlines stay."""
        node = self.segmentation()
        if node:
            node.GetDisplayNode().SetOpacity2DFill(opacity)

    def set_surfaces(self, shown: bool) -> None:
        """Show the segments as surfaces in 3-D, made from what they are now; or let go of their surfaces."""
        node = self.segmentation()
        if node is None:
            return
        if not shown:
            node.RemoveClosedSurfaceRepresentation()
            return
        first = not node.GetSegmentation().ContainsRepresentation("Closed surface")
        node.CreateClosedSurfaceRepresentation()
        node.GetDisplayNode().SetVisibility3D(True)
        if first:
            self.views["3-D"].reset_view()

    def show_probability(self, node: "slicer.vtkMRMLScalarVolumeNode") -> None:
        """Lay a probability, 0..1, over the slices; it belongs to this from now on."""
        self.hide_probability()
        display = node.GetDisplayNode()
        display.SetAndObserveColorNodeID(PROBABILITY_COLORS)
        display.SetAutoWindowLevel(False)
        display.SetWindowLevel(1.0, 0.5)
        display.SetApplyThreshold(True)
        display.SetThreshold(LEAST_PROBABILITY, 1.0)
        node.SetName("probability")
        self._app.display_manager.show_volume_in_slice_foreground(node)
        for view in self._slice_views():
            view.set_foreground_opacity(PROBABILITY_OPACITY)

    def hide_probability(self) -> None:
        for view in self._slice_views():
            node = slicer.mrmlScene.GetNodeByID(view.get_foreground_volume_id() or "")
            view.set_foreground_volume_id(None)
            if node is not None:
                slicer.mrmlScene.RemoveNode(node)

    def move(self, name: str, steps: int) -> None:
        """Go some slices on in a view."""
        view = self.views.get(name)
        if isinstance(view, SliceView):
            low, high = view.get_slice_range()
            view.set_slice_value(min(max(view.get_slice_value() + steps * view.get_slice_step(), low), high))

    def go_to(self, identifier: str) -> None:
        """Show the slices through the middle of a segment, where it has one."""
        node = self.segmentation()
        mask = segmentations.read_mask(node, identifier, grid_of(self.shown.node))
        if not mask.any():
            return
        middle = [int(np.median(places)) for places in np.nonzero(mask)][::-1]
        place = (grid_of(self.shown.node).ijk_to_ras @ [*middle, 1])[:3]
        for view in self._slice_views():
            slicer.mrmlScene.GetNodeByID(view.get_view_node_id()).JumpSliceByOffsetting(*place)

    def picture(self) -> Image.Image:
        """Return what the four views show."""
        tiles = {name: self._drawn(view) for name, view in self.views.items()}
        width = max(tile.width for tile in tiles.values())
        height = max(tile.height for tile in tiles.values())
        picture = Image.new("RGB", (2 * width, 2 * height))
        for number, name in enumerate(VIEWS):
            picture.paste(tiles[name], (number % 2 * width, number // 2 * height))
        return picture

    @staticmethod
    def _drawn(view) -> Image.Image:
        window, image = view.render_window(), vtk.vtkImageData()
        window.Render()
        slicer.vtkMRMLLayerDisplayableManager.RenderWindowBufferToImage(window, image)
        width, height, _ = image.GetDimensions()
        pixels = vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
        return Image.fromarray(np.ascontiguousarray(pixels.reshape(height, width, -1)[::-1, :, :3]))

    def _slice_views(self) -> list[SliceView]:
        return [
            self.views[name] for name, definition in VIEWS.items() if definition.view_type is ViewType.SLICE_VIEW
        ]
