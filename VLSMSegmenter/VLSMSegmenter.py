"""The Slicer module: only what Slicer must find in a file of its name. The work is done in VLSMSegmenterLib."""

import slicer
import slicer.util
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from VLSMSegmenterLib.logic import SegmenterLogic

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
        from VLSMSegmenterLib.panel import Panel  # needs widgets, which a Slicer without a window has not

        self.logic = VLSMSegmenterLogic()
        self.panel = Panel(self.logic, self.resourcePath("UI/VLSMSegmenter.ui"))
        self.layout.addWidget(self.panel.widget)

    def enter(self):
        self.panel.enter()

    def cleanup(self):
        self.panel.close()


class VLSMSegmenterTest(ScriptedLoadableModuleTest):
    """Slicer's self test: a ball is written as a segment where it lies. Needs no engine."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def runTest(self):
        self.setUp()
        self.test_a_mask_lands_on_its_voxels()

    def test_a_mask_lands_on_its_voxels(self):
        import numpy as np
        from VLSMSegmenterLib import segmentations
        from VLSMSegmenterLib.volumes import grid_of

        voxels = np.zeros((6, 7, 8), np.int16)
        voxels[2:4, 3:5, 1:6] = 100
        matrix = np.array([[0, 0, 2.5, 10], [-1.5, 0, 0, 20], [0, 0.5, 0, 30], [0, 0, 0, 1]])
        volume = slicer.util.addVolumeFromArray(voxels, matrix, "test")
        node = segmentations.prepare(volume, None)
        identifier = segmentations.add_segment(node, "box", (1, 0, 0))
        segmentations.write_mask(node, identifier, voxels > 50, grid_of(volume))
        seen = slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, volume)
        self.assertTrue(np.array_equal(seen > 0, voxels > 50))
