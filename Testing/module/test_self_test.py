"""The module's own self test on Slicer's MRML; what needs a window is left to the application."""

import sys
import types
import unittest

import pytest
from harness import open_scene


@pytest.fixture
def module(monkeypatch):
    """VLSMSegmenter.py, with the smallest stand-ins for what Slicer's wheel lacks."""
    scripted = types.ModuleType("slicer.ScriptedLoadableModule")
    for name in ("", "Logic", "Widget"):
        setattr(scripted, f"ScriptedLoadableModule{name}", type(f"ScriptedLoadableModule{name}", (), {}))
    scripted.ScriptedLoadableModuleTest = unittest.TestCase
    monkeypatch.setitem(sys.modules, scripted.__name__, scripted)
    monkeypatch.delitem(sys.modules, "VLSMSegmenter", raising=False)
    import VLSMSegmenter

    return VLSMSegmenter


def test_the_self_test_passes_and_skips_only_what_needs_a_window(module, tmp_path):
    with open_scene(tmp_path):
        outcome = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(module.VLSMSegmenterTest).run(outcome)
    assert outcome.wasSuccessful(), outcome.failures + outcome.errors
    assert outcome.testsRun == 4
    assert [reason for _, reason in outcome.skipped] == ["there is no window"]


def test_runtest_runs_every_test_of_the_class(module):
    case, ran = module.VLSMSegmenterTest("runTest"), []
    names = [name for name in dir(case) if name.startswith("test_")]
    case.setUp = lambda: None
    for name in names:
        setattr(case, name, lambda name=name: ran.append(name))
    case.runTest()
    assert sorted(ran) == names
