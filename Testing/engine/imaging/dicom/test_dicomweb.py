"""Series from a DICOMweb server: a real Orthanc on loopback."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import PATIENCE_SECONDS, files, run_command, write_series
from pydicom.uid import generate_uid

from engine import segment
from engine.errors import UserError
from engine.imaging.dicom.web import fetched, store
from engine.imaging.reading import find_studies, read_volume

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """The address of an Orthanc with the DICOMweb plug-in, on loopback, without a password."""
    pytest.importorskip("dicomweb_client", reason="dicomweb-client is not installed")
    program = shutil.which("Orthanc", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None or not PLUGIN.exists():
        pytest.skip("no Orthanc with DICOMweb here; apt install orthanc orthanc-dicomweb")
    folder, port = tmp_path_factory.mktemp("orthanc"), free_port()
    settings = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, folder / "settings.json"], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(PATIENCE_SECONDS * 5):
            try:
                urllib.request.urlopen(f"{address}/dicom-web/studies").read()
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def put_series(orthanc: str, folder: Path, **attributes) -> str:
    """Put a series of noise into a folder and on the server; return its UID."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 900, (4, 20, 24))
    uid = write_series(folder, pixels=noise, PatientID="1", **attributes)
    for path in folder.iterdir():
        urllib.request.urlopen(urllib.request.Request(f"{orthanc}/instances", path.read_bytes())).read()
    return uid


@pytest.fixture
def series(orthanc, tmp_path):
    """A series of noise on the server, and in a folder."""
    uid = put_series(orthanc, tmp_path / "series")
    return f"{orthanc}/dicom-web/studies/{uid}/series/{uid}", tmp_path / "series"


def test_a_series_of_a_server_is_read_like_its_files(series):
    address, folder = series
    with fetched(address) as place:
        volume = read_volume(place)
    expected = read_volume(folder)
    assert np.array_equal(volume.voxels, expected.voxels) and volume.spacing_mm == expected.spacing_mm
    assert volume.origin_mm == expected.origin_mm and not place.exists()


def test_the_command_segments_a_series_of_a_server_and_resumes(series, tmp_path, monkeypatch, capsys, tiny_adapter):
    address, _ = series
    (tmp_path / "out").mkdir()
    arguments = (address, "-p", "brain", "-a", tiny_adapter, "-o", tmp_path / "out", "--device", "cpu", "--resume")
    code, _, errors = run_command(monkeypatch, capsys, segment.main, *arguments)
    uid = address.rpartition("/")[2]
    assert code == 0, errors
    assert files(tmp_path / "out") == {f"{uid}.seg.nrrd", f"{uid}.json", "summary.csv", "segments.csv"}
    code, printed, errors = run_command(monkeypatch, capsys, segment.main, *arguments)
    assert code == 0 and "done before" in printed, errors


def test_a_study_of_a_server_is_a_folder_for_each_series(orthanc, tmp_path):
    study = generate_uid()
    series = {put_series(orthanc, tmp_path / str(number), StudyInstanceUID=study) for number in range(2)}
    with fetched(f"{orthanc}/dicom-web/studies/{study}") as place:
        assert {path.name for path in place.iterdir()} == series
        with pytest.raises(UserError, match="holds several series; choose one with --series"):
            read_volume(place)
        for number, uid in enumerate(sorted(series)):
            assert read_volume(place, uid).shape == (4, 20, 24), number
            assert find_studies(place)[number] == place / uid


def test_what_was_found_is_stored_where_the_series_is(orthanc, tmp_path, monkeypatch, capsys, tiny_adapter):
    study = generate_uid()
    place = {"StudyInstanceUID": study, "FrameOfReferenceUID": generate_uid()}
    put_series(orthanc, tmp_path / "series", **place)
    service, out = f"{orthanc}/dicom-web", tmp_path / "out.dcm"
    arguments = (f"{service}/studies/{study}", "-p", "brain", "-a", tiny_adapter, "--threshold", 0.1, "-o", out)
    arguments = (*arguments, "--report", "--measurements", "--device", "cpu", "--store", service)
    code, printed, errors = run_command(monkeypatch, capsys, segment.main, *arguments)
    assert code == 0 and "stored out.dcm" in printed, errors
    assert "stored out.sr.dcm" in printed
    measured = pydicom.dcmread(tmp_path / "out.sr.dcm")
    with fetched(f"{service}/studies/{study}/series/{measured.SeriesInstanceUID}") as place:
        assert [pydicom.dcmread(path).SOPInstanceUID for path in place.iterdir()] == [measured.SOPInstanceUID]
    written = pydicom.dcmread(out)
    address = f"{service}/studies/{study}/series/{written.SeriesInstanceUID}"
    with fetched(address) as place:
        (path,) = place.iterdir()
        stored = pydicom.dcmread(path)
        assert stored.SOPInstanceUID == written.SOPInstanceUID
        assert np.array_equal(stored.pixel_array, written.pixel_array)
    for sent in (stored, measured):
        urllib.request.urlopen(urllib.request.Request(f"{orthanc}/series/{id_of(orthanc, sent)}", method="DELETE"))
    code, printed, errors = run_command(monkeypatch, capsys, segment.main, *arguments, "--resume")
    assert code == 0 and "done before" in printed and "stored out.dcm" in printed, errors
    with fetched(address) as place:
        assert len(list(place.iterdir())) == 1


def id_of(orthanc: str, instance: pydicom.Dataset) -> str:
    query = json.dumps({"Level": "Series", "Query": {"SeriesInstanceUID": instance.SeriesInstanceUID}}).encode()
    (found,) = json.load(urllib.request.urlopen(urllib.request.Request(f"{orthanc}/tools/find", query)))
    return found


def test_only_dicom_can_be_stored_and_only_on_a_server(tmp_path, monkeypatch, capsys, series):
    _, folder = series
    arguments = (folder, "-p", "brain", "-o", tmp_path / "out.seg.nrrd", "--store")
    code, _, errors = run_command(monkeypatch, capsys, segment.main, *arguments, "http://127.0.0.1:1/dicom-web")
    assert code == 2 and "--store sends DICOM segmentations" in errors and not (tmp_path / "out.seg.nrrd").exists()
    code, _, errors = run_command(monkeypatch, capsys, segment.main, *arguments, "folder")
    assert code == 2 and "'folder' is no address of a server" in errors
    nowhere = f"http://127.0.0.1:{free_port()}/dicom-web"
    with pytest.raises(UserError, match=r"cannot be stored at .* \(ConnectionError\)"):
        store(next(folder.iterdir()), nowhere)


def test_a_series_that_the_server_lacks_and_a_server_that_is_not_there_are_refused(series):
    address, _ = series
    with (
        pytest.raises(UserError, match=r"9\.9\.9 (cannot be fetched|has no images)"),
        fetched(address.rpartition("/")[0] + "/9.9.9"),
    ):
        pass
    nowhere = f"http://127.0.0.1:{free_port()}/dicom-web/studies/1.2/series/1.3"
    with pytest.raises(UserError, match=r"cannot be fetched \(ConnectionError\)"), fetched(nowhere):
        pass


@pytest.mark.parametrize(
    "address", ["http://host/dicom-web/instances/1.2", "https://host/studies/1.2/series/../etc"]
)
def test_an_address_of_another_form_is_refused_without_a_connection(address):
    with pytest.raises(UserError, match="no address of images"), fetched(address):
        pass
