"""python -m engine.segment, as a user runs it: what it writes, and what it refuses with one line and code 2."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import PATIENCE_SECONDS, ROOT, ball, files, make_adapter, run_command

from engine import segment
from engine.segmentation import batch
from engine.segmentation.request import Outputs

SHAPE = (6, 20, 24)


@pytest.fixture
def scan(tmp_path):
    voxels = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)
    voxels[ball(SHAPE, (3, 10, 12), 4)] += 200
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1, 1, 2))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.fixture
def command(tiny_adapter, monkeypatch, capsys):
    """Run the command in this process; return exit code, output and errors."""

    def call(*arguments, adapter=tiny_adapter):
        chosen = ["--adapter", str(adapter)] if adapter else []
        words = ["--device", "cpu", *chosen, *arguments]  # the caller's own come last and win
        return run_command(monkeypatch, capsys, segment.main, *words)

    return call


def test_everything_that_was_asked_for_is_written(command, scan, tmp_path):
    out = tmp_path / "out.seg.nrrd"
    code, printed, errors = command(
        scan,
        "-p",
        "brain; left lung",
        "-p",
        "polyp",
        "-o",
        out,
        "--report",
        "--preview",
        "--masks",
        "--probability",
        "--threshold",
        0.2,
    )
    assert code == 0, errors
    assert "left lung" in printed and "wrote" in printed
    assert files(tmp_path) == {
        "scan.nii.gz",
        "out.seg.nrrd",
        "out.json",
        "out.png",
        "out_probability_brain.nii.gz",
        "out_probability_left-lung.nii.gz",
        "out_probability_polyp.nii.gz",
        "out_brain.nii.gz",
        "out_left-lung.nii.gz",
        "out_polyp.nii.gz",
    }
    image, source = sitk.ReadImage(out), sitk.ReadImage(scan)
    assert [image.GetMetaData(f"Segment{i}_Name") for i in range(3)] == ["brain", "left lung", "polyp"]
    assert (image.GetSize(), image.GetSpacing()) == (source.GetSize(), source.GetSpacing())
    assert (image.GetOrigin(), image.GetDirection()) == (source.GetOrigin(), source.GetDirection())
    report = json.loads((tmp_path / "out.json").read_text())
    brain = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "out_probability_brain.nii.gz"))
    assert report["results"][0]["voxels"] == (brain >= np.float16(0.2)).sum()
    mask = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "out_brain.nii.gz"))
    assert np.array_equal(mask > 0, brain >= np.float16(0.2))
    assert report["results"][0]["volume_ml"] == pytest.approx(report["results"][0]["voxels"] * 0.002)
    assert len(report["made_by"]["base"]["sha256"]) == len(report["made_by"]["adapter"]["sha256"]) == 64
    assert report["device"] == "cpu" and report["versions"]["torch"]


def test_an_absent_structure_is_not_found_and_its_segment_empty(command, scan, tmp_path, tiny_base):
    adapter = make_adapter(tmp_path / "strict", tiny_base, presence_threshold=1.0)
    code, printed, _ = command(scan, "-p", "polyp", "-o", tmp_path / "out.nii.gz", "--report", adapter=adapter)
    assert code == 0 and "not found" in printed
    assert not sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "out.nii.gz")).any()
    assert json.loads((tmp_path / "out.json").read_text())["results"][0]["found"] is False


def test_exclusive_prompts_fit_a_label_map(command, scan, tmp_path):
    code, _, _ = command(scan, "-p", "brain;polyp", "-o", tmp_path / "o.nii.gz", "--exclusive", "--threshold", 0.05)
    assert code == 0
    assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "o.nii.gz")))) <= {0, 1, 2}


def test_the_clean_up_does_what_it_says(command, scan, tmp_path):
    base = ["-p", "brain", "--threshold", 0.18]
    assert command(scan, *base, "-o", tmp_path / "raw.nii.gz")[0] == 0
    raw = sitk.ReadImage(tmp_path / "raw.nii.gz")
    count = sitk.ConnectedComponentImageFilter()
    count.Execute(raw)
    assert command(scan, *base, "-o", tmp_path / "largest.nii.gz", "--keep-largest")[0] == 0
    largest = sitk.ReadImage(tmp_path / "largest.nii.gz")
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(raw))
    assert np.array_equal(sitk.GetArrayFromImage(largest) > 0, sitk.GetArrayFromImage(parts) == 1)
    assert command(scan, *base, "-o", tmp_path / "none.nii.gz", "--min-volume-ml", 1000)[0] == 0
    assert not sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "none.nii.gz")).any()


def test_a_folder_of_studies_goes_through_and_one_failure_stops_no_other(command, scan, tmp_path):
    studies, out = tmp_path / "studies", tmp_path / "out"
    studies.mkdir(), out.mkdir()
    for name in ("a", "c"):
        (studies / f"{name}.nii.gz").write_bytes(scan.read_bytes())
    (studies / "b.nii.gz").write_bytes(b"broken")
    code, printed, errors = command(studies, "-p", "brain", "-o", out)
    assert code == 2 and "b.nii.gz cannot be read" in errors and "1 of 3 studies failed" in errors
    assert files(out) == {"a.seg.nrrd", "a.json", "c.seg.nrrd", "c.json", "summary.csv", "segments.csv"}
    stamps = {p.name: p.stat().st_mtime_ns for p in out.iterdir() if p.suffix != ".csv"}

    (studies / "b.nii.gz").write_bytes(scan.read_bytes())
    code, printed, _ = command(studies, "-p", "brain", "-o", out, "--resume")
    assert code == 0 and printed.count("done before") == 2
    assert {n: p for n, p in stamps.items() if (out / n).stat().st_mtime_ns != p} == {}
    assert "b.seg.nrrd" in files(out)

    code, _, errors = command(studies, "-p", "polyp", "-o", out, "--resume")
    assert code == 2 and "exists already; add --overwrite" in errors


@pytest.mark.parametrize("folder", ["new/results/", "new/results"])
def test_one_scan_into_a_new_folder_keeps_its_name(command, scan, tmp_path, folder):
    code, printed, errors = command(scan, "-p", "brain", "-o", f"{tmp_path}/{folder}")
    assert code == 0 and f"wrote {tmp_path / 'new' / 'results' / 'scan.seg.nrrd'}" in printed, errors
    assert files(tmp_path / "new" / "results") == {"scan.seg.nrrd", "scan.json", "summary.csv", "segments.csv"}


def test_new_folders_of_all_outputs_are_made(command, scan, tmp_path):
    place = {
        name: tmp_path / "new" / name for name in ("segments", "masks", "probabilities", "pictures", "reports")
    }
    code, _, errors = command(
        *(scan, "-p", "brain", "-o", place["segments"] / "o.seg.nrrd", "--masks", place["masks"] / "m.nii.gz"),
        *("--probability", place["probabilities"] / "p.nii.gz", "--preview", place["pictures"] / "p.png"),
        *("--report", place["reports"] / "r.json"),
    )
    assert code == 0, errors
    assert {path.relative_to(tmp_path / "new").as_posix() for path in (tmp_path / "new").rglob("*.*")} == {
        *("segments/o.seg.nrrd", "masks/m_brain.nii.gz", "probabilities/p_brain.nii.gz", "pictures/p.png"),
        "reports/r.json",
    }


def test_several_scans_do_not_go_into_one_file(command, scan, tmp_path):
    code, _, errors = command(scan, scan, "-p", "brain", "-o", tmp_path / "o.seg.nrrd")
    assert code == 2 and "2 inputs need an output folder; end" in errors and files(tmp_path) == {"scan.nii.gz"}


def test_the_outputs_of_two_studies_may_not_be_one_file(command, scan, tmp_path):
    studies, out = tmp_path / "studies", tmp_path / "out"
    studies.mkdir(), out.mkdir()
    for name in ("a.nii.gz", "a_brain.nii.gz"):
        (studies / name).write_bytes(scan.read_bytes())
    code, _, errors = command(studies, "-p", "brain", "-o", out, "--format", ".nii.gz", "--masks")
    assert code == 2 and "two outputs would be" in errors and files(out) == set()


def test_results_are_not_written_among_the_scans(command, scan, tmp_path):
    code, _, errors = command(tmp_path, "-p", "brain", "-o", tmp_path)
    assert code == 2 and "lies among the scans" in errors


def test_resume_notices_another_scan_another_wish_and_a_failed_overwrite(command, scan, tmp_path):
    studies, out = tmp_path / "studies", tmp_path / "out"
    studies.mkdir(), out.mkdir()
    (studies / "a.nii.gz").write_bytes(scan.read_bytes())
    arguments = [studies, "-p", "brain", "-o", out, "--resume"]
    assert command(*arguments)[0] == 0
    assert "done before" in command(*arguments)[1]
    code, _, errors = command(*arguments, "--preview")
    assert code == 2 and "exists already" in errors
    (studies / "a.nii.gz").write_bytes(scan.read_bytes())  # the same bytes at another time
    code, _, errors = command(*arguments)
    assert code == 2 and "exists already" in errors
    assert command(*arguments, "--overwrite")[0] == 0
    assert "done before" in command(*arguments)[1]


def test_an_unexpected_failure_of_one_study_is_its_end_and_no_other_one(scan, tmp_path):
    end = batch.end_of(batch.Study("a", scan, Outputs(tmp_path / "a.nrrd")), lambda: 1 / 0)
    assert end.state == "failed" and f"{scan} gave an unexpected ZeroDivisionError" in end.reason


def test_a_link_to_a_scan_gives_its_own_name(command, scan, tmp_path):
    (tmp_path / "out").mkdir(), (tmp_path / "in").mkdir()
    (tmp_path / "in" / "sub-01.nii.gz").symlink_to(scan)
    assert command(tmp_path / "in" / "sub-01.nii.gz", "-p", "brain", "-o", tmp_path / "out")[0] == 0
    assert files(tmp_path / "out") == {"sub-01.seg.nrrd", "sub-01.json", "summary.csv", "segments.csv"}


@pytest.mark.parametrize("prompt", ["[/b] [red]x", "$a_{$"])
def test_odd_prompts_are_only_text(command, scan, tmp_path, prompt):
    code, printed, errors = command(scan, "-p", prompt, "-o", tmp_path / "o.seg.nrrd", "--preview", "--report")
    assert code == 0, errors
    assert prompt in printed
    assert json.loads((tmp_path / "o.json").read_text())["results"][0]["prompt"] == prompt


def test_exclusive_masks_stay_apart_after_the_clean_up(command, scan, tmp_path):
    arguments = ["-p", "brain;polyp", "--exclusive", "--fill-holes", "--threshold", 0.05, "--masks"]
    code, _, errors = command(scan, *arguments, "-o", tmp_path / "o.nii.gz")
    assert code == 0, errors
    masks = [sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / f"o_{name}.nii.gz")) for name in ("brain", "polyp")]
    assert masks[0].any() and not (masks[0].astype(bool) & masks[1].astype(bool)).any()


def test_every_frame_of_a_4d_scan_gets_its_own_file(command, scan, tmp_path):
    frames = sitk.JoinSeries([sitk.ReadImage(scan)] * 2)
    sitk.WriteImage(frames, tmp_path / "cine.nii.gz")
    code, _, errors = command(tmp_path / "cine.nii.gz", "-p", "brain", "-o", tmp_path / "o.seg.nrrd")
    assert code == 2 and "--frame all" in errors
    code, _, _ = command(tmp_path / "cine.nii.gz", "-p", "brain", "-o", tmp_path / "o.seg.nrrd", "--frame", "all")
    assert code == 0 and {"o_frame0000.seg.nrrd", "o_frame0001.seg.nrrd"} <= files(tmp_path)
    (tmp_path / "o_frame0000.seg.nrrd").unlink()
    code, _, errors = command(
        tmp_path / "cine.nii.gz", "-p", "brain", "-o", tmp_path / "o.seg.nrrd", "--frame", "all"
    )
    assert code == 2 and "o_frame0001.seg.nrrd exists already" in errors
    assert "o_frame0000.seg.nrrd" not in files(tmp_path)  # nothing is written unless all can be


BAD = {
    "no prompt": ([], "an empty prompt"),
    "an empty prompt": (["-p", " "], "an empty prompt"),
    "a prompt given twice": (["-p", "brain;brain"], "given twice"),
    "a prompt past 77 tokens": (["-p", "left lung " * 60], "at most 77; shorten it"),
    "an unknown plane": (["-p", "brain", "--plane", "up"], "unknown plane 'up'; there are auto"),
    "an unknown window": (["-p", "brain", "--window", "dark"], "unknown window 'dark'"),
    "a threshold beyond 1": (["-p", "brain", "--threshold", "2"], "between 0 and 1"),
    "a negative volume": (["-p", "brain", "--min-volume-ml", "-1"], "give a number from 0 on"),
    "a volume that is no number": (["-p", "brain", "--min-volume-ml", "nan"], "give a number from 0 on"),
    "an unknown device": (["-p", "brain", "--device", "tpu"], "unknown device 'tpu'"),
    "an unknown precision": (["-p", "brain", "--precision", "fp8"], "unknown precision 'fp8'"),
    "a batch size of nothing": (["-p", "brain", "--batch-size", "0"], "the batch size is '0'"),
    "a frame that is not there": (["-p", "brain", "--frame", "3"], "has no frame 3"),
    "overlap in a label map": (["-p", "brain;polyp", "-o", "LABELS"], "add --exclusive"),
    "an unknown suffix": (["-p", "brain", "-o", "WORD"], "nor has it a suffix"),
    "a picture of a volume": (["-p", "brain", "-o", "PICTURE"], "is a picture and"),
    "a preview that is no PNG": (["-p", "brain", "--preview", "PHOTO"], "end it with .png"),
    "two outputs in one file": (["-p", "brain;Brain", "--masks"], "two outputs would be"),
    "the scan itself as output": (["-p", "brain", "-o", "SCAN", "--overwrite"], "is a scan to be segmented"),
    "a name that is too long": (["-p", "brain", "-o", "LONG"], "too long a name"),
    "a prompt of no text": (["-p", "\udcff"], "no text; type it again"),
    "masks as pictures of a volume": (["-p", "brain", "--masks", "PICTURE"], "is a picture and"),
    "a file in place of a folder": (["-p", "brain", "-o", "BELOW"], "scan.nii.gz is no folder; nothing can be"),
    "an unknown base": (["-p", "brain", "--base", "maxi"], "no base 'maxi'; there are"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_get_one_line_and_code_2_and_write_nothing(command, scan, tmp_path, case):
    arguments, message = BAD[case]
    places = {
        "LABELS": tmp_path / "o.nii.gz",
        "WORD": tmp_path / "o.docx",
        "PICTURE": tmp_path / "o.png",
        "BELOW": scan / "new" / "o.seg.nrrd",
        "PHOTO": tmp_path / "o.jpg",
        "SCAN": scan,
        "LONG": tmp_path / f"{'o' * 230}.seg.nrrd",
    }
    content = scan.read_bytes()
    arguments = [places.get(a, a) for a in arguments]
    output = [] if "-o" in arguments else ["-o", tmp_path / "new" / "o.seg.nrrd"]
    before = {*tmp_path.iterdir()}
    code, _, errors = command(scan, *output, *arguments)
    assert code == 2
    line = [part for part in errors.splitlines() if part.startswith("error: ")]
    assert len(line) == 1 and message in line[0], errors
    assert "Traceback" not in errors
    assert {*tmp_path.iterdir()} == before and scan.read_bytes() == content


@pytest.mark.parametrize("flag", ["--adapter", "--base", "--plane", "--window", "-o"])
def test_an_empty_word_is_not_a_default(command, scan, tmp_path, flag):
    code, _, errors = command(scan, "-p", "brain", "-o", tmp_path / "o.seg.nrrd", flag, "")
    assert code == 2 and f"argument {'-o/--output' if flag == '-o' else ''}" in errors and "empty" in errors
    assert files(tmp_path) == {"scan.nii.gz"}


@pytest.mark.parametrize("name", ["missing.nii.gz", "empty folder", "text.nii.gz", "constant.nii.gz", "nan.nii.gz"])
def test_bad_inputs_get_one_line_and_code_2_and_write_nothing(command, tmp_path, name):
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "text.nii.gz").write_text("no image")
    sitk.WriteImage(sitk.GetImageFromArray(np.full(SHAPE, 7, np.int16)), tmp_path / "constant.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(np.full(SHAPE, np.nan, np.float32)), tmp_path / "nan.nii.gz")
    before = {*tmp_path.iterdir()}
    code, _, errors = command(tmp_path / name, "-p", "brain", "-o", tmp_path / "new" / "o.seg.nrrd")
    assert code == 2 and errors.splitlines()[-1].startswith("error: ") and "Traceback" not in errors
    assert {*tmp_path.iterdir()} == before


def test_voxels_that_are_no_numbers_and_words_that_nobody_learned_are_told(command, scan, tmp_path):
    image = sitk.ReadImage(scan)
    image[3, 4, 5] = float("nan")
    sitk.WriteImage(image, scan)
    out = tmp_path / "o.seg.nrrd"
    code, _, errors = command(scan, "-p", "brain; 脑; дом", "-o", out, "--report")
    warnings = json.loads((tmp_path / "o.json").read_text())["warnings"]
    assert code == 0 and len(warnings) == 3
    assert "1 voxels" in warnings[0] and "does not know '脑'" in warnings[1] and "'дом'" in warnings[2]
    assert all(f"warning: {warning}" in errors for warning in warnings)


def test_a_prompt_that_is_too_long_is_refused_in_one_line(scan, tiny_adapter, tmp_path):
    """By a process, as the tokenizer warns but once in its own words."""
    words = [sys.executable, "-m", "engine.segment", scan, "-p", "left lung " * 50, "-a", tiny_adapter]
    done = subprocess.run([*words, "-o", tmp_path / "o.nrrd"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "tokens and the base reads at most 77" in done.stderr


def test_an_unknown_adapter_lists_those_there_are(command, scan, tmp_path):
    code, _, errors = command(scan, "-p", "brain", "-o", tmp_path / "o.seg.nrrd", adapter="nose")
    assert code == 2 and "there is no adapter 'nose'; there are" in errors


def test_an_adapter_of_another_base_is_refused(command, scan, tmp_path, other_base):
    code, _, errors = command(scan, "-p", "brain", "-o", tmp_path / "o.seg.nrrd", "--base", other_base)
    assert code == 2 and "was trained on the base" in errors


@pytest.mark.parametrize("existing", ["out.seg.nrrd", "out.json", "out.png", "out_probability_brain.nii.gz"])
def test_no_file_is_replaced_unless_asked(command, scan, tmp_path, existing):
    (tmp_path / existing).write_text("precious")
    arguments = [scan, "-p", "brain", "-o", tmp_path / "out.seg.nrrd", "--report", "--preview", "--probability"]
    code, _, errors = command(*arguments)
    assert code == 2 and f"{existing} exists already" in errors
    assert (tmp_path / existing).read_text() == "precious"
    assert files(tmp_path) == {"scan.nii.gz", existing}
    assert command(*arguments, "--overwrite")[0] == 0
    assert (tmp_path / existing).read_bytes() != b"precious"


def start(arguments, tmp_path, before="") -> subprocess.Popen:
    """Start the command in a process of its own; `before` is run by the shell first."""
    words = shlex.join([sys.executable, "-m", "engine.segment", *map(str, arguments), "--device", "cpu"])
    environment = {**os.environ, "MPLCONFIGDIR": str(tmp_path / "matplotlib"), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        ["bash", "-c", f"{before} exec {words}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores Ctrl-C
    )


def test_a_full_disk_is_one_line_and_leaves_nothing(scan, tmp_path, tiny_adapter):
    before = files(tmp_path)
    arguments = [scan, "-p", "brain", "--adapter", tiny_adapter, "-o", tmp_path / "o.nii"]
    process = start(arguments, tmp_path, before="trap '' XFSZ; ulimit -f 0;")  # no file may grow beyond nothing
    _, errors = process.communicate()
    assert process.returncode == 2, errors
    assert "error: " in errors and "Traceback" not in errors
    assert files(tmp_path) == before


def test_ctrl_c_while_the_libraries_load_is_no_traceback(scan, tmp_path):
    process = start([scan, "-p", "brain", "-o", tmp_path / "o.seg.nrrd"], tmp_path, before="PYTHONVERBOSE=1")
    for line in process.stderr:
        if line.startswith("import 'torch") or line.startswith("import 'numpy"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert "stopped" in errors and "Traceback" not in errors


def test_ctrl_c_stops_in_a_quarter_of_the_time_that_starting_took_and_leaves_no_file(tmp_path, tiny_adapter):
    """That is a second where nothing else runs, and both take longer on a busy machine."""
    noise = np.random.default_rng(0).integers(0, 255, (4000, 64, 64)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(noise), tmp_path / "large.nrrd")
    before = files(tmp_path)
    arguments = [tmp_path / "large.nrrd", "-p", "brain", "-o", tmp_path / "o.seg.nrrd", "--adapter", tiny_adapter]
    began = time.monotonic()
    process = start([*arguments, "--batch-size", "1"], tmp_path)
    for line in process.stderr:  # wait until slices are being encoded
        if line.startswith("encoding"):
            break
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait(timeout=PATIENCE_SECONDS)
    assert time.monotonic() - asked < (asked - began) / 4
    assert process.returncode == 130
    assert "Traceback" not in process.stderr.read()
    assert files(tmp_path) == before


def table(folder):
    with (folder / "segments.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_statistics_of_all_segments_are_in_a_table_also_of_studies_that_were_done_before(
    command, scan, tmp_path
):
    studies, out = tmp_path / "studies", tmp_path / "out"
    studies.mkdir()
    (studies / "a.nii.gz").write_bytes(scan.read_bytes())
    (studies / "b.nii.gz").write_bytes(b"broken")
    words = [studies, "-p", "brain;polyp", "--threshold", 0.1, "-o", out]
    assert command(*words)[0] == 2
    first = table(out)
    assert [(row["study"], row["report"], row["prompt"]) for row in first] == [
        ("a", "a.json", "brain"),
        ("a", "a.json", "polyp"),
    ]
    (studies / "b.nii.gz").write_bytes(scan.read_bytes())
    code, printed, _ = command(*words, "--resume")
    assert code == 0 and printed.count("done before") == 1
    rows = table(out)
    assert rows[:2] == first and [row["study"] for row in rows[2:]] == ["b", "b"]
    assert [{**row, "study": "a", "report": "a.json"} for row in rows[2:]] == first

    voxels = sitk.GetArrayFromImage(sitk.ReadImage(scan))
    for row, result in zip(rows, json.loads((out / "a.json").read_text())["results"], strict=False):
        assert {key: row[key] for key in ("voxels", "mean", "sd")} == {
            key: str(result[key]) for key in ("voxels", "mean", "sd")
        }
        assert [float(row[f"centroid_{axis}_mm"]) for axis in "lps"] == result["centroid_mm"]
        assert [float(row[f"highest_{axis}_mm"]) for axis in "lps"] == result["highest_mm"]
    assert command(scan, *words[1:5], "-o", tmp_path / "m.nii.gz", "--masks", "--exclusive", "--report")[0] == 0
    mask = sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "m_brain.nii.gz")) > 0
    (brain, _) = json.loads((tmp_path / "m.json").read_text())["results"]
    assert brain["voxels"] == mask.sum() and brain["mean"] == pytest.approx(voxels[mask].mean(), rel=1e-5)
    assert brain["slices"] == mask.any(axis=(1, 2)).sum()


def test_the_table_has_each_frame_and_no_place_of_what_is_empty(command, scan, tmp_path):
    sitk.WriteImage(sitk.JoinSeries([sitk.ReadImage(scan)] * 2), tmp_path / "cine.nii.gz")
    words = ["-p", "brain", "--frame", "all", "--min-volume-ml", 1000, "-o", tmp_path / "out"]
    assert command(tmp_path / "cine.nii.gz", *words)[0] == 0
    rows = table(tmp_path / "out")
    assert [(row["study"], row["report"]) for row in rows] == [
        ("cine", "cine_frame0000.json"),
        ("cine", "cine_frame0001.json"),
    ]
    assert {(row["voxels"], row["volume_ml"], row["mean"], row["centroid_l_mm"]) for row in rows} == {
        ("0", "0.0", "", "")
    }


def test_a_table_of_no_study_has_its_columns(command, tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"broken")
    assert command(tmp_path / "a.nii.gz", "-p", "brain", "-o", tmp_path / "out")[0] == 2
    (line,) = (tmp_path / "out" / "segments.csv").read_text().splitlines()
    assert line.startswith("study,report,prompt,found,") and "centroid_l_mm,centroid_p_mm,centroid_s_mm" in line
