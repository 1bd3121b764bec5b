"""What a Python lacks is said, and how it is installed; only pip's own start is recorded instead of run."""

import os
import re
import subprocess
import sys
import types
import zipfile
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import tomllib
from harness import slicer, util
from VLSMSegmenterLib.shared import dependencies
from VLSMSegmenterLib.shared.dependencies import PACKAGES, Installer, Report, install, slicers_installer
from VLSMSegmenterLib.shared.engines import inspect_python

from engine.errors import UserError

ROOT = Path(__file__).parents[2]
ALL = {package.name: "99.0" for package in PACKAGES}


def of(*names: str) -> list:
    return [package for package in PACKAGES if package.name in names]


def test_the_packages_that_are_asked_for_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = {*project["dependencies"], *extras["serve"], *extras["train"]}
    assert {package.requirement for package in PACKAGES} == wanted


def test_what_a_python_has_is_read_from_it():
    report = inspect_python()
    assert report.missing == [] and report.versions["torch"].startswith("2.") and report.torch_error == ""
    assert "Everything that the engine needs is there." in report.describe(nvidia=False)
    assert "no GPU" in report.describe(nvidia=False)


def test_a_python_that_does_not_run_is_said_so(tmp_path):
    with pytest.raises(UserError, match="choose another"):
        inspect_python("/no/python")
    silent = tmp_path / "python"
    silent.write_text("#!/bin/sh\n")
    silent.chmod(0o755)
    with pytest.raises(UserError, match="choose another"):
        inspect_python(str(silent))


def test_a_bare_python_lacks_everything(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    report = inspect_python(str(tmp_path / "bare" / "bin" / "python"))
    assert report.missing == list(PACKAGES) and report.versions == {}
    words = report.describe(nvidia=True)
    assert "torch>=2.10 (about 2.5 GB)" in words and re.search(r"In all about 2\.7 GB to download", words)
    assert "torch>=2.10 (about 200 MB)" in report.describe(nvidia=False)


def test_what_is_too_old_is_missing():
    report = Report("3.12", ALL | {"transformers": "4.57.1", "torch": "2.10.0+cpu", "numpy": ""})
    assert [package.name for package in report.missing] == ["transformers"]
    assert "transformers>=5.0 instead of 4.57.1 (about 20 MB)" in report.describe(nvidia=False)


def test_a_torch_that_cannot_be_loaded_is_said():
    assert "cannot be loaded (OSError: x)" in Report("3.12", ALL, torch_error="OSError: x").describe(nvidia=False)


@pytest.fixture
def asked(monkeypatch):
    """Record what Slicer and the PyTorch extension are asked to install, with the constraints that pip reads."""
    calls = []

    def note(name, *arguments, **options):
        kept = Path.from_uri(os.environ["PIP_CONSTRAINT"]) if hasattr(Path, "from_uri") else None
        kept = kept or Path(os.environ["PIP_CONSTRAINT"].removeprefix("file://"))
        calls.append((name, arguments, options, kept.read_text()))

    class PyTorchUtilsLogic:
        def installTorch(self, **options):
            note("PyTorchUtils", **options)

    extension = types.ModuleType("PyTorchUtils")
    extension.PyTorchUtilsLogic = PyTorchUtilsLogic
    extension.__spec__ = ModuleSpec("PyTorchUtils", loader=None)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)
    monkeypatch.setattr(util, "pip_install", lambda *arguments: note("pip_install", *arguments))
    ensure = lambda *arguments, **options: note("pip_ensure", *arguments, **options)  # noqa: E731
    packaging = types.SimpleNamespace(pip_ensure=ensure)
    monkeypatch.setattr(slicer, "packaging", packaging, raising=False)
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    return calls


def test_torch_comes_by_its_extension_and_the_rest_by_slicers_own_way(asked):
    import numpy

    assert install(of("torch", "transformers", "fastapi"), slicers_installer()) == (
        "Installed torch, transformers, fastapi."
    )
    (torch, _, options, _), (rest, (requirements,), more, kept) = asked
    assert (torch, options["torchVersionRequirement"]) == ("PyTorchUtils", ">=2.10")
    assert rest == "pip_ensure" and list(map(str, requirements)) == ["transformers>=5.0", "fastapi>=0.115"]
    assert more["prompt_install"] is False  # the panel has asked
    assert f"numpy=={numpy.__version__}\n" in kept and "SimpleITK==" in kept
    assert all(call[3] == kept for call in asked)
    assert "PIP_CONSTRAINT" not in os.environ


def test_an_older_slicer_without_the_extension_installs_by_pip(asked, monkeypatch):
    monkeypatch.delattr(slicer, "packaging")
    monkeypatch.delitem(sys.modules, "PyTorchUtils")
    install(of("torch", "rich"), slicers_installer())
    ((name, (arguments,), _, _),) = asked
    assert name == "pip_install" and arguments[:3] == ["torch>=2.10", "rich>=13.7", "--constraint"]
    assert dependencies.needs_nvidia(slicers_installer()) == (sys.platform == "linux")


def test_slicers_own_packages_are_not_replaced(asked, monkeypatch):
    with pytest.raises(UserError, match="must not be replaced"):
        install(of("numpy", "rich"), slicers_installer())
    assert asked == []
    versions = iter([{"numpy": "2.1"}, {"numpy": "1.26"}])
    monkeypatch.setattr(dependencies, "protected_versions", lambda: next(versions))
    with pytest.raises(UserError, match="numpy of Slicer was replaced"):
        install(of("rich"), slicers_installer())


def test_what_goes_wrong_is_said_and_leaves_no_constraints(monkeypatch):
    def fail(*arguments):
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setenv("PIP_CONSTRAINT", "mine")
    with pytest.raises(UserError, match=r"installing failed .*exit status 1"):
        install(of("rich"), Installer(None, fail))
    assert os.environ["PIP_CONSTRAINT"] == "mine"


def test_pip_itself_keeps_to_the_constraints_also_in_a_folder_with_spaces(tmp_path, monkeypatch):
    (tmp_path / "a folder").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a folder"))
    about = "numpy-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "numpy-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")

    def pip(requirements, constraints=None):
        offline = ["--dry-run", "--no-index", "--find-links", str(tmp_path)]
        command = [sys.executable, "-m", "pip", "install", *offline, *requirements]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    old = dependencies.Package("numpy", "NumPy==1.0", 1)
    assert "Would install numpy-1.0" in pip([old.requirement])  # where nobody hinders it
    install([dependencies.Package("PIL", "pillow>=10", 1)], Installer(None, pip))
    with pytest.raises(UserError, match="installing failed"):
        install([old], Installer(None, pip))
