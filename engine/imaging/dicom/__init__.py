"""DICOM: files to slices, slices to volumes, segments to DICOM segmentations, and all of that over the web."""
