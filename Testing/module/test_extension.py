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
# Facts of Slicer's slicer-extension-catalog-entry-schema-v1.0.1.json, which the catalog's entries name.
# In 1.0.2, a "dicom_support_rule" may be there too, and the tier is any of 1 to 5.
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
    scripts = {path.relative_to(MODULE) for path in MODULE.rglob("*.py")}
    found = {str(path) for path in scripts if path.parts[0] != "viewer"}  # the page in a browser is no part of it
    assert listed("MODULE_PYTHON_SCRIPTS") == found
    resources = {str(path.relative_to(MODULE)) for path in (MODULE / "Resources").rglob("*") if path.is_file()}
    assert listed("MODULE_PYTHON_RESOURCES") == resources


def test_the_extension_describes_itself():
    fields = dict(re.findall(r'set\(EXTENSION_(\w+) "(.*)"\)', (ROOT / "CMakeLists.txt").read_text()))
    wanted = {"HOMEPAGE", "CATEGORY", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"}
    assert set(fields) == wanted and all(fields.values())
    # Slicer hands these on without quotes: what follows a semicolon is lost, and a quote or a dollar breaks a file.
    assert not [field for field, value in fields.items() if set(value) & set(';"$\\')]
    assert fields["DESCRIPTION"].count(". ") < 2  # the catalog asks for one or two sentences,
    assert "CC BY-NC-SA 4.0" in fields["DESCRIPTION"]  # and for a licence that is stricter than Slicer's
    urls = [fields["ICONURL"], *fields["SCREENSHOTURLS"].split(" ")]
    for url in urls:
        assert (ROOT / url.split("/main/")[1]).is_file()
    repositories = {re.sub("//raw.githubusercontent.com(/[^/]+/[^/]+).*", r"//github.com\1", url) for url in urls}
    assert repositories == {fields["HOMEPAGE"]}


def test_the_catalog_entry_fits_slicers_schema():
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    entry = json.loads((ROOT / "VLSMSegmenter.json").read_text())
    jsonschema.validate(entry, SCHEMA)
    cmake = (ROOT / "CMakeLists.txt").read_text()
    assert f'set(EXTENSION_CATEGORY "{entry["category"]}")' in cmake
    assert f'set(EXTENSION_HOMEPAGE "{entry["scm_url"].removesuffix(".git")}")' in cmake
    # The name of the entry's file is the extension's, and its checks look for a licence by these names.
    assert "project(VLSMSegmenter)" in cmake and (ROOT / "LICENSE").is_file()
    assert entry["build_dependencies"] == [] and 'set(EXTENSION_DEPENDS "NA")' in cmake


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
