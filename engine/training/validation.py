"""How well a base does on validation pictures while it is trained: figures, curves, and the best weights so far."""

import csv
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from engine.evaluation.metrics import dice
from engine.files import replacing, write_csv
from engine.models.bases import IMAGENET_MEAN, IMAGENET_STD
from engine.models.weights import write_tensors
from engine.nets.clipseg import CLIPSeg
from engine.prompts import encode_prompts
from engine.training.packing import Labelled, PackedSet, unpack_masks
from engine.training.views import ENCODED_AT_ONCE, frozen_encoder, hash_of_tower

LARGEST_SET, FEWEST = 60, 6  # masks of a set, and of one of its structures, that are looked at
AT_A_TIME = 16


@dataclass(frozen=True)
class Row:
    """After `step` steps: the mean Dice (0..1) of a structure in the pictures of a set that show it, asked for by
    its plain prompt."""

    step: int
    seconds: int
    set: str
    structure: str
    dice: float
    count: int


class Validator:
    """Measures a model at the base's side.

    Args:
        folder: of `validation.csv`, `validation.png` and the best weights; a run that is resumed finds its own.
    """

    def __init__(self, model: CLIPSeg, tokenizer: PreTrainedTokenizerBase, sets: Sequence[PackedSet], folder: Path):
        self._model, self._tokenizer, self._sets, self._folder = model, tokenizer, sets, folder
        self._table = folder / "validation.csv"
        self.rows = _read_rows(self._table) if self._table.is_file() else []
        self._started = time.time() - max((row.seconds for row in self.rows), default=0)
        self._activations: dict[str, dict[int, Tensor]] = {}
        self._tower = ""  # of which these are

    @property
    def best_weights(self) -> Path:
        return self._folder / "best.safetensors"

    def __call__(self, step: int) -> None:
        """Measure the model after a step, and keep its weights if they are the best so far."""
        self.rows = [row for row in self.rows if row.step < step]  # the run may go on from an earlier checkpoint
        best = max((mean_dice(self.rows, s) for s in {row.step for row in self.rows}), default=-1.0)
        if (tower := hash_of_tower(self._model)) != self._tower:
            self._tower, self._activations, self._encode = tower, {}, frozen_encoder(self._model)
        for packed in self._sets:
            self.rows += self._measure(packed, step)
        write_csv(self._table, self.rows)
        self._draw_curves()
        if mean_dice(self.rows, step) > best:
            write_tensors(self.best_weights, self._model.state_dict(), {"step": str(step)})

    def _measure(self, packed: PackedSet, step: int) -> list[Row]:
        shown = _looked_at(packed)
        scores: dict[str, list[float]] = defaultdict(list)
        for start in range(0, len(shown), AT_A_TIME):
            items = shown[start : start + AT_A_TIME]
            for item, score in zip(items, self._dice(packed, items), strict=True):
                scores[item.plain_prompt].append(score)
        seconds = round(time.time() - self._started)
        return [Row(step, seconds, packed.name, n, float(np.mean(s)), len(s)) for n, s in scores.items()]

    @torch.inference_mode()
    def _dice(self, packed: PackedSet, items: Sequence[Labelled]) -> list[float]:
        input_ids = encode_prompts(self._tokenizer, [item.plain_prompt for item in items]).to(self._model.device)
        kept = self._activations_of(packed)
        activations = torch.stack([kept[item.picture] for item in items]).to(self._model.device).float()
        with torch.autocast(self._model.device.type, torch.bfloat16):
            found = self._model.decode(self._model.reduce(activations), self._model.encode_prompts(input_ids)) > 0
        truth = unpack_masks(packed.masks[[item.mask for item in items]]).to(found.device) > 0
        counts = torch.stack([(found & truth).sum((1, 2)), found.sum((1, 2)), truth.sum((1, 2))], dim=1)
        return [dice(*row) for row in counts.tolist()]

    def _activations_of(self, packed: PackedSet) -> dict[int, Tensor]:
        """Return the activations of a set's pictures that are looked at, by their numbers, as fp16 on the CPU; kept
        while the tower stays as it is."""
        if packed.name not in self._activations:
            mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
            numbers = torch.tensor(sorted({item.picture for item in _looked_at(packed)}))
            kept = {}
            for part in numbers.split(ENCODED_AT_ONCE):
                pixels = (packed.images[part].expand(-1, 3, -1, -1) / 255 - mean) / std
                encoded = self._encode(pixels.to(self._model.device)).to("cpu", torch.float16)
                kept |= dict(zip(part.tolist(), encoded, strict=True))
            self._activations[packed.name] = kept
        return self._activations[packed.name]

    def _draw_curves(self) -> None:
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        steps = sorted({row.step for row in self.rows})
        for packed in self._sets:
            means = [means_by_set(self.rows, step).get(packed.name) for step in steps]
            axes.plot(steps, means, label=packed.name, linewidth=1)
        axes.plot(steps, [mean_dice(self.rows, step) for step in steps], "k", label="mean", linewidth=2)
        axes.set(xlabel="steps", ylabel="Dice, validation, plain prompts", ylim=(0, 1))
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", fontsize="small")
        with replacing(self._table.with_suffix(".png")) as path:
            figure.savefig(path)


def _looked_at(packed: PackedSet) -> list[Labelled]:
    """Return some of what a set's pictures show, of each structure as many, spread evenly."""
    shown: dict[str, list[Labelled]] = defaultdict(list)
    for item in packed.labelled:
        if item.mask is not None:
            shown[item.plain_prompt].append(item)
    each = max(FEWEST, LARGEST_SET // max(1, len(shown)))
    return [item for items in shown.values() for item in items[:: -(-len(items) // each)]]


def means_by_set(rows: Iterable[Row], step: int) -> dict[str, float]:
    """Return the mean Dice of each set after a step, each of its structures counting once."""
    scores: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.step == step:
            scores[row.set].append(row.dice)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def mean_dice(rows: Iterable[Row], step: int) -> float:
    """Return the mean Dice after a step, each set counting once."""
    return float(np.mean(list(means_by_set(rows, step).values())))


def _read_rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Row(int(r["step"]), int(r["seconds"]), r["set"], r["structure"], float(r["dice"]), int(r["count"]))
            for r in csv.DictReader(file)
        ]
