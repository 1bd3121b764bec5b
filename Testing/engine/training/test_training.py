"""From labelled images to a base and to an adapter, by the commands that a user runs."""

import contextlib
import csv
import itertools
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import yaml
from conftest import PATIENCE_SECONDS, ROOT, SIDE, ball, files, run_command, wait_until
from safetensors.torch import load_file

from engine import train
from engine.data import open_data_set
from engine.errors import UserError
from engine.evaluation.metrics import dice
from engine.imaging.reading import read_volume
from engine.models.bases import open_base
from engine.models.bundle import read_card
from engine.nets.clipseg import CLIPSeg
from engine.nets.methods import METHODS
from engine.segmentation.segmenter import Segmenter
from engine.speed.inputs import draw_pictures
from engine.training import activations
from engine.training.activations import ActivationCache, choose_place
from engine.training.losses import LOSSES, ReferenceLoss, SegmentationLoss
from engine.training.plan import Plan
from engine.training.samples import Sampler
from engine.training.trainer import Trainer


@pytest.fixture
def train_command(monkeypatch, capsys, tiny_base):
    return lambda *arguments: run_command(
        monkeypatch, capsys, train.main, "--base", tiny_base, "--device", "cpu", *arguments
    )


def test_the_loss_of_a_perfect_answer_is_almost_nothing_and_of_its_opposite_large():
    masks = (torch.arange(64).view(1, 8, 8) % 8 < 3).float()
    right, wrong = (SegmentationLoss()((2 * masks - 1) * 20 * sign, masks).item() for sign in (1, -1))
    assert right < 0.01 and wrong > 10
    reference = ReferenceLoss()((2 * masks - 1) * 20, masks).item()
    foreground = masks.mean().item()
    assert reference == pytest.approx(0.3133 * foreground + 0.6931 * (1 - foreground), abs=0.01)
    empty = torch.zeros(1, 8, 8)
    assert SegmentationLoss()(empty - 20, empty) < 0.01  # nothing found where nothing is


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_is_trained_bundled_and_segments(
    train_command, pictures, tmp_path, tiny_base, clip_bases, method
):
    base = clip_bases / "residual" if method == "cris" else tiny_base
    weights = [path.read_bytes() for path in sorted(base.glob("*.safetensors"))]
    out = tmp_path / "disc"
    options = ["--base", base, "--method", method, "--epochs", 2, "--samples-per-epoch", 2]
    code, printed, errors = train_command("--data", pictures, "-o", out, *options, "--licence", "CC0")
    assert code == 0, errors
    assert sum(line.startswith("epoch ") for line in printed.splitlines()) == 2
    assert [path.read_bytes() for path in sorted(base.glob("*.safetensors"))] == weights
    assert files(out) == {"adapter.safetensors", "card.json", "README.md"}
    card = read_card(out)
    assert (card.method, card.prompts, card.licence) == (method, ["disc"], "CC0")
    assert card.base_sha256 == open_base(str(base)).sha256
    assert card.metrics["discs, test split, plain class prompt"]["disc"]["cases"] == 1

    segmenter = Segmenter(str(out), base=str(base), device="cpu")
    segmenter.set_volume(read_volume(pictures / "images" / "0.png"))
    assert segmenter.segment("disc").probability.shape == (1, 40, 50)


def test_an_adapter_on_the_shipped_base_learns_what_the_base_does_not_know(train_command, pictures, tmp_path):
    """The base is so sure of no disc that for some 15 epochs, of one step each, nothing is found; meanwhile only
    the loss tells that the adapter learns, and patience must not end."""
    options = ["--base", "mini", "--epochs", 30, "--absent-rate", 0, "--patience-epochs", 5]
    code, printed, errors = train_command("--data", pictures, "-o", tmp_path / "disc", *options)
    assert code == 0, errors
    assert printed.count("Dice 0.000 (best)") > 6
    scores = []
    for adapter in (None, str(tmp_path / "disc")):
        segmenter = Segmenter(adapter, base="mini", device="cpu")
        segmenter.set_volume(read_volume(pictures / "images" / "0.png"))
        found = segmenter.segment("disc").probability[0] >= 0.5
        truth = ball((1, 40, 50), (0, 12, 15), 8)[0]
        scores.append(dice(int((found & truth).sum()), int(found.sum()), int(truth.sum())))
    assert scores[1] > 0.8 and scores[1] > scores[0] + 0.1, scores


def test_volumes_train_in_all_planes_and_are_validated_whole(train_command, volumes, tmp_path):
    out = tmp_path / "ball"
    options = ["--planes", "all", "--epochs", 2, "--samples-per-epoch", 8, "--augment", "--mirror"]
    code, printed, errors = train_command("--data", volumes, "-o", out, *options, "--prompts-per-image", 2)
    assert code == 0, errors
    assert "Dice nan" not in printed
    assert read_card(out).prompts == ["ball", "cube"]


def test_the_same_seed_gives_the_same_adapter(train_command, pictures, tmp_path):
    for name in "ab":
        assert train_command("--data", pictures, "-o", tmp_path / name, "--epochs", 2, "--augment")[0] == 0
    first, second = (load_file(tmp_path / name / "adapter.safetensors") for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)


def adapter_of(folder):
    return load_file(folder / "adapter.safetensors")


def interrupting_after(steps: int):
    """A stand-in for Ctrl-C: says yes once `steps` steps are done."""

    @contextlib.contextmanager
    def interruptible():
        counter = itertools.count(1)
        yield lambda: next(counter) == steps

    return interruptible


@pytest.mark.parametrize(  # in the middle of an epoch, and at its end
    ("steps", "schedule"), [(3, "cosine"), (4, "plateau")]
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    train_command, pictures, tmp_path, monkeypatch, steps, schedule
):
    options = ["--data", pictures, "--epochs", 4, "--batch-size", 1, "--augment", "--mirror"]
    options += ["--schedule", schedule]
    assert train_command(*options, "-o", tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("engine.commands.train.interruptible", interrupting_after(steps))
        patch.setattr("engine.cli._stop", lambda: sys.exit(130))
        code, printed, _ = train_command(*options, "-o", tmp_path / "parts")
    assert code == 130 and "go on with the same command and --resume" in printed
    code, printed, errors = train_command(*options, "-o", tmp_path / "parts", "--resume")
    assert code == 0, errors
    whole, parts = adapter_of(tmp_path / "whole"), adapter_of(tmp_path / "parts")
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    logs = [(tmp_path / name / "run" / "log.csv").read_text().splitlines() for name in ("whole", "parts")]
    without_seconds = [[line.rsplit(",", 2)[0] for line in log] for log in logs]
    assert without_seconds[0] == without_seconds[1] and len(logs[0]) == 5


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_gpu_that_was_asked_for_trains(pictures, tmp_path, tiny_base):
    words = ["--base", tiny_base, "--data", pictures, "--epochs", "1", "--device", "cuda:1", "-o", tmp_path / "out"]
    code = "import sys, torch; from engine import train; sys.argv[0] = 'train'; train.main()"
    code += "; print('used', *(torch.cuda.max_memory_allocated(n) > 0 for n in (0, 1)))"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)
    assert "used False True" in done.stdout, done.stderr


@pytest.mark.parametrize("method", ["shallow", "decoder"])
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_kept_activations_spare_the_encoder_and_change_no_loss(
    train_command, pictures, tmp_path, monkeypatch, place, method
):
    encoded = []
    activations = CLIPSeg.activations
    monkeypatch.setattr(
        CLIPSeg, "activations", lambda self, pixels: encoded.append(len(pixels)) or activations(self, pixels)
    )
    options = ["--data", pictures, "--method", method, "--epochs", 3, "--precision", "fp32", "--batch-size", 2]
    losses, counts = [], []
    for keep in ("none", place):
        encoded.clear()
        code, _, errors = train_command(*options, "-o", tmp_path / keep, "--keep-activations", keep)
        assert code == 0, errors
        counts.append(sum(encoded))
        rows = [line.split(",") for line in (tmp_path / keep / "run" / "log.csv").read_text().splitlines()[1:]]
        losses.append([[float(loss) for loss in row[1:3]] for row in rows])
    assert counts == [
        3 * 3 + 2,
        3 + 2,
    ]  # two for training, one for validation, each epoch or once; one for the calibration, one for the test
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-3)


def test_activations_are_not_kept_where_they_change(train_command, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(ActivationCache, "fetch", None)  # it would fail
    for number, options in enumerate((["--method", "dense"], ["--method", "shallow", "--augment"])):
        code, _, errors = train_command("--data", pictures, "--epochs", 1, "-o", tmp_path / str(number), *options)
        assert code == 0, errors


@pytest.mark.parametrize("free", [3, 1, 0])
def test_activations_are_kept_where_there_is_room(tmp_path, monkeypatch, free):
    monkeypatch.setattr(activations, "SHARE", 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 if free == 3 else 0))
    monkeypatch.setattr(activations, "disk_usage", lambda folder: SimpleNamespace(free=100 if free else 0))
    assert choose_place("auto", 99, tmp_path) == {3: "memory", 1: "disk", 0: "none"}[free]
    assert choose_place("disk", 99, tmp_path) == "disk"


def test_a_run_resumes_only_with_its_own_plan_and_base(train_command, pictures, tmp_path, other_base):
    options = ["--data", pictures, "-o", tmp_path / "out"]
    assert train_command(*options, "--epochs", 1)[0] == 0
    code, _, errors = train_command(*options, "--epochs", 1, "--resume", "--learning-rate", 0.5)
    assert code == 2 and "another learning_rate" in errors
    code, _, errors = train_command(*options, "--epochs", 1, "--resume", "--base", other_base)
    assert code == 2 and "another base" in errors
    assert train_command(*options, "--epochs", 2, "--resume")[0] == 0
    (tmp_path / "out" / "run" / "checkpoint.safetensors").write_bytes(b"half")
    code, _, errors = train_command(*options, "--epochs", 1, "--resume")
    assert code == 2 and "is not a checkpoint of this training" in errors
    code, _, errors = train_command("--data", pictures, "-o", tmp_path / "new", "--resume")
    assert code == 2 and "no checkpoint" in errors


def test_a_cosine_ends_near_nothing_and_is_not_lengthened(train_command, pictures, tmp_path):
    options = ["--data", pictures, "-o", tmp_path / "out", "--schedule", "cosine", "--learning-rate", 0.01]
    assert train_command(*options, "--epochs", 2)[0] == 0
    log = csv.DictReader((tmp_path / "out" / "run" / "log.csv").read_text().splitlines())
    rates = [float(row["learning_rate"]) for row in log]
    assert rates == pytest.approx([0.01 * (0.01 + 0.99 / 2), 0.0001])
    code, _, errors = train_command(*options, "--epochs", 3, "--resume")
    assert code == 2 and "another epochs" in errors


def test_the_run_folder_says_how_the_adapter_was_made(train_command, pictures, tmp_path):
    (tmp_path / "plan.yaml").write_text("method: shallow\nepochs: 3\nbatch_size: 2\n")
    out = tmp_path / "out"
    code, _, errors = train_command(
        "--data", pictures, "-o", out, "--config", tmp_path / "plan.yaml", "--epochs", 2
    )
    assert code == 0, errors
    assert files(out / "run") == {
        "plan.yaml",
        "environment.json",
        "log.csv",
        "curves.png",
        "checkpoint.safetensors",
        "scores.csv",
    }
    plan = yaml.safe_load((out / "run" / "plan.yaml").read_text())
    assert (plan["method"], plan["epochs"], plan["batch_size"], plan["learning_rate"]) == ("shallow", 2, 2, 3e-4)
    assert plan["seed"] == 41
    packages = json.loads((out / "run" / "environment.json").read_text())["packages"]
    assert torch.__version__.startswith(packages["torch"])  # a package from PyPI does not say for which CUDA it is


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3\n", "unknown keys epoch; there are protocol, method"),
        ("a: [", "cannot be read as YAML"),
        ("epochs:\n", "epochs is None; give a whole number from 1 on"),
        ("augment: sometimes\n", "augment is sometimes; there are True, False"),
        ("plateau_factor: 1\n", "plateau_factor is 1; give a share below 1"),
    ],
)
def test_a_plan_with_unknown_keys_is_refused(train_command, pictures, tmp_path, text, message):
    (tmp_path / "plan.yaml").write_text(text)
    code, _, errors = train_command("--data", pictures, "-o", tmp_path / "o", "--config", tmp_path / "plan.yaml")
    assert code == 2 and message in errors


def test_several_seeds_give_a_mean_and_a_spread(train_command, pictures, tmp_path):
    out = tmp_path / "out"
    code, printed, errors = train_command("--data", pictures, "-o", out, "--epochs", 1, "--seeds", 1, 2, 3)
    assert code == 0, errors
    dices = json.loads((out / "seeds.json").read_text())["dice"]
    cards = [read_card(out / f"seed-{seed}") for seed in (1, 2, 3)]
    figures = [card.metrics["discs, test split, plain class prompt"]["disc"]["dice"] for card in cards]
    assert dices["seeds"] == figures and dices["mean"] == pytest.approx(np.mean(figures))
    assert "over 3 seeds" in printed


def test_several_seeds_go_on_where_they_were_stopped(train_command, pictures, tmp_path):
    out, options = tmp_path / "out", ["--data", pictures, "--epochs", 2]
    assert train_command(*options, "-o", out, "--seeds", 1)[0] == 0
    first = (out / "seed-1" / "run" / "log.csv").read_text()
    code, printed, errors = train_command(*options, "-o", out, "--seeds", 1, 2, "--resume")
    assert code == 0, errors
    assert "over 2 seeds" in printed
    assert (out / "seed-1" / "run" / "log.csv").read_text() == first
    assert len((out / "seed-2" / "run" / "log.csv").read_text().splitlines()) == 3


def test_splits_that_share_an_image_are_refused_or_parted(train_command, pictures, tmp_path):
    (pictures / "images" / "3.png").write_bytes((pictures / "images" / "0.png").read_bytes())
    options = ["--data", pictures, "-o", tmp_path / "out", "--epochs", 1]
    code, _, errors = train_command(*options)
    assert code == 2 and "'test' shares 1 image(s)" in errors and "3.png with 0.png in 'train'" in errors
    code, _, errors = train_command(*options, "--drop-overlap")
    assert code == 0, errors
    assert read_card(tmp_path / "out").metrics == {}


def start(arguments, processes: int, command: str = "engine.train") -> subprocess.Popen:
    """Start a trainer in several processes on the CPU; `accelerate launch` itself wants MPI for that."""
    words = ["-m", "torch.distributed.run", "--nproc_per_node", processes, "-m", "--", command, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, words)], env=environment, cwd=ROOT, **pipes)


def launch(arguments, processes: int, command: str = "engine.train") -> subprocess.CompletedProcess:
    """Run a trainer in several processes to its end."""
    with start(arguments, processes, command) as process:
        printed, errors = process.communicate(timeout=PATIENCE_SECONDS)
    return subprocess.CompletedProcess(process.args, process.returncode, printed, errors)


def test_two_processes_train_what_one_does(train_command, pictures, tmp_path, tiny_base):
    options = ["--data", pictures, "--base", tiny_base, "--device", "cpu", "--precision", "fp32"]
    options += ["--epochs", 4, "--absent-rate", 0, "--learning-rate", 0.01]
    code, _, errors = train_command(*options, "-o", tmp_path / "one")
    assert code == 0, errors
    result = launch([*options, "-o", tmp_path / "two"], processes=2)
    assert result.returncode == 0, result.stderr
    one, two = adapter_of(tmp_path / "one"), adapter_of(tmp_path / "two")
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=2e-4, rtol=1e-3)
    assert json.loads((tmp_path / "two" / "run" / "environment.json").read_text())["processes"] == 2
    losses = [(tmp_path / n / "run" / "log.csv").read_text().splitlines()[-1].split(",")[1] for n in ("one", "two")]
    assert float(losses[1]) == pytest.approx(float(losses[0]), abs=1e-3)


def test_processes_of_which_one_is_interrupted_stop_together_and_go_on(pictures, tmp_path, tiny_base):
    options = ["--data", pictures, "--base", tiny_base, "--device", "cpu", "-o", tmp_path / "out"]
    log = tmp_path / "out" / "run" / "log.csv"
    with start([*options, "--epochs", 500, "--patience-epochs", 500], processes=2) as process:
        wait_until(lambda: log.is_file() and len(log.read_text().splitlines()) > 2)
        second = next(c for c in psutil.Process(process.pid).children() if c.environ()["RANK"] == "1")
        second.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert "the run is saved" in printed, errors
    done = len(log.read_text().splitlines()) - 1
    assert 2 <= done < 500
    result = launch([*options, "--epochs", done + 1, "--patience-epochs", 500, "--resume"], processes=2)
    assert result.returncode == 0, result.stderr
    assert len(log.read_text().splitlines()) - 1 == done + 1


def test_an_adapter_that_is_there_is_not_replaced(train_command, pictures, tmp_path, tiny_adapter):
    before = {p.name: p.read_bytes() for p in tiny_adapter.iterdir()}
    code, _, errors = train_command("--data", pictures, "-o", tiny_adapter)
    assert code == 2 and "add --overwrite" in errors
    assert {p.name: p.read_bytes() for p in tiny_adapter.iterdir()} == before


def test_files_that_are_no_adapters_are_not_replaced(train_command, pictures, tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("my notes")
    code, _, errors = train_command("--data", pictures, "-o", tmp_path / "project", "--overwrite")
    assert code == 2 and "holds a README.md that is no adapter's" in errors
    assert (tmp_path / "project" / "README.md").read_text() == "my notes"
    code, _, errors = train_command("--data", pictures, "-o", tmp_path / "project" / "README.md")
    assert code == 2 and "is no folder" in errors


@pytest.mark.parametrize(
    ("flag", "value"), [("--epochs", 0), ("--batch-size", 0), ("--learning-rate", "nan"), ("--absent-rate", -1)]
)
def test_a_plan_that_trains_nothing_is_refused(train_command, pictures, tmp_path, flag, value):
    code, _, errors = train_command("--data", pictures, "-o", tmp_path / "out", flag, value)
    assert code == 2 and f"{flag[2:].replace('-', '_')} is {value}" in errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "decoder", "--placement", "V"], "'decoder' has no placement 'V'; there are none"),
        (["--method", "cris", "--hidden-size", 8], "'cris' has no hidden size"),
        (["--method", "cris"], "cris needs a CLIP with a ResNet"),
        (["--method", "san", "--hidden-size", 25], "the hidden size of san is 25; give a multiple of 6"),
    ],
)
def test_what_a_method_does_not_have_is_refused(train_command, pictures, tmp_path, options, message):
    code, _, errors = train_command("--data", pictures, "-o", tmp_path / "out", *options)
    assert code == 2 and message in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_a_clip_is_no_base_for_adapters(train_command, pictures, tmp_path, clip_bases):
    base = clip_bases / "transformer"
    code, _, errors = train_command("--data", pictures, "-o", tmp_path / "out", "--base", base)
    assert code == 2 and "'dense' needs a CLIPSeg as base" in errors


def test_missing_data_is_refused_in_one_line(train_command, tmp_path):
    code, _, errors = train_command("--data", tmp_path / "nothing", "-o", tmp_path / "out")
    assert code == 2 and errors.startswith("error: ") and "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def full_beyond(count, forward):
    """A forward pass for which memory is full with more samples."""

    def take(model, batch):
        if len(batch) > count:
            raise torch.OutOfMemoryError
        return forward(model, batch)

    return take


def trainer_of(folder, base, method="dense", loss="logits"):
    plan = Plan(method=method, batch_size=4, absent_rate=0, loss=loss, gradient_clip=1e9, precision="fp32")
    data_set, checkpoint = open_data_set(draw_pictures(folder, 3), "train"), folder / "checkpoint.safetensors"
    cpu = torch.device("cpu")
    trainer = Trainer(open_base(str(base)), plan, data_set, None, (), checkpoint, cpu, "none")
    return trainer, [Sampler(data_set, SIDE).draw(position, (0, 0)) for position in range(3)]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_that_memory_does_not_hold_is_taken_in_parts_with_the_same_steps(tiny_base, tmp_path, caplog, loss):
    losses, gradients = [], []
    for most in (4, 2, 1):
        trainer, batch = trainer_of(tmp_path / f"{most}", tiny_base, loss=loss)
        trainer._forward = full_beyond(most, trainer._forward)
        losses.append([trainer.step(batch)])
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.trained.parameters()]))
        losses[-1] += [trainer.step(batch) for _ in range(2)]
    for in_parts in gradients[1:]:
        assert (in_parts - gradients[0]).norm() < 1e-4 * gradients[0].norm()
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-4)
    assert losses[0][0] != losses[0][-1]
    assert [record.args[1] for record in caplog.records] == [2, 2, 1]


@pytest.mark.parametrize(("method", "most"), [("dense", 0), ("san", 2)])
def test_memory_that_holds_no_step_at_all_is_a_clear_error(tiny_base, tmp_path, method, most):
    trainer, batch = trainer_of(tmp_path, tiny_base, method)
    trainer._forward = full_beyond(most, trainer._forward)
    with pytest.raises(UserError, match="choose a smaller --batch-size"):
        trainer.step(batch)
