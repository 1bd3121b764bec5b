"""How fast adapters train, against the same step made of Hugging Face's parts as they come."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from engine.data import open_data_set
from engine.models.bases import Base
from engine.nets.adapter import BaseShape
from engine.nets.methods import build_adapter
from engine.prompts import MAXIMUM_TOKENS
from engine.speed.clock import MIB, peak_memory, seconds_of, side_by_side
from engine.speed.plain import PlainTraining
from engine.training.losses import LOSSES
from engine.training.plan import Plan
from engine.training.samples import Sample, Sampler, collate
from engine.training.trainer import Trainer


class PlainStep:
    """One step of training the plain way, in fp32, on samples that are drawn already."""

    def __init__(self, base: Base, plan: Plan, device: torch.device):
        self._base, self._device = base, device
        network = base.load_network()
        torch.manual_seed(plan.seed)
        adapter = build_adapter(plan.method, plan.placement, BaseShape.of(network.config), plan.hidden_size)
        self.model = PlainTraining(network, adapter).to(device)
        self._loss = LOSSES[plan.loss](plan.dice_weight, plan.cross_entropy_weight, plan.dice_smoothing)
        parameters = self.model.adapter.parameters()
        self._optimizer = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay)
        self._gradient_clip = plan.gradient_clip
        self._tokenizer = base.load_tokenizer()

    def __call__(self, batch: list[Sample]) -> float:
        """Train on a batch; return its loss."""
        prompts, masks = collate(batch)
        padded = self._tokenizer(prompts, padding="max_length", max_length=MAXIMUM_TOKENS, truncation=True)
        images = torch.stack([sample.image for sample in batch]).to(self._device)
        mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (self._base.mean, self._base.std))
        input_ids = torch.tensor(padded.input_ids, device=self._device)
        logits = self.model((images - mean) / std, input_ids)
        loss = self._loss(logits, masks.to(self._device))
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.adapter.parameters(), self._gradient_clip)
        self._optimizer.step()
        return loss.item()


def compare(
    base: Base, pictures: Path, folder: Path, method: str, batch_size: int, repeats: int, device: torch.device
) -> dict[str, float | str]:
    """Return samples a second of both ways on the same batch, and what memory a step of each takes: what it keeps
    for the backward pass and, on a GPU, the peak.

    Where the encoder is frozen, the engine's first step, which encodes, is the warm-up: that is the cost of a later
    epoch.
    """
    plan = Plan(method=method, batch_size=batch_size, absent_rate=0).resolved()
    data_set = open_data_set(pictures, "train")
    batch = _batch(base, pictures, batch_size)
    plain = PlainStep(base, plan, device)
    trainer = Trainer(base, plan, data_set, None, (), folder / method / "checkpoint.safetensors", device)
    works = {"plain": lambda: plain(batch), "engine": lambda: trainer.step(batch)}
    figures: dict[str, float | str] = {"method": method, "batch_size": batch_size}
    figures["engine_first_step_seconds"] = seconds_of(works["engine"], device)
    for name, net in (("plain", plain.model), ("engine", trainer.model)):
        figures[f"{name}_kept_mib"] = _kept_mib(works[name], net)
        if device.type == "cuda":  # a process on the CPU hands little back, so that a second step shows nothing
            with peak_memory(device) as peak_mib:
                works[name]()
                figures[f"{name}_peak_mib"] = peak_mib()
    seconds = side_by_side(works, repeats, device)
    figures |= {f"{name}_samples_per_second": batch_size / value for name, value in seconds.items()}
    return figures | {"speedup": seconds["plain"] / seconds["engine"]}


def seconds_of_step(base: Base, plan: Plan, pictures: Path, folder: Path, device: torch.device) -> float:
    """Return the seconds of a step of training, after one that warms up."""
    trainer = Trainer(base, plan, open_data_set(pictures, "train"), None, (), folder / "checkpoint", device)
    batch = _batch(base, pictures, plan.batch_size)
    trainer.step(batch)
    return seconds_of(lambda: trainer.step(batch), device)


def memory(base: Base, pictures: Path, folder: Path, batch_size: int, device: torch.device) -> dict[str, float]:
    """Return what one step of dense adapters keeps for its backward pass, and its peak beside the weights: the
    engine's with recomputed activations, the engine's, and the plain way's."""
    plan = Plan(method="dense", batch_size=batch_size, absent_rate=0).resolved()
    batch = _batch(base, pictures, batch_size)

    def train(recompute: bool) -> tuple[float, float]:
        data_set, checkpoint = open_data_set(pictures, "train"), folder / f"{recompute}" / "checkpoint.safetensors"
        trainer = Trainer(base, plan, data_set, None, (), checkpoint, device, recompute_activations=recompute)
        return _memory_mib(lambda: trainer.step(batch), trainer.model, device)

    def train_plainly() -> tuple[float, float]:
        plain = PlainStep(base, plan, device)
        return _memory_mib(lambda: plain(batch), plain.model, device)

    figures: dict[str, float] = {"batch_size": batch_size}
    ways = {"recomputing": partial(train, True), "engine": partial(train, False), "plain": train_plainly}
    for name, way in ways.items():
        figures[f"{name}_kept_mib"], figures[f"{name}_peak_mib"] = way()
    return figures


def _memory_mib(step: Callable[[], object], net: nn.Module, device: torch.device) -> tuple[float, float]:
    """Return what a step keeps for its backward pass, and its peak."""
    with peak_memory(device) as peak_mib:
        kept_mib = _kept_mib(step, net)
        return kept_mib, peak_mib()


def _batch(base: Base, pictures: Path, batch_size: int) -> list[Sample]:
    sampler = Sampler(open_data_set(pictures, "train"), base.side)
    return [sampler.draw(position % len(sampler.annotations), (0, 0)) for position in range(batch_size)]


def _kept_mib(step: Callable[[], object], net: nn.Module) -> float:
    """Return the memory of what a step keeps for its backward pass, beside the net's own weights."""
    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(kept.values()) / MIB
