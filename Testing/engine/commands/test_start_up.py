"""Commands answer at once: what takes seconds to load is loaded when it is needed, and not before."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from engine import choices
from engine.nets.methods import METHODS
from engine.training.losses import LOSSES
from engine.training.plan import LEARNING_RATES

HEAVY = {
    "accelerate",
    "fastapi",
    "matplotlib",
    "monai",
    "PIL",
    "pydicom",
    "ray",
    "scipy",
    "SimpleITK",
    "tokenizers",
    "torch",
    "transformers",
}
COMMANDS = sorted(
    path.stem for path in (ROOT / "engine").glob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")
)
# runs a command as `python -m` does, and says at its end which of these packages it loaded
WATCHED = """
import atexit, runpy, sys
atexit.register(lambda: print("loaded:", *sorted({HEAVY} & set(sys.modules)), file=sys.stderr))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def start(*words: object) -> tuple[int, str, str, set[str]]:
    """Run a command in a Python of its own; return exit code, output, errors and the heavy packages it loaded."""
    code = WATCHED.replace("{HEAVY}", repr(HEAVY))
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    errors, loaded = ended.stderr.rsplit("loaded:", 1)
    return ended.returncode, ended.stdout, errors, set(loaded.split())


def test_all_commands_are_looked_at():
    assert {"adapters", "evaluate", "segment", "serve", "train"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy(command):
    code, printed, errors, loaded = start(f"engine.{command}", "--help")
    assert code == 0 and f"usage: python -m engine.{command}" in printed, errors
    assert not loaded


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("engine.segment", "there-is-none.nii.gz", "-p", "brain", "-o", "a.seg.nrrd"), "does not exist"),
        (("engine.segment", "README.md", "-p", " ", "-o", "a.seg.nrrd"), "an empty prompt"),
        (("engine.segment", "README.md", "-p", "brain", "-o", "a.exe"), "nor has it a suffix"),
        (("engine.segment", "README.md", "-p", "brain", "-o", "a.png", "--threshold", "2"), "threshold is 2"),
        (("engine.train", "--data", "x", "-o", "y", "--method", "magic"), "invalid choice: 'magic'"),
        (("engine.train", "--data", "x"), "say where the adapter goes"),
        (("engine.evaluate", "--data", "x", "--compare", "a", "b/a", "-o", "y"), "have the same name"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_said_before_anything_heavy_is_loaded(words, wrong):
    code, _, errors, loaded = start(*words)
    assert code == 2 and wrong in errors and not loaded


def test_adapters_are_listed_without_pytorch():
    code, printed, errors, loaded = start("engine.adapters", "list")
    assert code == 0 and "head-t1: dense VL for mini, shipped" in printed, errors
    assert not loaded


def test_importing_the_package_loads_nothing_and_its_names_are_there():
    code = (
        "import sys, engine; assert not {'numpy', 'torch'} & set(sys.modules); "
        "from engine import Segmenter, read_volume, write_segments, Volume, UserError; "
        "assert set(engine.__all__) <= {*dir(engine), *engine._HOMES}; print(Segmenter.__module__)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "engine.segmentation.segmenter"


def test_the_names_of_options_are_those_of_what_they_name():
    assert tuple(METHODS) == choices.METHODS and set(choices.METHODS) == set(LEARNING_RATES)
    assert tuple(LOSSES) == choices.LOSSES


@pytest.mark.parametrize(
    ("own", "expected"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_threads_give_way_to_other_programs_unless_the_user_chose(own, expected):
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | own
    code = "import sys, engine, os; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [expected, "False"], done.stderr
