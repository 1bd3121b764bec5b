"""The extension is built and installed by CMake, and what was installed works by itself, without the repository.

Slicer's macros are stood in for (`slicer_build/SlicerConfig.cmake`, which says how to take the real ones).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "VLSMSegmenter"
TOOLS = ("cmake", "ctest", "cc", "c++", "make")
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import VLSMSegmenterLib
from engine.client.launching import ROOT
from VLSMSegmenterLib.shared.engines import LocalEngine
engine = LocalEngine(arguments=("--device", "cpu"))
client = engine.client()
found = [adapter["name"] for adapter in client.adapters()], client.bases()
engine.stop()
print(json.dumps([VLSMSegmenterLib.__file__, str(ROOT), *found]))
"""


def call(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Path:
    """Return a build tree of the extension, whose `installed` is what a package of it would hold."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    version = tuple(int(part) for part in re.findall(r"\d+", call("cmake", "--version"))[:2])
    if version < (3, 20):
        pytest.skip("CMake is older than 3.20")
    folder = tmp_path_factory.mktemp("build")
    settings = {
        "Slicer_DIR": Path(__file__).parent / "slicer_build",
        "PYTHON_EXECUTABLE": sys.executable,
        "CMAKE_INSTALL_PREFIX": folder / "installed",
    }
    options = [f"-D{name}={value}" for name, value in settings.items()]
    call("cmake", "-G", "Unix Makefiles", "-S", ROOT, "-B", folder, *options)
    call("cmake", "--build", folder)
    call("cmake", "--install", folder)
    return folder


@pytest.fixture(scope="module")
def installed(build) -> Path:
    return build / "installed/lib/Slicer-5.11/qt-scripted-modules"


def files_below(folder: Path, start: Path) -> set[str]:
    """Return the files in `start`, as seen from `folder`, without hidden ones and what Python made of them."""
    paths = (path for path in start.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    return {path.relative_to(folder).as_posix() for path in paths if not path.name.startswith(".")}


def test_the_package_holds_the_module_the_engine_and_the_models_and_nothing_else(installed):
    viewer = files_below(MODULE, MODULE / "viewer")  # the page in a browser is no part of the extension
    module = files_below(MODULE, MODULE) - {"CMakeLists.txt"} - viewer
    models = {path.parent for path in (ROOT / "Resources/Models").glob("*/card.json")}
    beside = files_below(ROOT, ROOT / "engine").union(*(files_below(ROOT, folder) for folder in models))
    beside.add("Resources/Models/LICENSE")
    assert files_below(installed, installed) == module | beside
    if "SLICER_CMAKE" not in os.environ:  # Slicer's macros compile the scripts
        assert not list(installed.rglob("__pycache__"))


def test_the_self_test_is_registered(build):
    names = re.findall(r"Test +#\d+: (\S+)", call("ctest", "--test-dir", build, "-N"))
    generic = ["py_nomainwindow_qSlicerVLSMSegmenterModuleGenericTest"] if "SLICER_CMAKE" in os.environ else []
    assert names == [*generic, "py_VLSMSegmenter"]


def test_the_installed_module_starts_the_installed_engine_with_the_shipped_models(installed, tmp_path):
    command = [sys.executable, "-I", "-c", SCRIPT, str(installed)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    library, root, adapters, bases = json.loads(done.stdout)
    assert Path(library).parents[1] == Path(root) == installed
    assert "head-t1" in adapters and "mini" in bases
