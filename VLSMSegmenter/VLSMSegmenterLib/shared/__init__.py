"""The parts that know no window: for Slicer's panel, its Python console and the page in a browser alike."""
