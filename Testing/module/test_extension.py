"""What Slicer's build and catalog of extensions need: listed files are there, the entry fits the schema."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "VLSMSegmenter"
TEXT, FLAG = {"type": "string"}, {"type": "boolean"}
# Facts of Slicer's slicer-extension-catalog-entry-schema-v1.0.1.json.
SCHEMA = {
    "type": "object",
    "required": ["$schema", "category", "scm_url"],
    "additionalProperties": False,
    "properties": {
        **dict.fromkeys(("$schema", "category", "scm_url", "scm_revision", "build_subdirectory"), TEXT),
        "scm_type": {"enum": ["git", "local"]},
        "build_dependencies": {"type": "array", "items": TEXT},
        "enabled": FLAG,
        "tier": {"enum": [1, 3, 5]},
    },
}


def listed(variable: str) -> set[str]:
    """Return the files that the module's CMakeLists.txt lists under a variable."""
    text = (MODULE / "CMakeLists.txt").read_text()
    (names,) = re.findall(rf"set\({variable}\s+([^)]*)\)", text)
    return {name.replace("${MODULE_NAME}", "VLSMSegmenter") for name in names.split()}


def test_cmake_lists_each_script_and_resource_of_the_module():
    found = {str(path.relative_to(MODULE)) for path in MODULE.rglob("*.py")}
    assert listed("MODULE_PYTHON_SCRIPTS") == found
    resources = {str(path.relative_to(MODULE)) for path in (MODULE / "Resources").rglob("*") if path.is_file()}
    assert listed("MODULE_PYTHON_RESOURCES") == resources


def test_cmake_installs_the_engine_and_the_models_beside_the_module():
    text = (ROOT / "CMakeLists.txt").read_text()
    for folder in re.findall(r"install\(\s*DIRECTORY (\S+)", text):
        assert (ROOT / folder).is_dir()
    assert "DIRECTORY engine" in text and "DIRECTORY Resources/Models" in text
    for field in ("HOMEPAGE", "CATEGORY", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"):
        assert f"set(EXTENSION_{field} " in text
    for url in re.findall(r"/main/(\S+?\.png)", text):
        assert (ROOT / url).is_file()


def test_the_catalog_entry_fits_slicers_schema():
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    entry = json.loads((ROOT / "VLSMSegmenter.json").read_text())
    jsonschema.validate(entry, SCHEMA)
    assert entry["category"] in (ROOT / "CMakeLists.txt").read_text()


def test_the_workflow_runs_the_self_test_in_slicer():
    workflow = yaml.safe_load((ROOT / ".github/workflows/slicer.yml").read_text())
    assert set(workflow[True]) == {"push", "pull_request", "workflow_dispatch"}  # YAML takes "on" for true
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"]["stability"] == ["release", "nightly"]
    steps = job["steps"]
    assert all(("uses" in step) != ("run" in step) for step in steps)
    for step in steps:
        if "run" in step:
            command = re.sub(r"\$\{\{.*?\}\}", "release", step["run"])
            assert subprocess.run(["bash", "-n"], input=command, text=True, check=False).returncode == 0
    test = steps[-1]["run"]
    assert "xvfb-run" in test and "runUnitTest(['$PWD/VLSMSegmenter'], 'VLSMSegmenter')" in test


def test_the_icon_is_a_square_with_clear_corners():
    icon = Image.open(MODULE / "Resources/Icons/VLSMSegmenter.png")
    assert icon.size == (128, 128) and icon.mode == "RGBA"
    assert icon.getpixel((0, 0))[3] == 0
    assert icon.getpixel((64, 64))[3] == 255
