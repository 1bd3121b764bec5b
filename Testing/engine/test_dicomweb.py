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
import pytest
from conftest import files, run_command, write_series

from engine import segment
from engine.errors import UserError
from engine.imaging.dicomweb import fetched
from engine.imaging.reading import read_volume

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SECONDS_TO_START = 30


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
        for _ in range(SECONDS_TO_START * 5):
            try:
                urllib.request.urlopen(f"{address}/dicom-web/studies").read()
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def series(orthanc, tmp_path):
    """A series of noise on the server, and in a folder."""
    folder = tmp_path / "series"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 900, (4, 20, 24))
    uid = write_series(folder, pixels=noise, PatientID="1")
    for path in folder.iterdir():
        urllib.request.urlopen(urllib.request.Request(f"{orthanc}/instances", path.read_bytes())).read()
    return f"{orthanc}/dicom-web/studies/{uid}/series/{uid}", folder


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
    assert files(tmp_path / "out") == {f"{uid}.seg.nrrd", f"{uid}.json", "summary.csv"}
    code, printed, errors = run_command(monkeypatch, capsys, segment.main, *arguments)
    assert code == 0 and "done before" in printed, errors


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


@pytest.mark.parametrize("address", ["http://host/dicom-web/studies/1.2", "https://host/studies/1.2/series/../etc"])
def test_an_address_of_another_form_is_refused_without_a_connection(address):
    with pytest.raises(UserError, match="no address of a series"), fetched(address):
        pass
