"""Structured reports: they say each segment's volume, of the very segment; highdicom reads them back."""

import json
import subprocess

import highdicom
import numpy as np
import pydicom
import pytest
from conftest import files, run_command
from pydicom.sr.codedict import codes
from test_dicom_seg import ALGORITHM, WITH_DCIODVFY, segments_of, write_series

from engine import segment
from engine.imaging.dicom.report import write_measurements
from engine.imaging.reading import read_volume
from engine.imaging.volumes.segments import Segment
from engine.imaging.writing import write_segments

VOXEL_ML = 0.5 * 0.25 * 2.5 / 1000
NAMES = ("left lung", "polyp", "脑 \\ ü")


@pytest.fixture
def command(tiny_adapter, monkeypatch, capsys):
    def call(*arguments):
        words = ["--device", "cpu", "--adapter", tiny_adapter, "--threshold", 0.1, *arguments]
        return run_command(monkeypatch, capsys, segment.main, *words)

    return call


def groups_in(path) -> list:
    """Return the measurement groups of a report, as highdicom reads them."""
    return highdicom.sr.srread(path).content.get_volumetric_roi_measurement_groups()


def volume_ml(group) -> float:
    (measured,) = group.get_measurements(name=codes.SCT.Volume)
    assert measured.unit.value == "ml"
    return measured.value


@pytest.fixture
def report(tmp_path):
    volume = read_volume(write_series(tmp_path / "series"))
    empty = Segment("liver", np.zeros(volume.shape, bool), (1, 0, 0), algorithm=ALGORITHM)
    write_segments(tmp_path / "o.dcm", [empty, *segments_of(volume, *NAMES)], volume)
    volumes_ml = {"liver": 0.0, **dict(zip(NAMES, (1.5, 12.345678, 0.25), strict=True))}
    write_measurements(tmp_path / "o.sr.dcm", tmp_path / "o.dcm", volumes_ml)
    return tmp_path / "o.sr.dcm"


def test_each_volume_refers_to_the_segment_that_it_is_of(report):
    written, source = pydicom.dcmread(report), pydicom.dcmread(report.with_name("o.dcm"))
    groups = groups_in(report)
    assert [volume_ml(group) for group in groups] == [
        1.5,
        12.3457,
        0.25,
    ]  # the empty one is not in the segmentation
    for number, (group, described) in enumerate(zip(groups, source.SegmentSequence, strict=True), start=1):
        reference = group.referenced_segment
        assert reference.referenced_sop_instance_uid == source.SOPInstanceUID
        assert list(reference.referenced_segment_numbers) == [number]
        assert (group.tracking_uid, group.tracking_identifier) == (described.TrackingUID, described.TrackingID)
        kind = described.SegmentedPropertyTypeCodeSequence[0]
        assert (group.finding_type.value, group.finding_type.meaning) == (kind.CodeValue, kind.CodeMeaning)
    (site,) = groups[0].finding_sites
    assert (site.value, site.laterality) == (codes.SCT.Lung, codes.SCT.Left) and not groups[1].finding_sites
    for name in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate"):
        assert written[name].value == source[name].value
    assert written.SeriesInstanceUID != source.SeriesInstanceUID and written.Modality == "SR"


@WITH_DCIODVFY
def test_dciodvfy_finds_no_error_and_warns_of_nothing(report):
    said = subprocess.run(["dciodvfy", "-new", report], capture_output=True, text=True, check=False).stderr
    assert said.split() == ["EnhancedSR"]


def test_the_command_writes_the_volumes_of_its_report(command, tmp_path):
    series = write_series(tmp_path / "series")
    words = [series, "-p", "brain;polyp", "-o", tmp_path / "out" / "o.dcm", "--measurements", "--report"]
    code, printed, errors = command(*words)
    assert code == 0, errors
    assert files(tmp_path / "out") == {"o.dcm", "o.sr.dcm", "o.json"}
    rows = json.loads((tmp_path / "out" / "o.json").read_text())["results"]
    assert [volume_ml(group) for group in groups_in(tmp_path / "out" / "o.sr.dcm")] == [
        r["volume_ml"] for r in rows
    ]
    written = pydicom.dcmread(tmp_path / "out" / "o.dcm").pixel_array
    assert sum(row["volume_ml"] for row in rows) == pytest.approx(written.sum() * VOXEL_ML, rel=1e-5)
    code, printed, errors = command(*words, "--resume")
    assert code == 0 and "done before" in printed, errors
    (tmp_path / "out" / "o.sr.dcm").unlink()
    code, _, errors = command(*words, "--resume", "--overwrite")
    assert code == 0 and groups_in(tmp_path / "out" / "o.sr.dcm"), errors


def test_what_was_not_found_measures_nothing(command, tmp_path):
    series = write_series(tmp_path / "series")
    code, _, errors = command(
        *(series, "-p", "brain", "--min-volume-ml", 1000, "-o", f"{tmp_path}/out/"),
        *("--format", ".dcm", "--measurements"),
    )
    assert code == 0, errors
    assert files(tmp_path / "out") == {"series.dcm", "series.sr.dcm", "series.json", "summary.csv", "segments.csv"}
    (group,) = groups_in(tmp_path / "out" / "series.sr.dcm")
    assert volume_ml(group) == 0


def test_only_a_dicom_segmentation_can_be_measured_for_dicom(command, tmp_path):
    series = write_series(tmp_path / "series")
    code, _, errors = command(series, "-p", "brain", "-o", tmp_path / "o.seg.nrrd", "--measurements")
    assert code == 2 and "--measurements refer to a DICOM segmentation; write .dcm" in errors
    assert not (tmp_path / "o.seg.nrrd").exists()


def test_no_volume_is_measured_where_a_spacing_is_not_known(command, tmp_path):
    series = write_series(tmp_path / "series", without=(1, 2, 3, 4), SliceThickness=None)
    code, _, errors = command(series, "-p", "brain", "-o", tmp_path / "o.dcm", "--measurements")
    assert code == 2 and "does not say how large its voxels are; leave out --measurements" in errors
    assert not (tmp_path / "o.dcm").exists()
