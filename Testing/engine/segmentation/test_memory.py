"""Memory is bounded by the volume and one byte a voxel for each prompt, whatever was segmented before."""

import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT

from engine.segmentation.batch import Order, Settings, Study, work_on
from engine.segmentation.request import Outputs, Request

SHAPE = (40, 512, 512)
PROMPTS = [f"brain {number}" for number in range(10)]
FEW = 2
# The peak so far, in bytes, after few prompts and after all of them, in one process.
PEAKS = f"""
import resource, sys
from engine import segment
scan, base, folder, *prompts = sys.argv[1:]
for count in ({FEW}, len(prompts)):
    words = [word for prompt in prompts[:count] for word in ("--prompt", prompt)]
    sys.argv = ["segment", scan, "--base", base, "--device", "cpu", "-o", f"{{folder}}/{{count}}.seg.nrrd", *words]
    segment.main()
    print("peak", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def write_scan(path, shape, seed=0):
    coarse = np.random.default_rng(seed).normal(0, 100, (shape[0], 8, 8)).astype(np.int16)
    voxels = coarse.repeat(shape[1] // 8, axis=1).repeat(shape[2] // 8, axis=2)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), path)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_a_further_prompt_takes_a_mask_and_no_probabilities(tmp_path, tiny_base):
    scan = write_scan(tmp_path / "scan.nrrd", SHAPE)
    words = [sys.executable, "-c", PEAKS, scan, tiny_base, tmp_path, *PROMPTS]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    few, many = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak"))
    further = len(PROMPTS) - FEW
    assert (many - few) / np.prod(SHAPE) / further < 1.8  # a mask takes 1 byte a voxel, probabilities 2 more


def test_a_study_is_let_go_of_before_the_next(tmp_path, tiny_base):
    segmenter = Settings(base=str(tiny_base), device="cpu").new_segmenter()
    for number in range(2):
        scan = write_scan(tmp_path / f"{number}.nrrd", (4, 32, 32), number)
        study = Study(str(number), scan, Outputs(tmp_path / f"{number}.seg.nrrd"))
        work_on(segmenter, study, Order(Request(("brain",))))
        assert len(segmenter.cache) == 0 and segmenter.volume is None
