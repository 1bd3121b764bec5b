"""The server behind `python -m engine.serve`: segmentation over HTTP for Slicer and for scripts."""
