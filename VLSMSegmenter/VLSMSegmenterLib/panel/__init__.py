"""The panel in Slicer: plain Qt over the shared parts."""
