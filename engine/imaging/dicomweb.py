"""DICOM series from a DICOMweb server (PS3.18), by their address."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import UserError

ADDRESS = re.compile(r"(https?://.+)/studies/([0-9.]{1,64})/series/([0-9.]{1,64})/?")
TOKEN = "DICOMWEB_TOKEN"  # the environment variable of a bearer token; names and passwords come from ~/.netrc
ATTEMPTS, WAIT_MILLISECONDS = 3, 200  # for a server that is busy
LEAST_FREE_BYTES = 1 << 30


def is_address(text: str) -> bool:
    """Return whether a text is meant as the address of a server."""
    return text.startswith(("http://", "https://"))


@contextmanager
def fetched(address: str) -> Iterator[Path]:
    """Yield a folder with the files of a series, which is removed afterwards.

    Args:
        address: SERVICE/studies/UID/series/UID.

    Raises:
        UserError: the address is of another form, dicomweb-client is missing, the server cannot be reached or has
            no such series, or the disk is nearly full.
    """
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f"{address} is no address of a series; give SERVICE/studies/UID/series/UID")
    with tempfile.TemporaryDirectory(prefix="dicom-") as root:
        folder = Path(root) / match[3]
        folder.mkdir()
        _fetch(*match.groups(), folder, address)
        yield folder


def _fetch(service: str, study: str, series: str, folder: Path, address: str) -> None:
    try:
        from dicomweb_client.api import DICOMwebClient
        from requests import RequestException
    except ImportError as error:
        raise UserError("series come from a server by dicomweb-client; run pip install -e '.[dicom]'") from error
    token = os.environ.get(TOKEN)
    headers = {"Authorization": f"Bearer {token}"} if token else None
    count = 0
    try:
        client = DICOMwebClient(service, headers=headers)
        client.set_http_retry_params(max_attempts=ATTEMPTS, wait_exponential_multiplier=WAIT_MILLISECONDS)
        for image in client.iter_series(study, series):
            status = os.statvfs(folder)
            if status.f_bavail * status.f_frsize < LEAST_FREE_BYTES:
                raise UserError(f"{folder.parent} is nearly full while {address} is fetched; set TMPDIR")
            count += 1
            path = folder / f"{count:06d}.dcm"
            image.save_as(path, enforce_file_format=True)
            os.utime(path, (0, 0))  # the same series has the same fingerprint when it is fetched again
    except (RequestException, OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{address} cannot be fetched ({_brief(error)}); check the address, and {TOKEN}") from error
    if not count:
        raise UserError(f"{address} has no images")


def _brief(error: Exception) -> str:
    response = getattr(error, "response", None)
    return f"HTTP {response.status_code}" if response is not None else type(error).__name__
