"""Train a base on packed pictures of many data sets, stage by stage."""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from engine.models.bases import IMAGENET_MEAN, IMAGENET_STD
from engine.nets.clipseg import CLIPSeg
from engine.prompts import encode_prompts
from engine.training.changes import Changes
from engine.training.checkpoints import load_checkpoint, save_checkpoint
from engine.training.losses import SegmentationLoss
from engine.training.optimizer import MuonAdamW
from engine.training.recipe import ALL, DECODER, TEXT, Recipe, Stage
from engine.training.store import PictureStore
from engine.training.teaching import Lesson, likeness
from engine.training.views import KeptView, frozen_encoder, hash_of_tower

CHECKPOINT = "checkpoint.safetensors"
WARM_UP_STEPS = 100
PHRASES = 64  # beside the prompts of a step, to keep the text encoder like its teacher
TRAINED_PARTS = {
    TEXT: ("text.", "text_projection."),
    DECODER: ("text.", "text_projection.", "decoder."),
    ALL: ("",),
}
FROZEN_TOWER = ("vision.embeddings.", "vision.pre_layrnorm.")  # so small that any step would be large against them


@dataclass(frozen=True)
class Step:
    """What is told after each step."""

    stage: int
    number: int
    steps: int
    loss: float


class Pretrainer:
    """A run of pretraining. Several processes (under `accelerate launch`) share each batch; the first one writes.

    Args:
        model: what is trained, on its device.
        store: the training pictures.
        lesson: of the recipe's teacher; None without one.
        folder: of the checkpoint and of the kept views.
        validate: called every `validate_every` steps and at the end of each stage, with the number of steps done.
    """

    def __init__(
        self,
        model: CLIPSeg,
        tokenizer: PreTrainedTokenizerBase,
        recipe: Recipe,
        store: PictureStore,
        lesson: Lesson | None,
        folder: Path,
        validate: Callable[[int], None] = lambda done: None,
        validate_every: int = 100,
        save_every: int = 50,
    ):
        self.model, self.tokenizer, self.recipe, self.store, self.lesson = model, tokenizer, recipe, store, lesson
        self._folder, self._validate = folder, validate
        self._validate_every, self._save_every = validate_every, save_every
        self._processes = Accelerator(cpu=model.device.type == "cpu")
        self._loss = SegmentationLoss()
        self._parameters = dict(model.named_parameters())
        self._mean = torch.tensor(IMAGENET_MEAN, device=model.device).view(1, 3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=model.device).view(1, 3, 1, 1)

    @property
    def checkpoint(self) -> Path:
        return self._folder / CHECKPOINT

    def train(
        self,
        on_step: Callable[[Step], None],
        on_encoded: Callable[[int, int], None] = lambda done, total: None,
        resume: bool = False,
    ) -> None:
        """Run through the stages of the recipe.

        Args:
            on_encoded: called with pictures encoded and in all, while views are made.
            resume: go on from the checkpoint.

        Raises:
            UserError: there is no checkpoint to go on from, or the disk is full.
        """
        moments, done, before = SimpleNamespace(state={}), 0, 0
        if resume:
            done = load_checkpoint(self.checkpoint, self._parameters, moments)[0]["done"]
        for index, stage in enumerate(self.recipe.all_stages):
            start = max(done - before, 0)
            if start >= stage.steps:
                before += stage.steps
                continue
            optimizer = self._optimizer(stage, moments.state if start else {})
            views = self._views(stage, on_encoded) if stage.trains == DECODER else []
            for number in range(start + 1, stage.steps + 1):
                optimizer.set_learning_rate(learning_rate(stage, number))
                loss = self._step(stage, views, np.random.default_rng([self.recipe.seed, index, number]), optimizer)
                on_step(Step(index, number, stage.steps, loss))
                if number % self._save_every == 0 or number == stage.steps:
                    self._save(optimizer, before + number)
                if stage.trains != TEXT and (number % self._validate_every == 0 or number == stage.steps):
                    self._validate(before + number)
            before += stage.steps

    def _optimizer(self, stage: Stage, moments: dict) -> MuonAdamW:
        frozen = FROZEN_TOWER if self.recipe.tower else ()
        trained = {}
        for name, parameter in self._parameters.items():
            wanted = name.startswith(TRAINED_PARTS[stage.trains]) and not name.startswith(frozen)
            parameter.requires_grad_(wanted)
            if wanted:
                trained[name] = parameter
        optimizer = MuonAdamW(trained, self.recipe.weight_decay, tower_rates(trained, stage))
        for parameter, state in moments.items():
            optimizer.state[parameter] = state
        return optimizer

    def _save(self, optimizer: MuonAdamW, done: int) -> None:
        if self._processes.is_main_process:
            save_checkpoint(self.checkpoint, self._parameters, optimizer, {"done": done})

    def _views(self, stage: Stage, on_encoded: Callable[[int, int], None]) -> list[tuple[Changes, KeptView]]:
        """Return the changes of each view and its activations, once all are made; other kept views are removed."""
        names = [f"{self._identity(stage, view)}.fp16" for view in range(stage.views)]
        folder = self._folder / "views"
        for path in set(folder.glob("*.fp16")) - {folder / name for name in names}:
            path.unlink()
        encode_pixels = frozen_encoder(self.model)
        shape = len(self.store), *self.model.activations_shape(self._side(stage))
        views = []
        for view, name in enumerate(names):
            changes, kept = self._changes(view), KeptView(folder / name, shape)

            def encode(pictures: Tensor, changes: Changes = changes) -> Tensor:
                return encode_pixels(self._pixel_values(pictures, changes[pictures], self._side(stage)))

            if self._processes.is_main_process:
                done, total = view * len(self.store), stage.views * len(self.store)
                kept.fill(encode, lambda n, done=done, total=total: on_encoded(done + n, total))
            views.append((changes, kept))
        self._processes.wait_for_everyone()
        return views

    def _identity(self, stage: Stage, view: int) -> str:
        """Return a hash of all that the activations of a view depend on."""
        parts = self._side(stage), self.recipe.seed, view, self.store.fingerprint, hash_of_tower(self.model)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def _changes(self, view: int) -> Changes:
        if view == 0:
            return Changes.none(len(self.store))
        return Changes.draw(self.store.mirror, self.store.coloured, seed=1000 * self.recipe.seed + view)

    def _side(self, stage: Stage) -> int:
        return stage.side or self.recipe.side

    def _pixel_values(self, pictures: Tensor, changes: Changes, side: int) -> Tensor:
        images = changes.to(self.model.device).of_images(self.store.images(pictures), side)
        return (images - self._mean) / self._std

    def _step(self, stage: Stage, views: list, random: np.random.Generator, optimizer: MuonAdamW) -> float:
        torch.manual_seed(int(random.integers(2**31)))  # of noise: equal in a resumed run
        with torch.autocast(self.model.device.type, torch.bfloat16):
            loss = self._phrase_loss(stage, random) if self.lesson else 0
            if stage.trains != TEXT:
                loss = loss + self._picture_loss(stage, views, random)
        optimizer.zero_grad()
        loss.backward()
        _average_gradients(self.model, self._processes)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clip)
        optimizer.step()
        return self._processes.reduce(loss.detach(), "mean").item()

    def _phrase_loss(self, stage: Stage, random: np.random.Generator) -> Tensor:
        """Return how much the text encoder differs from its teacher in what is like what."""
        phrases, wanted = self.lesson.draw(stage.batch_size if stage.trains == TEXT else PHRASES, random)
        found = likeness(self._conditions(phrases).float())
        return self.recipe.teacher_weight * F.mse_loss(found, wanted.to(found.device))

    def _picture_loss(self, stage: Stage, views: list, random: np.random.Generator) -> Tensor:
        pictures, side = self.store.draw(stage.batch_size, random), self._side(stage)
        if views:
            changes, kept = views[random.integers(len(views))]
            changes = changes[pictures]
        else:
            kept = None
            seed = int(random.integers(2**31))
            changes = Changes.draw(self.store.mirror[pictures], self.store.coloured[pictures], seed)
        prompts, masks = self.store.ask(pictures, changes.mirrored, self.recipe.asking, random)
        share = slice(self._processes.process_index, None, self._processes.num_processes)
        each = self.recipe.prompts_per_image
        prompts = [p for i in range(len(pictures))[share] for p in prompts[i * each : (i + 1) * each]]
        pictures, changes, masks = pictures[share], changes[share], masks[share]
        if kept is None:
            maps = self.model.encode_images(self._pixel_values(pictures, changes, side))
        else:
            maps = self.model.reduce(kept[pictures].to(self.model.device).float())
        logits = self.model.decode(maps.repeat_interleave(each, dim=0), self._conditions(prompts)).float()
        wanted = changes.to(self.model.device).of_masks(self.store.masks(masks), side)
        return self._loss(logits, wanted.flatten(0, 1))

    def _conditions(self, prompts: list[str]) -> Tensor:
        """Return the condition vectors of prompts, of which many may be equal."""
        different = sorted(set(prompts))
        encoded = self.model.encode_prompts(encode_prompts(self.tokenizer, different).to(self.model.device))
        place = {prompt: index for index, prompt in enumerate(different)}
        return encoded[[place[prompt] for prompt in prompts]]


def learning_rate(stage: Stage, number: int) -> float:
    """Return the rate of a step: a linear start, then half a cosine to 1 % of the stage's rate."""
    cosine = 0.5 * (1 + math.cos(math.pi * number / stage.steps))
    return stage.learning_rate * min(1.0, number / WARM_UP_STEPS) * max(cosine, 0.01)


def tower_rates(names: Iterable[str], stage: Stage) -> dict[str, float]:
    """Return the rates of the vision layers' parameters against the stage's rate, lower for shallower layers."""
    depths = {n: int(n.split(".")[3]) for n in names if n.startswith("vision.encoder.layers.")}
    deepest = max(depths.values(), default=0)
    return {name: stage.tower_rate * stage.depth_decay ** (deepest - depth) for name, depth in depths.items()}


def _average_gradients(model: CLIPSeg, processes: Accelerator) -> None:
    if processes.num_processes == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    mean = processes.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
    for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
