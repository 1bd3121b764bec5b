"""The Slicer module: so far its name and a page that says how to use the engine beside it."""

import qt
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleWidget

HELP = """Segment images by text prompts: a frozen CLIPSeg with small trained adapters.
This module has no panel yet. Run <code>python -m engine.segment SCAN --prompt brain -o OUT.seg.nrrd</code> and
drag the file into Slicer, or use <code>engine.Segmenter</code> in a Python of its own; the README shows both.
Research only; not a medical device."""


class VLSMSegmenter(ScriptedLoadableModule):
    def __init__(self, parent):
        super().__init__(parent)
        parent.title = "VLSM Segmenter"
        parent.categories = ["Segmentation"]
        parent.contributors = ["The VLSMSegmenter team"]
        parent.helpText = HELP
        parent.acknowledgementText = "The method is VLSM-Adapter (Dhakal et al., MICCAI 2024) over CLIPSeg."


class VLSMSegmenterWidget(ScriptedLoadableModuleWidget):
    def setup(self):
        super().setup()
        label = qt.QLabel(HELP)
        label.wordWrap = True
        self.layout.addWidget(label)
        self.layout.addStretch(1)
