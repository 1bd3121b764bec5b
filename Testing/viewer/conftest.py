"""What the viewer's tests share: one viewer with the demo's head, and one Chromium."""

import pytest
from browsing import Page, find_chromium, running_browser, running_viewer, write_head

pytest.importorskip("trame_slicer", reason="trame-slicer is not installed; run: make test-viewer")
pytest.importorskip("playwright", reason="playwright is not installed; run: make test-viewer")
pytest.importorskip("nilearn", reason="the head is in nilearn's wheel")


def pytest_collection_modifyitems(items):
    if find_chromium() is None:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="there is no Chromium"))


@pytest.fixture(scope="session")
def head(tmp_path_factory):
    """The file of the demo's head: fewer slices, which lie obliquely."""
    path = tmp_path_factory.mktemp("scans") / "head.nii.gz"
    write_head(path)
    return path


@pytest.fixture(scope="session")
def viewer(head):
    with running_viewer(head, "--adapter", "head-t1", "--sessions", 3) as viewer:
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
