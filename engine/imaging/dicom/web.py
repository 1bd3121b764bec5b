"""DICOM series from a DICOMweb server (PS3.18) by their address, and results to one."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.files import scratch_folder
from engine.imaging.dicom.quiet import quietly

if TYPE_CHECKING:
    import pydicom
    from dicomweb_client.api import DICOMwebClient

UID = r"[0-9.]{1,64}"
ADDRESS = re.compile(rf"(https?://.+)/studies/({UID})(?:/series/({UID}))?/?")
TOKEN = "DICOMWEB_TOKEN"  # the environment variable of a bearer token; names and passwords come from ~/.netrc
ATTEMPTS, WAIT_MILLISECONDS = 3, 200  # for a server that is busy
LEAST_FREE_BYTES = 1 << 30


def is_address(text: str) -> bool:
    """Return whether a text is meant as the address of a server."""
    return text.startswith(("http://", "https://"))


@contextmanager
def fetched(address: str) -> Iterator[Path]:
    """Yield a folder with the files of a series, or of a study with a folder for each series.

    It is removed afterwards.

    Args:
        address: SERVICE/studies/UID/series/UID, or SERVICE/studies/UID.

    Raises:
        UserError: the address is of another form, dicomweb-client is missing, the server cannot be reached or has
            no such series, or the disk is nearly full.
    """
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(
            f"{address} is no address of images; give SERVICE/studies/UID/series/UID or SERVICE/studies/UID"
        )
    service, study, series = match.groups()
    with scratch_folder() as root:
        folder = root / (series or study)
        folder.mkdir()
        count = 0
        with _talking(f"{address} cannot be fetched"):
            client = _client(service)
            for image in client.iter_series(study, series) if series else client.iter_study(study):
                count += 1
                _keep(image, folder if series else folder / _folder_name(image), count)
        if not count:
            raise UserError(f"{address} has no images")
        yield folder


def store(path: Path, service: str) -> None:
    """Send a DICOM file to a server; one that it has already stays as it is.

    Args:
        service: its address, before /studies.

    Raises:
        UserError: dicomweb-client is missing, or the server cannot be reached or does not take the file.
    """
    from pydicom import dcmread  # takes half a second, which those who fetch nothing need not wait for

    with _talking(f"{path} cannot be stored at {service}"):
        answer = _client(service.rstrip("/")).store_instances([dcmread(path)])
        failed = answer.get("FailedSOPSequence")
    if failed:
        reason = failed[0].get("FailureReason")
        raise UserError(f"{service} does not take {path} (failure reason {reason}, PS3.18 I.2.2); see its log")


def _client(service: str) -> "DICOMwebClient":
    try:
        from dicomweb_client.api import DICOMwebClient
    except ImportError as error:
        raise UserError("DICOMweb is spoken by dicomweb-client; run pip install -e '.[dicom]'") from error
    token = os.environ.get(TOKEN)
    client = DICOMwebClient(service, headers={"Authorization": f"Bearer {token}"} if token else None)
    client.set_http_retry_params(max_attempts=ATTEMPTS, wait_exponential_multiplier=WAIT_MILLISECONDS)
    return client


@contextmanager
def _talking(trouble: str) -> Iterator[None]:
    """Say what went wrong with a server by its kind alone: answers may quote names of patients."""
    try:
        with quietly():
            yield
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:  # requests raises kinds of OSError
        response = getattr(error, "response", None)
        reason = f"HTTP {response.status_code}" if response is not None else type(error).__name__
        raise UserError(f"{trouble} ({reason}); check the address, and {TOKEN}") from error


def _keep(image: "pydicom.Dataset", folder: Path, number: int) -> None:
    folder.mkdir(exist_ok=True)
    status = os.statvfs(folder)
    if status.f_bavail * status.f_frsize < LEAST_FREE_BYTES:
        raise UserError("the disk is nearly full while images are fetched; set TMPDIR to another")
    path = folder / f"{number:06d}.dcm"
    image.save_as(path, enforce_file_format=True)
    os.utime(path, (0, 0))  # the same series has the same fingerprint when it is fetched again


def _folder_name(image: "pydicom.Dataset") -> str:
    uid = str(image.get("SeriesInstanceUID", ""))
    return uid if re.fullmatch(UID, uid) and uid.strip(".") else "without-uid"
