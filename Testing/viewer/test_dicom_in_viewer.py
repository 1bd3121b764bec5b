"""A ZIP file of DICOM in the page, and the DICOM segmentation that comes of it."""

import zipfile

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.uid import generate_uid

from engine.data.head import HEAD, head_folder


def write_zip(folder, write_series):
    """Write 8 slices of the head as a DICOM series in a ZIP file; return it and the series' UID."""
    head = sitk.GetArrayFromImage(sitk.ReadImage(str(head_folder() / HEAD.format("t1"))))[60:140:10, ::-1, ::-1]
    (folder / "series").mkdir()
    attributes = dict.fromkeys(("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "PatientBirthDate"), "")
    attributes |= {"PatientID": "1", "Modality": "MR", "FrameOfReferenceUID": generate_uid()}
    attributes |= {"PixelSpacing": [1, 1], "SliceThickness": 10}
    uid = write_series(folder / "series", [10 * n for n in range(8)], pixels=head, **attributes)
    with zipfile.ZipFile(folder / "study.zip", "w") as archive:
        for path in (folder / "series").iterdir():
            archive.write(path, path.name)
    return folder / "study.zip", uid


def test_a_zip_file_of_dicom_is_opened_segmented_and_saved_as_dicom_that_names_its_slices(
    page, tmp_path, dicom_writer
):
    path, uid = write_zip(tmp_path, dicom_writer)
    page.bring(path)
    assert page.state("facts").startswith("MR, 197 × 233 × 8 voxels")
    page.segment("brain")
    saved = pydicom.dcmread(page.saved(".dcm", tmp_path))
    assert saved.Modality == "SEG" and saved.ReferencedSeriesSequence[0].SeriesInstanceUID == uid
    assert saved.pixel_array.sum() == page.voxels()["brain"] > 1000
    segment = saved.SegmentSequence[0]
    assert segment.SegmentAlgorithmName == "head-t1"
    assert np.prod(saved.pixel_array.shape[1:]) == 197 * 233
    drawn = pydicom.dcmread(page.saved(".rt.dcm", tmp_path))
    assert drawn.Modality == "RTSTRUCT" and drawn.ROIContourSequence[0].ContourSequence


def test_one_of_several_series_is_chosen_in_the_page(page, tmp_path, dicom_writer):
    for number in (1, 2):
        dicom_writer(tmp_path, uid=generate_uid(), number=number, description=f"part {number}", Rows=6)
    page.bring(*tmp_path.iterdir())
    assert page.state("unclear") and "part 1" in page.message and "the field Series" in page.message
    assert "--" not in page.message and str(tmp_path) not in page.message
    page.tab.fill("#series", "part 2")
    page.tab.click("#open-chosen")
    page.wait_for_message("part 2 is open")
    assert not page.state("unclear") and page.state("facts").startswith("CT, 5 × 6 × 4 voxels")
