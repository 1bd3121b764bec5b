"""Draw the viewer's pictures in the documentation, from real runs on the demo's head.

python Testing/viewer/screenshots.py Resources/Screenshots
"""

import argparse
import io
from pathlib import Path

from browsing import Page, running_browser, running_viewer
from PIL import Image

from engine.data.head import HEAD, head_folder

PROMPTS = "grey matter; white matter; polyp"
SETTLE_MILLISECONDS = 4000  # until surfaces are made and all views are drawn at full quality
COLORS = 256  # make a picture half as large, and are not missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    scan = head_folder() / HEAD.format("t1")
    with running_viewer(scan, "--adapter", "head-t1") as viewer, running_browser() as browser:
        page = Page(browser, viewer.url)
        page.start(PROMPTS)
        page.wait_for_message("about")  # it knows how long it will take
        draw(page, folder / "viewer-running.png")
        page.wait("window.trame.state.get('busy') === false")
        draw(page, folder / "viewer.png")
        page.tab.set_viewport_size({"width": 1366, "height": 768})
        page.tab.click("#theme")
        page.tab.click("table.segments tr >> nth=1")
        page.set("probability", True)
        page.set("opacity", 0)
        draw(page, folder / "viewer-light.png")
        page.close()


def draw(page: Page, path: Path) -> None:
    page.tab.wait_for_timeout(SETTLE_MILLISECONDS)
    shown = Image.open(io.BytesIO(page.tab.screenshot())).convert("RGB")
    shown.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
