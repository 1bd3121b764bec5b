"""Several people at once, strangers, an engine that dies, and what is left behind."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from browsing import PATIENCE_SECONDS, ROOT, Page, running_viewer

from engine.files import SCRATCH


def sessions(viewer) -> set[int]:
    return _running(viewer, "viewer.session")


def engines(viewer) -> set[int]:
    return _running(viewer, "engine.serve")


def _running(viewer, module: str) -> set[int]:
    found = set()
    for process in psutil.Process(viewer.pid).children(recursive=True):
        try:
            if module in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        except psutil.NoSuchProcess:
            pass
    return found


def wait_until(holds) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


def folders(parent: Path) -> set[Path]:
    return set(parent.glob(f"{SCRATCH}*"))


def answer(url: str) -> int:
    try:
        with urllib.request.urlopen(url) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_two_pages_have_scenes_of_their_own_and_a_closed_one_is_gone(viewer, browser, page):
    wait_until(lambda: len(sessions(viewer)) == 1)  # those of earlier tests are gone
    mine = sessions(viewer)
    other = Page(browser, viewer.url)
    other.set("plane", "axial")
    (theirs,) = sessions(viewer) - mine
    other.start("white matter")
    page.segment("brain")
    other.wait("window.trame.state.get('busy') === false")
    assert list(page.voxels()) == ["brain"] and list(other.voxels()) == ["white matter"]
    other.close()
    wait_until(lambda: theirs not in sessions(viewer))
    assert mine <= sessions(viewer)


def test_a_page_that_is_loaded_anew_finds_its_session_as_it_was(page):
    page.segment("brain")
    made = page.voxels()
    page.tab.reload()
    page.wait("window.trame?.state?.get('segments')?.length")
    assert page.voxels() == made


def test_an_engine_that_dies_is_said_and_comes_back(viewer, page):
    page.set("plane", "coronal")  # of which nothing is encoded yet
    page.start("brain")
    page.wait_for_message("looking at slices")
    (engine,) = engines(viewer)
    os.kill(engine, signal.SIGKILL)
    page.wait("window.trame.state.get('busy') === false")
    assert page.state("wrong") and "start" in page.message and page.voxels() == {}
    wait_until(lambda: engines(viewer) - {engine})
    while page.state("wrong"):  # it listens a moment after it runs
        page.tab.wait_for_timeout(500)
        page.segment("brain")
    assert page.voxels()["brain"] > 10_000


def test_who_has_no_token_and_no_sessions_name_sees_nothing(viewer):
    address, _, token = viewer.url.partition("/?token=")
    before = sessions(viewer)
    assert answer(f"{address}/") == answer(f"{address}/?token={token[:-1]}") == 403
    for path in ("/s/0/", "/s/0/ws", f"/s/{token}/index.html", "/s/../session.py", "/viewer_static/viewer.js"):
        assert answer(address + path) == 404
    assert sessions(viewer) == before


def test_nothing_of_it_is_left_when_it_ends(head, browser, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with running_viewer(head, "--adapter", "head-t1") as viewer:
        page = Page(browser, viewer.url)
        assert len(folders(tmp_path)) == 1
        family = psutil.Process(viewer.pid).children(recursive=True)
        page.close()
    _, alive = psutil.wait_procs(family, 30)
    assert not alive and not folders(tmp_path)


def test_what_a_viewer_left_that_was_killed_with_its_sessions_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with running_viewer() as viewer:
        assert answer(viewer.url) == 200
        (left,) = folders(tmp_path)
        family = psutil.Process(viewer.pid).children(recursive=True)
        for process in family:
            process.suspend()  # a session that sees its viewer end removes the folder itself
        os.kill(viewer.pid, signal.SIGKILL)
        for process in family:
            process.kill()
        psutil.wait_procs(family, 30)
    assert (left / "key").exists() and left.stat().st_mode & 0o777 == 0o700
    os.utime(left, (0, 0))
    with running_viewer() as viewer:
        assert answer(viewer.url) == 200
        (own,) = folders(tmp_path)
        assert own != left


def test_a_scan_that_is_not_there_is_said_in_one_line(tmp_path):
    command = [sys.executable, "-m", "engine.view", str(tmp_path / "scan.nii.gz"), "--no-browser"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: {tmp_path / 'scan.nii.gz'} is not there\n"


def test_more_pages_than_may_be_are_refused_in_words(head, browser):
    with running_viewer("--sessions", 1) as viewer:
        page = Page(browser, viewer.url)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(viewer.url)
        assert refused.value.code == 503 and "close one" in refused.value.read().decode()
        page.close()
