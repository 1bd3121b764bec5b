"""DICOM files for tests: single images, and enhanced ones."""

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid


def write_image(path, pixels, syntax=ExplicitVRLittleEndian, modality="OT", data=None, **attributes):
    """Write one image file of pixels (rows, columns) or (frames, rows, columns): grey, or what `attributes` say."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, syntax
    meta.MediaStorageSOPInstanceUID = generate_uid()
    image = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    image.SeriesInstanceUID, image.StudyInstanceUID, image.Modality = generate_uid(), generate_uid(), modality
    image.Rows, image.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        image.NumberOfFrames = len(pixels)
    bits = 8 * pixels.dtype.itemsize
    image.BitsAllocated, image.BitsStored, image.HighBit = bits, bits, bits - 1
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    for key, value in attributes.items():
        setattr(image, key, value)
    image.PixelData = pixels.tobytes() if data is None else data
    image["PixelData"].VR = "OB" if UID(syntax).is_encapsulated else "OW"
    image.save_as(path, enforce_file_format=True)
    return path


def item(**values) -> Dataset:
    dataset = Dataset()
    for key, value in values.items():
        setattr(dataset, key, value)
    return dataset


def write_enhanced(path, positions, values=None, shared=(), per_frame=None, **attributes):
    """Write an enhanced image whose frames hold their position, at the positions z in this order."""
    frames = []
    for index, z in enumerate(positions):
        frame = item(PlanePositionSequence=[item(ImagePositionPatient=[10, 20, z])])
        frame.FrameContentSequence = [per_frame[index] if per_frame else Dataset()]
        if values:
            frame.PixelValueTransformationSequence = [values[index]]
        frames.append(frame)
    common = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.25], SliceThickness=2)],
        **dict(shared),
    )
    groups = {"SharedFunctionalGroupsSequence": [common], "PerFrameFunctionalGroupsSequence": frames}
    pixels = np.stack([np.full((6, 5), z, np.int16) for z in positions])
    return write_image(path, pixels, modality="MR", **groups, **attributes)
