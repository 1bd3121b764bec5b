"""Measure what pages take of the memory: each opens the demo's head and segments two prompts; then they are closed.

python Testing/viewer/memory.py --pages 10
"""

import argparse
import platform
import time

import psutil
from browsing import Page, running_browser, running_viewer

from engine.data.head import HEAD, head_folder

PROMPTS = "brain; grey matter"
GOODBYE_SECONDS = 20  # after which the session of a closed page has ended
MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=10)
    count = parser.parse_args().pages
    print(f"{platform.processor() or platform.machine()}, {psutil.virtual_memory().total / 1e9:.0f} GB")
    scan = head_folder() / HEAD.format("t1")
    with running_viewer(scan, "--adapter", "head-t1", "--sessions", count) as viewer, running_browser() as browser:
        show(viewer, "no page")
        pages = [Page(browser, viewer.url) for _ in range(count)]
        show(viewer, f"{count} pages with a scan")
        for page in pages:
            page.set("plane", "axial")
            page.segment(PROMPTS)
        show(viewer, f"{count} pages with two segments and their surfaces")
        for page in pages:
            page.close()
        time.sleep(GOODBYE_SECONDS)
        show(viewer, "all closed")


def show(viewer, when: str) -> None:
    """Print what the processes have that no other process shares."""
    time.sleep(5)
    family = psutil.Process(viewer.pid).children(recursive=True)
    sessions = sorted(own_mb(process) for process in family if "viewer.session" in process.cmdline())
    engine = sum(own_mb(process) for process in family if "engine.serve" in process.cmdline())
    each = (
        f"{sessions[0]:.0f} to {sessions[-1]:.0f} MB each, {sum(sessions):.0f} MB together" if sessions else "none"
    )
    print(f"{when}: sessions {each}; engine {engine:.0f} MB", flush=True)


def own_mb(process: psutil.Process) -> float:
    return process.memory_full_info().uss / MB


if __name__ == "__main__":
    main()
