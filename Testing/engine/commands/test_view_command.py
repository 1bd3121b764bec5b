"""The viewer's command where the viewer is not installed."""

from importlib.util import find_spec

import pytest
from conftest import run_command

from engine import view


def test_without_trame_slicer_it_says_what_to_do(monkeypatch, capsys):
    if find_spec("trame_slicer"):
        pytest.skip("trame-slicer is installed")
    code, printed, errors = run_command(monkeypatch, capsys, view.main)
    assert (code, printed) == (2, "") and errors.startswith("error: the viewer needs trame-slicer; run: make view")
