"""The Slicer module: only what Slicer must find in a file of its name. The work is done in VLSMSegmenterLib."""

import slicer
import slicer.util
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from VLSMSegmenterLib.shared.logic import SegmenterLogic

HELP = """Type what you want to see ("left ventricle", "polyp"), pick an adapter, and get segments: a frozen CLIPSeg
with small trained adapters. Nothing leaves this computer unless you set up a server elsewhere.
Research only; not a medical device."""


class VLSMSegmenter(ScriptedLoadableModule):
    def __init__(self, parent):
        super().__init__(parent)
        parent.title = "VLSM Segmenter"
        parent.categories = ["Segmentation"]
        parent.dependencies = ["Segmentations", "Terminologies", "Volumes"]
        parent.contributors = ["The VLSMSegmenter team"]
        parent.helpText = HELP
        parent.acknowledgementText = "The method is VLSM-Adapter (Dhakal et al., MICCAI 2024) over CLIPSeg."


class VLSMSegmenterLogic(SegmenterLogic, ScriptedLoadableModuleLogic):
    """The logic by the name that Slicer's scripts expect."""

    def __init__(self, engine=None):
        ScriptedLoadableModuleLogic.__init__(self)
        SegmenterLogic.__init__(self, engine)


class VLSMSegmenterWidget(ScriptedLoadableModuleWidget):
    def setup(self):
        super().setup()
        from VLSMSegmenterLib.panel.panel import Panel  # needs widgets, which a Slicer without a window has not

        self.logic = VLSMSegmenterLogic()
        self.panel = Panel(self.logic, self.resourcePath("UI/VLSMSegmenter.ui"))
        self.layout.addWidget(self.panel.widget)

    def enter(self):
        self.panel.enter()

    def cleanup(self):
        self.panel.close()


class VLSMSegmenterTest(ScriptedLoadableModuleTest):
    """Slicer's self test: what only the application can show, beside what a mask must do. Needs no engine."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def runTest(self):
        for test in (
            self.test_a_mask_lands_on_its_voxels,
            self.test_a_region_becomes_the_box_of_its_voxels,
            self.test_what_is_chosen_is_kept_in_the_scene,
            self.test_the_panel_works_with_the_real_widgets,
        ):
            self.setUp()
            test()

    def test_a_mask_lands_on_its_voxels(self):
        import numpy as np
        from VLSMSegmenterLib.shared import segmentations
        from VLSMSegmenterLib.shared.volumes import grid_of

        volume, voxels = _box_in_a_volume()
        node = segmentations.prepare(volume, None)
        identifier = segmentations.add_segment(node, "box", (1, 0, 0))
        segmentations.write_mask(node, identifier, voxels > 50, grid_of(volume))
        seen = slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume)
        self.assertTrue(np.array_equal(seen > 0, voxels > 50))

    def test_a_region_becomes_the_box_of_its_voxels(self):
        from VLSMSegmenterLib.shared.volumes import box_of, grid_of

        volume, _ = _box_in_a_volume()
        region = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
        region.SetCenter(*(grid_of(volume).ijk_to_ras @ [3, 3.5, 2.5, 1])[:3])
        region.SetSize(2.5, 6.0, 0.5)  # along the room's axes, which are the voxels' z, x and y
        self.assertEqual(box_of(region, volume), (slice(2, 4), slice(3, 5), slice(1, 6)))

    def test_what_is_chosen_is_kept_in_the_scene(self):
        from VLSMSegmenterLib.panel import parameters

        volume, _ = _box_in_a_volume()
        parameters.write(slicer.mrmlScene, {"volume": volume, "roi": None, "prompts": "left lung\nliver"})
        kept = parameters.read(slicer.mrmlScene)
        self.assertEqual((kept["volume"], kept["roi"], kept["prompts"]), (volume, None, "left lung\nliver"))

    def test_the_panel_works_with_the_real_widgets(self):
        if not hasattr(slicer.modules, "vlsmsegmenter"):
            self.skipTest("there is no window")
        volume, _ = _box_in_a_volume()
        panel = slicer.modules.vlsmsegmenter.widgetRepresentation().self().panel
        panel.ui.volumeSelector.setCurrentNode(volume)
        panel.ui.promptEdit.setPlainText("")
        self.assertFalse(panel.ui.segmentButton.enabled)
        panel.ui.promptEdit.setPlainText("brain; liver")
        self.assertTrue(panel.ui.segmentButton.enabled)
        from VLSMSegmenterLib.panel import parameters

        self.assertEqual(parameters.read(slicer.mrmlScene)["prompts"], "brain; liver")


def _box_in_a_volume():
    """Return a volume node with anisotropic voxels along turned axes, and its voxels: a box of 100 in zeros."""
    import numpy as np

    voxels = np.zeros((6, 7, 8), np.int16)
    voxels[2:4, 3:5, 1:6] = 100
    matrix = np.array([[0, 0, 2.5, 10], [-1.5, 0, 0, 20], [0, 0.5, 0, 30], [0, 0, 0, 1]])
    return slicer.util.addVolumeFromArray(voxels, matrix, "test"), voxels
