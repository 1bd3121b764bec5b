"""Old file or new file: whatever ends a process that writes, and whatever becomes of its folder."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import PATIENCE_SECONDS, ROOT, ball, files, make_adapter, run_command, small_disk

import engine.models.bundle
from engine import segment
from engine.errors import UserError
from engine.files import TEMPORARY, _looked_through, _remove_left, replacing, write_text
from engine.imaging.volumes.volume import Volume
from engine.models.bases import open_base, user_models
from engine.models.bundle import load_model, read_card, save_bundle
from engine.models.library import list_adapters
from engine.segmentation import studies
from engine.segmentation.request import Outputs, Request
from engine.segmentation.segmenter import Segmenter
from engine.segmentation.studies import segment_study

SHAPE = (4, 20, 24)
KILLS = 15  # of each of four kinds of files


@pytest.fixture
def scan(tmp_path):
    voxels = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)
    voxels[ball(SHAPE, (2, 10, 12), 4)] += 200
    sitk.WriteImage(sitk.GetImageFromArray(voxels), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.fixture
def command(monkeypatch, capsys, tiny_adapter):
    return lambda *arguments: run_command(
        monkeypatch, capsys, segment.main, "--device", "cpu", "--adapter", tiny_adapter, *arguments
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_who_is_killed_while_writing_leaves_the_old_file_or_the_new_one(tmp_path):
    words = [sys.executable, str(ROOT / "Testing" / "killed_writers.py"), str(tmp_path), str(KILLS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [sum(kind["found"].values()) for kind in told.values()] == [KILLS] * 4
    assert sum(kind["cut off"] for kind in told.values()) > KILLS  # many were killed in the middle of a file
    assert {name: kind["files"] for name, kind in told.items()} == {
        "Segmentation": ["out.seg.nrrd"],
        "Report": ["out.json"],
        "Bundle": ["adapter/README.md", "adapter/adapter.safetensors", "adapter/card.json"],
        "Checkpoint": ["checkpoint.safetensors"],
    }  # what was cut off is gone after the next start


def test_a_file_under_way_is_private_and_an_old_ones_permissions_stay(tmp_path):
    path = tmp_path / "report.json"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.stat().st_mode & 0o777 == 0o600 or os.name == "nt"
    path.chmod(0o640)
    write_text(path, "newer")
    assert path.stat().st_mode & 0o777 == 0o640 or os.name == "nt"


def test_only_files_whose_process_is_gone_are_removed(tmp_path):
    left = tmp_path / f"{TEMPORARY}abc-report.json"
    left.write_text("cut o")
    with replacing(tmp_path / "report.json") as temporary:
        assert not left.exists()
        _looked_through.clear()  # as another process
        _remove_left(tmp_path)
        assert temporary.exists()
        temporary.write_text("whole")
    assert files(tmp_path) == {"report.json"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_parts_of_a_scan_that_a_killed_process_left_are_removed_at_the_next_start(tmp_path):
    code = (
        "import time; from engine.files import scratch_folder\n"
        "with scratch_folder() as folder: (folder / 'a.dcm').touch(); print(folder, flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    folders = []
    processes = []
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        folders.append(Path(process.stdout.readline().strip()))
    killed, living = folders
    processes[0].kill()
    processes[0].wait()
    try:
        assert (killed / "a.dcm").exists() and killed.stat().st_mode & 0o777 == 0o700
        for folder in folders:
            os.utime(folder, (0, 0))
        after = "from engine.files import scratch_folder\nwith scratch_folder(): pass"
        subprocess.run([sys.executable, "-c", after], cwd=ROOT, env=environment, check=True)
        assert not killed.exists() and (living / "a.dcm").exists()
    finally:
        processes[1].kill()
        processes[1].wait()


def test_a_bundle_whose_save_was_cut_off_before_the_last_step_is_the_new_one(tmp_path, tiny_base, monkeypatch):
    base = open_base(str(tiny_base))
    folder = make_adapter(tmp_path / "adapter", tiny_base)
    model = load_model(base, folder, read_card(folder))
    for parameter in model.trained.parameters():
        torch.nn.init.constant_(parameter, 0.25)

    def stop(path, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        write_card = engine.models.bundle.write_card

        def write_and_stop(*arguments):
            write_card(*arguments)
            patch.setattr("pathlib.Path.replace", stop)

        patch.setattr(engine.models.bundle, "write_card", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            save_bundle(folder, model.trained, read_card(folder))
    trained = load_model(base, folder, read_card(folder)).trained
    assert all((parameter == 0.25).all() for parameter in trained.parameters())
    save_bundle(folder, model.trained, read_card(folder))
    assert files(folder) == {"adapter.safetensors", "card.json", "README.md"}


def test_an_adapter_whose_replacement_was_cut_off_comes_back(tmp_path, tiny_base):
    make_adapter(user_models() / ".installing-abc" / "before" / "nodule", tiny_base)
    assert "nodule" in [entry.name for entry in list_adapters()]
    assert [path.name for path in user_models().iterdir()] == ["nodule"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs tmpfs")
@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_takes_nothing_more_is_one_line_and_keeps_the_old_files(command, scan, tmp_path, trouble):
    disk = tmp_path / "disk"
    with small_disk(disk, "200k"):
        arguments = [scan, "-p", "brain", "-o", disk / "out.seg.nrrd", "--report", "--preview"]
        code, _, errors = command(*arguments)
        assert code == 0, errors
        before = {name: (disk / name).read_bytes() for name in files(disk)}
        if trouble == "full":
            with pytest.raises(OSError, match="No space"):
                (disk / "filler").write_bytes(bytes(1 << 20))
        else:
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        code, _, errors = command(*arguments, "--overwrite", "--threshold", "0.1")
        line = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(line) == 1 and "Traceback" not in errors
        assert ("full" in line[0] or "No space" in line[0]) if trouble == "full" else "not writable" in line[0]
        assert {name: (disk / name).read_bytes() for name in files(disk) - {"filler"}} == before


def test_a_folder_that_vanishes_meanwhile_is_made_again_unless_a_file_is_in_its_place(tmp_path, tiny_adapter):
    folder = tmp_path / "out"
    folder.mkdir()
    segmenter = Segmenter(str(tiny_adapter), device="cpu")
    volume = Volume(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    study = segmenter, volume, Request(("brain",)), Outputs(folder / "out.seg.nrrd")

    def vanish(*step: object) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def become_a_file(*step: object) -> None:
        vanish()
        folder.write_text("precious")

    segment_study(*study, vanish)
    assert files(folder) == {"out.seg.nrrd"}
    with pytest.raises(UserError, match=r"the output folder .*out cannot be made: File exists"):
        segment_study(*study, become_a_file)
    assert folder.read_text() == "precious"


def test_a_report_vouches_only_for_the_files_that_it_was_written_with(command, scan, tmp_path):
    out = tmp_path / "out.seg.nrrd"
    assert command(scan, "-p", "brain", "-o", out, "--resume")[0] == 0
    assert "done before" in command(scan, "-p", "brain", "-o", out, "--resume")[1]
    out.write_bytes(out.read_bytes()[:-1])
    code, _, errors = command(scan, "-p", "brain", "-o", out, "--resume")
    assert code == 2 and "exists already" in errors


def test_a_run_that_was_killed_between_two_files_is_resumed_and_only_its_own_files_are_replaced(
    command, scan, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    out.mkdir()
    arguments = [scan, "-p", "brain", "-o", out / "scan.seg.nrrd", "--masks", "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr("engine.segmentation.studies.write_segments", killed_after(1, studies.write_segments))
        with pytest.raises(Killed):
            command(*arguments)
    assert files(out) == {"scan.seg.nrrd", "scan.json"}  # and no mask yet
    code, _, errors = command(*arguments[:2], "ball", *arguments[3:])
    assert code == 2 and "exists already" in errors  # what is asked for is something else
    code, _, errors = command(*arguments)
    assert code == 0 and files(out) == {"scan.seg.nrrd", "scan.json", "scan_brain.nii.gz"}, errors
    assert "done before" in command(*arguments)[1]
    (out / "scan.json").unlink()
    code, _, errors = command(*arguments)
    assert code == 2 and "exists already" in errors  # nothing says whose they are


class Killed(BaseException):
    """Ends a command as a kill does: nobody catches it."""


def killed_after(count, write):
    def write_some(*arguments):
        nonlocal count
        if not count:
            raise Killed
        count -= 1
        write(*arguments)

    return write_some


def test_inputs_are_never_changed(command, scan, tmp_path):
    before = hashlib.sha256(scan.read_bytes()).digest(), scan.stat().st_mtime_ns
    out = tmp_path / "out.seg.nrrd"
    assert command(scan, "-p", "brain", "-o", out, "--report", "--preview", "--masks", "--probability")[0] == 0
    assert (hashlib.sha256(scan.read_bytes()).digest(), scan.stat().st_mtime_ns) == before
