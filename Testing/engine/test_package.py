"""The package as users get it: built from what the repository holds, installed elsewhere, and at work there.

The environment is new but for what the engine needs, which is taken from the one of the tests."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import ROOT, SHIPPED_ADAPTERS

from engine.data.head import HEAD, head_folder, published_mask
from engine.evaluation.metrics import dice
from engine.imaging.reading import read_volume

SOURCES = ("engine", "Resources", "Testing", "VLSMSegmenter")
SETUPTOOLS = 77  # the first with licences as they are written here
LARGEST_BYTES = 60 << 20
FOUND = """
import json, engine, engine.view
from engine.models.places import local_base_names
print(json.dumps([engine.__file__, str(engine.view.MODULE), local_base_names()]))
"""


def call(*words: object, cwd: Path, environment: dict | None = None) -> str:
    done = subprocess.run([*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the source distribution from a copy of the repository, and the wheel from that, offline."""
    try:
        enough = int(version("setuptools").split(".")[0]) >= SETUPTOOLS
    except ModuleNotFoundError:
        enough = False
    if not enough:
        pytest.skip(f"setuptools {SETUPTOOLS} or later is not installed")
    place = tmp_path_factory.mktemp("package")
    copy = place / "repository"
    for folder in SOURCES:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    (copy / "engine" / "__pycache__").mkdir()
    (copy / "engine" / "__pycache__" / "left.pyc").write_bytes(b"")
    build = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    name = call(sys.executable, "-c", build, place, cwd=copy).split()[-1]
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index")
    call(*pip, "--wheel-dir", place, place / name, cwd=place)
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Return a new environment with the wheel; of the engine it knows nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    call(*pip, "--disable-pip-version-check", wheel, cwd=folder)
    packages = Path(
        call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    )
    needed = {
        sysconfig.get_path(kind) for kind in ("purelib", "platlib")
    }  # an editable engine in them stays unseen
    (packages / "needed.pth").write_text("\n".join(needed) + "\n")
    return python.parent


@pytest.fixture
def run(installed, tmp_path):
    """Run a program of the environment in a folder of its own; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (tmp_path / "work").mkdir()
    return lambda program, *words: call(installed / program, *words, cwd=tmp_path / "work", environment=environment)


def test_the_wheel_holds_what_is_needed_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "engine").rglob("*.py")}
    models = {
        f"engine/{path.relative_to(ROOT).as_posix()}"
        for card in ROOT.glob("Resources/Models/*/card.json")
        for path in card.parent.iterdir()
        if path.is_file()
    }
    page = {
        f"engine/{path.relative_to(ROOT).as_posix()}"
        for folder in ("viewer", "VLSMSegmenterLib")
        for path in (ROOT / "VLSMSegmenter" / folder).rglob("*.*")
        if path.suffix in (".py", ".js", ".css") and path.parent.name != "panel"  # that is for Slicer alone
    }
    about = {name for name in names if ".dist-info/" in name}
    assert names == code | models | page | about
    assert {name.partition("/licenses/")[2] for name in about} == {"", "LICENSE", "Resources/Models/LICENSE"}
    assert not [name for name in names if "__pycache__" in name or "test" in name.lower()]
    assert wheel.stat().st_size < LARGEST_BYTES


def test_the_installed_engine_has_its_models_and_the_page(run, installed):
    engine, page, bases = json.loads(run("python", "-c", FOUND))
    assert installed.parent in Path(engine).parents and ROOT not in Path(engine).parents
    assert Path(page).parent == Path(engine).parent and (Path(page) / "viewer" / "static").is_dir()
    assert "mini" in bases
    whole = [line.split(": its files are whole")[0] for line in run("vlsm-adapters", "verify").splitlines()]
    assert sorted(whole) == SHIPPED_ADAPTERS


def test_commands_say_how_they_were_called(run):
    assert run("vlsm-segment", "--help").startswith("usage: vlsm-segment ")
    assert run("python", "-m", "engine.segment", "--help").startswith("usage: python -m engine.segment ")


def test_every_command_has_a_script(installed):
    doors = [path for path in (ROOT / "engine").glob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")]
    assert {path.stem for path in installed.glob("vlsm-*")} == {f"vlsm-{path.stem}" for path in doors}


def test_the_installed_engine_segments_a_head(run, tmp_path):
    scan = head_folder() / HEAD.format("t1")
    printed = run(
        "vlsm-segment", scan, "-p", "brain", "-a", "head-t1", "-o", "results/", "--masks", "--device", "cpu"
    )
    assert "brain" in printed
    results = tmp_path / "work" / "results"
    stem = scan.name.removesuffix(".nii.gz")
    assert (results / f"{stem}.seg.nrrd").is_file()
    mask, truth = read_volume(results / f"{stem}_brain.nii.gz").voxels > 0, published_mask("brain")
    assert dice(int((mask & truth).sum()), int(mask.sum()), int(truth.sum())) > 0.9
