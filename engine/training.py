"""Train an adapter on a frozen base: draw samples, step, validate, keep the best."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from engine.bases import Base
from engine.data import DataSet
from engine.losses import SegmentationLoss
from engine.metrics import dice
from engine.model.adapter import Adapter, BaseShape
from engine.model.clipseg import CLIPSeg
from engine.model.methods import METHODS, build_adapter
from engine.prompts import encode_prompts
from engine.samples import Sampler, collate

# dense and shallow: the paper's; the others: what is usual for them
LEARNING_RATES = {"dense": 1e-3, "shallow": 3e-4, "telescopic": 1e-3, "lora": 1e-3, "decoder": 3e-4, "full": 1e-4}
LARGEST_VALIDATION = 256  # annotations; more cost time and say little more


@dataclass(frozen=True)
class Plan:
    """The hyper-parameters; the defaults are the paper's where it has them (VLSM-Adapter, section 3).

    Attributes:
        placement, hidden_size, learning_rate: the method's own when None.
        samples_per_epoch: annotations drawn in an epoch; every one that is present when None.
        absent_rate: the share of prompts that name something absent, with an empty mask.
        plateau_epochs: without a lower validation loss, before the rate is multiplied by 0.3.
        patience_epochs: without a better validation Dice, before training stops.
    """

    method: str = "dense"
    placement: str | None = None
    hidden_size: int | None = None
    epochs: int = 200
    batch_size: int = 32
    samples_per_epoch: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 1e-3
    gradient_clip: float = 0.5
    plateau_epochs: int = 5
    patience_epochs: int = 20
    absent_rate: float = 0.1
    prompts_per_image: int = 1
    augment: bool = False
    mirror: bool = False
    seed: int = 41

    def resolved(self) -> "Plan":
        """Return the plan with the method's own values where none were given."""
        return replace(
            self,
            learning_rate=self.learning_rate or LEARNING_RATES[self.method],
            placement=METHODS[self.method].placements[0] if self.placement is None else self.placement,
            hidden_size=self.hidden_size or METHODS[self.method].hidden_size,
        )


@dataclass(frozen=True)
class Epoch:
    """What is told after each epoch; the validation figures are NaN without a validation set."""

    number: int
    training_loss: float
    validation_loss: float
    validation_dice: float
    learning_rate: float
    seconds: float
    best: bool


def train(
    base: Base,
    plan: Plan,
    training_set: DataSet,
    validation_set: DataSet | None,
    absent_prompts: Sequence[str],
    device: torch.device,
    on_step: Callable[[int, int], None],
    on_epoch: Callable[[Epoch, Adapter], None],
) -> CLIPSeg:
    """Train until the plan's epochs are over or validation no longer improves.

    Args:
        absent_prompts: wordings that fit no training image.
        on_step: called with samples done and in all of an epoch.
        on_epoch: called with the figures of an epoch and the adapter; keep the adapter when it is the best.

    Returns:
        the model with the best adapter (the last one without a validation set).
    """
    plan = plan.resolved()
    torch.manual_seed(plan.seed)
    network = base.load_network()
    adapter = build_adapter(plan.method, plan.placement, BaseShape.of(network.config), plan.hidden_size)
    trainer = _Trainer(base, plan, CLIPSeg(network, adapter).to(device))
    samples = Sampler(
        training_set,
        base.side,
        augment=plan.augment,
        mirror=plan.mirror,
        absent_prompts=absent_prompts,
        absent_rate=plan.absent_rate,
        prompts_per_image=plan.prompts_per_image,
    )
    validation = Sampler(validation_set, base.side, plain_rate=1.0) if validation_set else None
    best_dice, best_epoch, best_weights = -1.0, 0, {}
    for number in range(1, plan.epochs + 1):
        started = time.time()
        training_loss = trainer.run_epoch(samples, number, on_step)
        loss, score = trainer.validate(validation) if validation else (float("nan"), float("nan"))
        trainer.scheduler.step(loss if validation else training_loss)
        best = validation is None or score > best_dice
        if best:
            best_dice, best_epoch = score, number
            best_weights = {name: weight.clone() for name, weight in adapter.state_dict().items()}
        rate = trainer.optimizer.param_groups[0]["lr"]
        on_epoch(Epoch(number, training_loss, loss, score, rate, time.time() - started, best), adapter)
        if number - best_epoch >= plan.patience_epochs:
            break
    adapter.load_state_dict(best_weights)
    return trainer.model.eval()


class _Trainer:
    def __init__(self, base: Base, plan: Plan, model: CLIPSeg):
        self.model = model
        self.optimizer = torch.optim.AdamW(
            model.adapter.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay
        )
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=0.3, patience=plan.plateau_epochs
        )
        self._plan = plan
        self._tokenizer = base.load_tokenizer()
        self._mean = torch.tensor(base.mean, device=model.device).view(1, 3, 1, 1)
        self._std = torch.tensor(base.std, device=model.device).view(1, 3, 1, 1)
        self._loss = SegmentationLoss()

    def run_epoch(self, samples: Sampler, epoch: int, on_step: Callable[[int, int], None]) -> float:
        """Return the mean training loss of an epoch."""
        self.model.train()
        positions = _positions(samples, self._plan, epoch)
        losses = []
        for start in range(0, len(positions), self._plan.batch_size):
            chosen = positions[start : start + self._plan.batch_size]
            loss, _ = self._forward([samples.draw(int(p), (self._plan.seed, epoch)) for p in chosen])
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.adapter.parameters(), self._plan.gradient_clip)
            self.optimizer.step()
            losses.append(loss.item())
            on_step(start + len(chosen), len(positions))
        return float(np.mean(losses))

    @torch.inference_mode()
    def validate(self, samples: Sampler) -> tuple[float, float]:
        """Return the mean loss and the mean Dice for the plain prompts, at the base's resolution."""
        self.model.eval()
        present = _present(samples)
        positions = present[:: max(1, len(present) // LARGEST_VALIDATION)]
        losses, scores = [], []
        for start in range(0, len(positions), self._plan.batch_size):
            batch = [samples.draw(p, (0, 0)) for p in positions[start : start + self._plan.batch_size]]
            loss, logits = self._forward(batch)
            losses.append(loss.item() * len(batch))
            for result, sample in zip((logits > 0).cpu(), batch, strict=True):
                truth = sample.masks[0] > 0
                scores.append(dice(int((result & truth).sum()), int(result.sum()), int(truth.sum())))
        return sum(losses) / len(positions), float(np.mean(scores))

    def _forward(self, batch: list) -> tuple[Tensor, Tensor]:
        images, prompts, masks = collate(batch)
        pixel_values = (images.to(self.model.device) - self._mean) / self._std
        input_ids = encode_prompts(self._tokenizer, prompts).to(self.model.device)
        with torch.autocast(self.model.device.type, torch.bfloat16):
            maps = self.model.encode_images(pixel_values).repeat_interleave(len(prompts) // len(images), dim=0)
            logits = self.model.decode(maps, self.model.encode_prompts(input_ids)).float()
        return self._loss(logits, masks.to(self.model.device)), logits


def _positions(samples: Sampler, plan: Plan, epoch: int) -> np.ndarray:
    """Return an epoch's annotations in random order: present ones, and absent structures at the plan's rate."""
    random = np.random.default_rng([plan.seed, epoch])
    present = random.permutation(_present(samples))
    absent = random.permutation([i for i, a in enumerate(samples.annotations) if a.present is False])
    absent = absent[: round(len(present) * plan.absent_rate)]
    return random.permutation(np.concatenate([present, absent]).astype(int))[: plan.samples_per_epoch]


def _present(samples: Sampler) -> list[int]:
    return [i for i, a in enumerate(samples.annotations) if a.present is not False]
