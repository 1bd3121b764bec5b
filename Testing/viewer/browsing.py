"""The viewer as its user has it: started by its command, seen in a real Chromium."""

import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 600  # a machine that does much else at once
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
OBLIQUE = (0.8, -0.48, 0.36, 0.6, 0.64, -0.48, 0.0, 0.6, 0.8)  # rows of LPS; the columns are at right angles


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


class Viewer:
    """A viewer that runs.

    Attributes:
        url: of the page, with its token.
        pid: of the command.
        said: all that it has printed.
    """

    def __init__(self, process: subprocess.Popen):
        self.pid, self.said = process.pid, []
        for line in process.stdout:
            self.said.append(line)
            if found := re.search(r"http://\S+", line):
                self.url = found.group()
                break
        else:
            raise AssertionError(f"the viewer did not start: {''.join(self.said)}")
        threading.Thread(target=lambda: self.said.extend(process.stdout), daemon=True).start()


@contextmanager
def running_viewer(*arguments: object) -> Iterator[Viewer]:
    command = [sys.executable, "-m", "engine.view", "--no-browser", "--device", "cpu", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield Viewer(process)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@contextmanager
def running_browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=list(SWITCHES))
        yield browser
        browser.close()


class Page:
    """A page of the viewer in a tab of its own, with what a test wants to do in it."""

    def __init__(self, browser, url: str, width: int = 1280, height: int = 800):
        self.context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(1000 * PATIENCE_SECONDS / 5)
        self.errors: list[str] = []
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.goto(url)
        self.tab.wait_for_selector("#prompts")
        self.wait("window.trame.state.get('adapter') && !window.trame.state.get('opening')")

    def wait(self, condition: str) -> None:
        """Wait until an expression of the page holds."""
        self.tab.wait_for_function(f"() => {condition}", timeout=1000 * PATIENCE_SECONDS)

    def state(self, name: str):
        return self.tab.evaluate(f"window.trame.state.get('{name}')")

    def set(self, name: str, value: object) -> None:
        self.tab.evaluate("([name, value]) => window.trame.state.set(name, value)", [name, value])

    @property
    def message(self) -> str:
        return self.tab.inner_text("#message")

    def wait_for_message(self, text: str) -> str:
        """Wait until the page says something, and return all of what it says."""
        self.tab.wait_for_function("text => document.getElementById('message').innerText.includes(text)", arg=text)
        return self.message

    def bring(self, *paths: Path) -> None:
        """Choose files, as the button does, and wait until they are open or refused."""
        with self.tab.expect_file_chooser() as chooser:
            self.tab.click("#open")
        self.set("message", "")
        self.set("wrong", False)
        chooser.value.set_files([str(path) for path in paths])
        self.wait(
            "!trame.state.get('opening') && (trame.state.get('wrong') || message.innerText.endsWith('is open'))"
        )

    def segment(self, prompts: str) -> None:
        """Type prompts, press Enter, and wait for what was found."""
        self.start(prompts)
        self.wait("window.trame.state.get('busy') === false && window.trame.state.get('message')")

    def start(self, prompts: str) -> None:
        """Type prompts and press Enter, and wait until something is said of them."""
        self.set("message", "")
        self.tab.fill("#prompts", prompts)
        self.tab.wait_for_selector("#segment:not([disabled])")
        self.tab.press("#prompts", "Enter")
        self.wait("window.trame.state.get('message')")

    def voxels(self) -> dict[str, int]:
        """Return how many voxels the segments of the table have, by their names."""
        return {row["name"]: row["voxels"] for row in self.state("segments")}

    def saved(self, kind: str, folder: Path) -> Path:
        """Save in a format, and return where the browser put it."""
        self.tab.click("#save")
        with self.tab.expect_download() as download:
            self.tab.click(f"[data-kind='{kind}']")
        path = folder / download.value.suggested_filename
        download.value.save_as(path)
        return path

    def picture(self, view: str) -> bytes:
        return self.tab.locator(f"[data-view='{view}']").screenshot()

    def close(self) -> None:
        self.tab.close(run_before_unload=False)
        self.context.close()


def write_head(path: Path, step: int = 4) -> sitk.Image:
    """Write each `step`-th axial slice of the demo's head, turned obliquely and put elsewhere; return it."""
    from engine.data.head import HEAD, head_folder

    image = sitk.ReadImage(str(head_folder() / HEAD.format("t1")))[:, :, ::step]
    image.SetDirection(OBLIQUE)
    image.SetOrigin((-31.25, 12.5, 140.75))
    sitk.WriteImage(image, str(path))
    return sitk.ReadImage(str(path))


def lies_like(image: sitk.Image, other: sitk.Image) -> bool:
    """Whether two images have the same grid, to 1e-5 mm."""
    return image.GetSize() == other.GetSize() and all(
        np.allclose(getattr(image, name)(), getattr(other, name)(), atol=1e-5)
        for name in ("GetOrigin", "GetSpacing", "GetDirection")
    )
