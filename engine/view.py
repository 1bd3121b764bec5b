"""Work in a browser: the Slicer module's views and prompts in a page, without Slicer itself.

The page is the package `viewer` of this repository, which stands on the engine as the Slicer module does. This
command only starts it.
"""

import runpy
import sys
from importlib.util import find_spec

from engine.cli import run
from engine.errors import UserError
from engine.launching import ROOT


def main() -> None:
    if find_spec("trame_slicer") is None:
        raise UserError("the viewer needs trame-slicer; run: make view, or pip install --editable '.[viewer]'")
    if not (ROOT / "viewer").is_dir():
        raise UserError(f"the viewer is not beside {ROOT / 'engine'}; use the repository, or install it --editable")
    sys.path.insert(0, str(ROOT))
    runpy.run_module("viewer", run_name="__main__")


if __name__ == "__main__":
    run(main)
