"""What the viewer's tests share: one viewer with the demo's head, and one Chromium."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from browsing import Page, find_chromium, running_browser, running_viewer, write_head


def what_is_missing() -> str:
    packages = ("trame_slicer", "playwright", "nilearn")
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        return f"{', '.join(missing)} are not installed; run: make test-viewer"
    return "" if find_chromium() else "there is no Chromium"


def pytest_collection_modifyitems(items):
    reason, here = what_is_missing(), Path(__file__).parent
    for item in items:
        if reason and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def head(tmp_path_factory):
    """The file of the demo's head: fewer slices, which lie obliquely."""
    path = tmp_path_factory.mktemp("scans") / "head.nii.gz"
    write_head(path)
    return path


@pytest.fixture(scope="session")
def viewer(head):
    with running_viewer(head, "--adapter", "head-t1", "--sessions", 9) as viewer:
        yield viewer


@pytest.fixture(scope="session")
def browser():
    with running_browser() as browser:
        yield browser


@pytest.fixture
def page(browser, viewer):
    """A fresh page that shows the head, where slices are looked at in one plane."""
    page = Page(browser, viewer.url)
    page.set("plane", "axial")
    yield page
    assert not page.errors
    page.close()
