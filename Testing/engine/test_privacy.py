"""Nothing leaves the machine, and nobody's name is printed, logged, or written where nobody asked for it."""

import gzip
import json
import os
import subprocess
import sys
import zlib

import pytest
from conftest import PATIENCE_SECONDS, ROOT
from fuzzing.kinds import _bytes_of, _slice
from pydicom import DataElement
from pydicom.config import IGNORE

from engine.models.bundle import CARD, README, WEIGHTS

SECRETS = ("Quagga", "Zebulon", "748213", "19370401", "Saint Nowhere", "ACC-5512")


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_base):
    """The main paths, done in a process without a network; yields what it told, its streams and its folder."""
    place = tmp_path_factory.mktemp("private")
    scan, data, output = place / "scan", _data(place / "set"), place / "out"
    scan.mkdir(), output.mkdir()
    for number in range(3):
        (scan / f"{number}.dcm").write_bytes(_telling_slice(number))
    before = _contents(scan) | _contents(data)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "VLSM_"))}
    environment |= {"PYTHONPATH": str(ROOT), "VLSM_MODELS": str(place / "models"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, ROOT / "Testing" / "main_paths.py", scan, data, tiny_base, output]
    process = subprocess.run(
        [*map(str, words)], env=environment, cwd=place, capture_output=True, timeout=PATIENCE_SECONDS
    )
    assert process.returncode == 0, process.stderr.decode()[-3000:]
    assert _contents(scan) | _contents(data) == before  # inputs are never changed
    streams = process.stdout + process.stderr
    return json.loads(process.stdout.splitlines()[-1]), streams, output


def _telling_slice(number: int) -> bytes:
    data = _slice(number)
    data.PatientName, data.PatientID, data.PatientBirthDate = "Quagga^Zebulon", "748213", "19370401"
    data.InstitutionName, data.AccessionNumber, data.StudyID = "Saint Nowhere", "ACC-5512", "748213"
    wrong = DataElement("FrameOfReferenceUID", "UI", "Quagga", validation_mode=IGNORE)  # pydicom would quote it
    data[wrong.tag] = wrong
    return _bytes_of(data)


def _data(folder):
    """Pictures whose files are named after patients."""
    from PIL import Image, ImageDraw

    for part in ("images", "masks", "anns"):
        (folder / part).mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test")):
        name = f"Quagga-{number}.png"
        mask = Image.new("L", (50, 40))
        ImageDraw.Draw(mask).ellipse((10 + number, 8, 30 + number, 28), fill=255)
        mask.save(folder / "masks" / name)
        mask.point(lambda value: 60 + value // 2).save(folder / "images" / name)
        row = {
            "img_name": name,
            "mask_name": name,
            "prompts": {"p0": "", "p1": "disc"},
            "patient": f"Zebulon {number}",
        }
        (folder / "anns" / f"{split}.json").write_text(json.dumps([row]))
    return folder


def _contents(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _readable(content: bytes) -> bytes:
    """Return a file's bytes with what is packed in it."""
    if content.startswith(b"\x1f\x8b"):
        return content + gzip.decompress(content)
    if content.startswith(b"NRRD"):
        head, _, packed = content.partition(b"\n\n")
        return head + zlib.decompress(packed, 31)
    return content


def test_the_main_paths_need_no_network(done):
    told, streams, _ = done
    assert told["codes"] == {"train": 0, "segment": 0, "evaluate": 0, "adapters": 0, "served": 1}, streams[-3000:]
    assert told["forbidden"] == []


def test_no_patient_is_named_in_what_is_printed_or_written(done, tmp_path_factory):
    _, streams, output = done
    written = {path: content for path, content in _contents(output).items() if "evaluation" not in path}
    assert len(written) > 10  # the segmentation and its companions, the bundle and its run
    for place, content in {"the terminal": streams, **written}.items():
        text = place.encode() + _readable(content)
        assert not [secret for secret in SECRETS if secret.encode() in text], place


def test_no_path_of_the_scan_or_of_the_training_data_is_in_a_report_or_a_bundle(done):
    _, _, output = done
    names = (f"adapter/{CARD}", f"adapter/{README}", f"adapter/{WEIGHTS}", "found.json", "found.seg.nrrd")
    others = [str(p.relative_to(output)) for p in (output / "adapter" / "run").iterdir() if p.is_file()]
    for name in (*names, *others):
        assert str(output.parent).encode() not in _readable((output / name).read_bytes()), name
