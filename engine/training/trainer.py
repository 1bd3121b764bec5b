"""Train an adapter on a frozen base: draw samples, step, validate, keep the best; stop and go on anywhere."""

import logging
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.data import DataSet, check_labelled
from engine.errors import Cancelled, UserError
from engine.evaluation.metrics import dice
from engine.files import make_folder
from engine.models.bases import Base
from engine.models.bundle import check_base, find_adapter, read_card, weights_of
from engine.nets.clipseg import CLIPSeg
from engine.nets.methods import build_model
from engine.prompts import encode_prompts
from engine.segmentation.devices import choose_dtype, is_out_of_memory
from engine.segmentation.transfers import Transfers
from engine.training.activations import ActivationCache, choose_place
from engine.training.ahead import ahead
from engine.training.checkpoints import load_checkpoint, save_checkpoint
from engine.training.losses import LOSSES, UNKNOWN
from engine.training.plan import COSINE, PLAIN, PLATEAU, Plan
from engine.training.samples import Sample, Sampler, collate

RECENT_STEPS = 20
MIXED_PRECISION = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}
logger = logging.getLogger(__name__)


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


@dataclass
class _Standing:
    """Where a run stands: `step` batches of `epoch` are done, with these losses."""

    epoch: int = 1
    step: int = 0
    losses: list[float] = field(default_factory=list)
    best_dice: float = -1.0
    best_loss: float = math.inf  # of validation
    best_epoch: int = 0  # the last one that gained enough
    gained_dice: float = -1.0  # of that epoch
    history: list[Epoch] = field(default_factory=list)


class Trainer:
    """A run of training.

    Args:
        plan: the hyper-parameters; its precision is of the forward pass, weights and their updates are in fp32.
        absent_prompts: wordings that fit no training image.
        validation_set: None keeps the adapter of the last epoch as the best.
        checkpoint: the file from which an interrupted run goes on; its folder is made.
        device: where to train; under `accelerate launch`, accelerate says which of several.
        keep_activations: where a frozen encoder's activations are kept, so that it runs once for each image:
            auto, memory, disk (beside the checkpoint) or none. Augmented images are always encoded anew.
        recompute_activations: keep no activations inside the vision encoder for the backward pass, which computes
            them again layer by layer: less memory, more time, the same gradients. For adapters of a CLIPSeg.

    Raises:
        UserError: values of the plan with which nothing can be trained, nothing labelled, or a net whose
            activations cannot be computed again.

    Attributes:
        model: the base with what is trained on it.
        history: the epochs so far.
    """

    def __init__(
        self,
        base: Base,
        plan: Plan,
        training_set: DataSet,
        validation_set: DataSet | None,
        absent_prompts: Sequence[str],
        checkpoint: Path,
        device: torch.device,
        keep_activations: str = "auto",
        recompute_activations: bool = False,
    ):
        self.plan = plan = plan.resolved()
        check_labelled(training_set)
        mixed_precision = MIXED_PRECISION[choose_dtype(plan.precision, device)]
        if mixed_precision == "fp16" and device.type == "cpu":
            raise UserError("training in fp16 needs a GPU; add --precision auto")
        AcceleratorState._reset_state()  # it would hold a second training of a process to the first one's precision
        self.accelerator = Accelerator(mixed_precision=mixed_precision, cpu=device.type == "cpu")
        if device.type == "cuda" and device.index is not None and self.accelerator.num_processes == 1:
            torch.cuda.set_device(device)  # accelerate takes the current GPU, which is the first one otherwise
        torch.manual_seed(plan.seed)
        network = base.load_network()
        if device.type == "cpu" and base.kind == "clipseg":  # the plain attention's backward pass is faster there
            network.set_attn_implementation("eager")
        model = build_model(plan.method, network, plan.placement, plan.hidden_size, plan.variant)
        if plan.start:
            model.trained.load_state_dict(_start_weights(plan, base))
        if recompute_activations:
            if not isinstance(model, CLIPSeg):
                raise UserError(f"the method '{plan.method}' cannot recompute activations; leave the option out")
            model.recompute_activations = True
        self.model = model.to(self.accelerator.device)
        named = self.model.trained.named_parameters()
        self._parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=plan.learning_rate,
            weight_decay=plan.weight_decay,
            fused=self.accelerator.device.type != "mps",  # where it steps even when fp16 gradients overflowed
        )
        self._scheduler = _scheduler(self._optimizer, plan)
        self._shared_model, self._prepared = self.accelerator.prepare(self.model, self._optimizer)
        self._transfers = Transfers(self.accelerator.device)
        self._at_a_time = plan.batch_size
        self._samples = Sampler(
            training_set,
            base.side,
            augment=plan.augment,
            mirror=plan.mirror,
            absent_prompts=absent_prompts,
            absent_rate=plan.absent_rate,
            prompts_per_image=plan.prompts_per_image,
            mask_resize=plan.mask_resize,
        )
        plain_rate = 1.0 if plan.validation_prompts == PLAIN else 0.0
        self._validation = (
            Sampler(validation_set, base.side, plain_rate=plain_rate, mask_resize=plan.mask_resize)
            if validation_set
            else None
        )
        self._tokenizer = base.load_tokenizer()
        self._mean = torch.tensor(base.mean, device=self.accelerator.device).view(1, 3, 1, 1)
        self._std = torch.tensor(base.std, device=self.accelerator.device).view(1, 3, 1, 1)
        self._loss = LOSSES[plan.loss](plan.dice_weight, plan.cross_entropy_weight, plan.dice_smoothing)
        self._checkpoint = checkpoint
        self._base_sha256 = base.sha256
        make_folder(checkpoint.parent)
        self._activations = self._activation_cache(keep_activations)
        self._standing = _Standing()
        self._best_weights: dict[str, Tensor] = {}

    @property
    def history(self) -> list[Epoch]:
        return self._standing.history

    @property
    def recent_loss(self) -> float:
        """The mean loss of the last steps of this epoch."""
        return float(np.mean(self._standing.losses[-RECENT_STEPS:]))

    @property
    def _identity(self) -> dict:
        """What a checkpoint must have in common with the run that goes on from it."""
        return {**asdict(self.plan), "base": self._base_sha256}

    def resume(self) -> None:
        """Go on from the checkpoint.

        Raises:
            UserError: there is none, or it is of a run with another plan.
        """
        state, further = load_checkpoint(self._checkpoint, self._parameters, self._optimizer)
        buffers = dict(self.model.trained.named_buffers())
        for name, tensor in further.items():
            kind, _, name = name.partition(".")
            if kind == "best":
                self._best_weights[name] = tensor
            else:
                buffers[name].copy_(tensor)
        planned = self._identity
        free = {"precision"}  # it may depend on the machine
        free |= {"epochs"} if self.plan.schedule == PLATEAU else set()  # a cosine is laid over a number of them
        changed = [key for key, value in state["plan"].items() if planned.get(key) != value and key not in free]
        if changed:
            raise UserError(
                f"{self._checkpoint} is of a run with another {', '.join(changed)}; resume it with the same"
            )
        self._scheduler.load_state_dict(state["scheduler"])
        for group, rate in zip(self._optimizer.param_groups, state["learning_rates"], strict=True):
            group["lr"] = rate
        history = [Epoch(**values) for values in state["standing"].pop("history")]
        self._standing = _Standing(**state["standing"], history=history)

    def train(self, on_step: Callable[[int, int], None], on_epoch: Callable[[Epoch], None]) -> None:
        """Train until the plan's epochs are over or validation no longer improves; `model` then has the best
        adapter.

        Args:
            on_step: called with samples done and in all of an epoch; raise `Cancelled` in it to stop, and
                the run can go on from its checkpoint.
            on_epoch: called with an epoch's figures; if it is the best one, keep the adapter.

        Raises:
            UserError: an epoch without a finite loss, or after which the weights are no numbers.
        """
        standing = self._standing
        try:
            while standing.epoch <= self.plan.epochs and not self._is_over():
                self._run_epoch(on_step, on_epoch)
        except Cancelled:
            self._save()
            self.accelerator.wait_for_everyone()
            raise
        self.model.trained.load_state_dict(self._best_weights)
        self.model.eval()

    def _is_over(self) -> bool:
        done = self._standing.epoch - 1
        return done >= self.plan.minimum_epochs and done - self._standing.best_epoch >= self.plan.patience_epochs

    def _run_epoch(self, on_step: Callable[[int, int], None], on_epoch: Callable[[Epoch], None]) -> None:
        standing, started = self._standing, time.time()
        self._step_through(on_step)
        training_loss = self._training_loss()
        loss, score = self._validate() if self._validation else (float("nan"), float("nan"))
        if self.plan.schedule == COSINE:
            self._scheduler.step()
        else:
            self._scheduler.step(loss if self._validation else training_loss)
        # while nothing is found yet, Dice stays 0 and only the loss tells that the adapter learns
        best = self._validation is None or (score, -loss) > (standing.best_dice, -standing.best_loss)
        if best:
            standing.best_dice, standing.best_loss = score, loss
            if (
                not score - standing.gained_dice < self.plan.minimum_gain
            ):  # without validation it is NaN, and counts
                standing.gained_dice, standing.best_epoch = score, standing.epoch
            self._best_weights = {n: w.detach().clone() for n, w in self.model.trained.state_dict().items()}
        rate = self._optimizer.param_groups[0]["lr"]
        epoch = Epoch(standing.epoch, training_loss, loss, score, rate, time.time() - started, best)
        standing.history.append(epoch)
        standing.epoch, standing.step, standing.losses = standing.epoch + 1, 0, []
        self._save()
        on_epoch(epoch)

    def _training_loss(self) -> float:
        """Return the mean of the epoch's losses that are finite: those of fp16 that were not are no steps."""
        losses = [loss for loss in self._standing.losses if math.isfinite(loss)]
        if not losses or not all(weight.isfinite().all() for weight in self._parameters.values()):
            raise UserError(
                f"the training failed in epoch {self._standing.epoch}: {len(losses)} of its "
                f"{len(self._standing.losses)} losses are finite; choose a smaller --learning-rate, or --precision "
                "fp32, and see what --check says of the data"
            )
        return float(np.mean(losses))

    def _step_through(self, on_step: Callable[[int, int], None]) -> None:
        self.model.train()
        plan, standing = self.plan, self._standing
        positions = epoch_positions(self._samples, plan, standing.epoch)
        starts = range(standing.step * plan.batch_size, len(positions), plan.batch_size)
        batches = [positions[start : start + plan.batch_size] for start in starts]
        if batches and len(batches[-1]) < self.accelerator.num_processes:
            batches.pop()  # too few for every process to have one
        with closing(ahead(self._draw, batches)) as drawn:
            for start, chosen, batch in zip(starts, batches, drawn, strict=False):
                draw = np.random.default_rng([plan.seed, standing.epoch, start])
                torch.manual_seed(int(draw.integers(2**31)))  # of dropout: equal in a resumed run
                standing.losses.append(self.step(batch))
                standing.step += 1
                self._tell(on_step, start + len(chosen), len(positions))

    def _draw(self, positions: np.ndarray) -> list[Sample]:
        """Draw this process's share of a batch, while the batch before is trained on."""
        own = positions[self.accelerator.process_index :: self.accelerator.num_processes]
        return [self._samples.draw(int(p), (self.plan.seed, self._standing.epoch), self._is_wanted) for p in own]

    def step(self, batch: list[Sample]) -> float:
        """Train on samples once; return their mean loss, over all processes.

        Where memory does not hold what all of them need, they are taken in parts, whose gradients add up.

        Raises:
            UserError: it does not even hold a single one, or the net or several processes allow no parts.
        """
        loss = None
        while loss is None:
            self._prepared.zero_grad()
            starts = range(0, len(batch), self._at_a_time)
            try:
                parts = (batch[start : start + self._at_a_time] for start in starts)
                loss = sum(self._add_gradients(part, len(part) / len(batch)) for part in parts)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._take_fewer()
        self.accelerator.clip_grad_norm_(self._parameters.values(), self.plan.gradient_clip)
        self._prepared.step()
        return self.accelerator.reduce(loss, "mean").item()

    def _add_gradients(self, part: list[Sample], share: float) -> Tensor:
        """Add the gradients of a part of a batch; return its share of the batch's loss."""
        loss, _ = self._forward(self._shared_model, part)
        self.accelerator.backward(loss * share)
        return loss.detach() * share

    def _take_fewer(self) -> None:
        device, alone = self.accelerator.device, self.accelerator.num_processes == 1
        if self._at_a_time == 1 or not alone or not isinstance(self.model, CLIPSeg):  # others count over batches
            raise UserError(
                f"the memory of {device} does not hold a step of training; choose a smaller --batch-size, or add "
                "--recompute-activations if the method can"
            )
        self._at_a_time = -(-self._at_a_time // 2)
        logger.warning("the memory of %s does not hold a batch; taking it by %d samples", device, self._at_a_time)

    def _tell(self, on_step: Callable[[int, int], None], done: int, total: int) -> None:
        """Call `on_step`; where one process is asked to stop, all of them do, or the others would wait for it."""
        cancelled = torch.zeros(1, device=self.accelerator.device)
        try:
            on_step(done, total)
        except Cancelled:
            cancelled += 1
        if self.accelerator.reduce(cancelled, "sum").item():
            raise Cancelled

    @torch.no_grad()
    def _validate(self) -> tuple[float, float]:
        """Return the mean loss and the mean Dice at the base's resolution."""
        self.model.eval()
        present = _present(self._validation)
        largest = self.plan.largest_validation or len(present)
        positions = present[:: max(1, len(present) // max(1, largest))]
        seed = self.plan.seed, self._standing.epoch
        own = positions[self.accelerator.process_index :: self.accelerator.num_processes]
        sums = torch.zeros(3, device=self.accelerator.device)  # of losses, of Dice, of samples
        for start in range(0, len(own), self.plan.batch_size):
            chosen = own[start : start + self.plan.batch_size]
            batch = [self._validation.draw(p, seed, self._is_wanted) for p in chosen]
            loss, logits = self._forward(self.model, batch)  # processes differ in count, so none may wait here
            masks = torch.cat([sample.masks for sample in batch]).to(logits.device)
            truths, known = masks > 0, masks != UNKNOWN
            results = (logits > 0) & known
            scores = [
                dice(int((result & truth).sum()), int(result.sum()), int(truth.sum()))
                for result, truth in zip(results, truths, strict=True)
            ]
            sums += torch.tensor([loss.item() * len(batch), sum(scores), len(batch)], device=sums.device)
        losses, scores, count = self.accelerator.reduce(sums, "sum").tolist()
        return losses / count, scores / count

    def _forward(self, model: nn.Module, batch: list[Sample]) -> tuple[Tensor, Tensor]:
        prompts, masks = collate(batch)
        input_ids = encode_prompts(self._tokenizer, prompts).to(self.accelerator.device)
        if self._activations is None:
            inputs = {"pixel_values": self._pixel_values(batch)}
        else:
            inputs = {"pixel_values": None, "activations": self._fetch_activations(batch)}
        with self.accelerator.autocast():
            logits = model(input_ids=input_ids, **inputs).float()
        return self._loss(logits, self._transfers.to_device(masks)), logits

    def _pixel_values(self, batch: list[Sample]) -> Tensor:
        images = self._transfers.to_device(torch.stack([sample.image for sample in batch]))
        return (images - self._mean) / self._std

    def _fetch_activations(self, batch: list[Sample]) -> Tensor:
        @torch.no_grad()
        def compute(positions: list[int]) -> Tensor:
            with self.accelerator.autocast():
                return self.model.activations(self._pixel_values([batch[p] for p in positions]))

        return self._transfers.to_device(self._activations.fetch([sample.key for sample in batch], compute)).float()

    def _is_wanted(self, image: Hashable) -> bool:
        """Return whether an image itself is needed, and not only its activations, which once kept stay so."""
        return self._activations is None or image not in self._activations

    def _activation_cache(self, wanted: str) -> ActivationCache | None:
        if self.plan.augment or not self.model.frozen_encoder:
            return None
        images = {a.image for s in (self._samples, self._validation) if s for a in s.annotations}
        needed_bytes = len(images) * 2 * math.prod(self.model.activations_shape(self._samples.side))
        place = choose_place(wanted, needed_bytes, self._checkpoint.parent)
        return None if place == "none" else ActivationCache(self._checkpoint.parent if place == "disk" else None)

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            state = {
                "plan": self._identity,
                "standing": asdict(self._standing),
                "scheduler": self._scheduler.state_dict(),
                "learning_rates": [group["lr"] for group in self._optimizer.param_groups],
            }
            further = {f"best.{name}": tensor for name, tensor in self._best_weights.items()}
            further |= {f"buffer.{name}": tensor for name, tensor in self.model.trained.named_buffers()}
            save_checkpoint(self._checkpoint, self._parameters, self._optimizer, state, further)


@contextmanager
def among_processes() -> Iterator[None]:
    """Leave the group of processes, where there is one, at the end: PyTorch may abort a process that ends in it,
    and with it the others, which are still at work."""
    try:
        yield
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _start_weights(plan: Plan, base: Base) -> dict[str, Tensor]:
    """Return the weights of the adapter with which training starts.

    Raises:
        UserError: it is not there, damaged, of another base, or not what the plan trains.
    """
    folder = find_adapter(plan.start)
    card = read_card(folder)
    check_base(card, base)
    wanted = plan.method, plan.placement, plan.hidden_size
    if (card.method, card.placement, card.hidden_size) != wanted:
        raise UserError(
            f"training cannot start from the adapter '{card.name}', a {card.method} {card.placement} of width "
            f"{card.hidden_size}: a {plan.method} {plan.placement} of width {plan.hidden_size} is asked for"
        )
    return load_file(weights_of(folder, card))


def _scheduler(optimizer: torch.optim.Optimizer, plan: Plan) -> torch.optim.lr_scheduler.LRScheduler:
    if plan.schedule == COSINE:
        lowest = 0.01 * plan.learning_rate
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.epochs, eta_min=lowest)
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=plan.plateau_factor, patience=plan.plateau_epochs
    )


def epoch_positions(samples: Sampler, plan: Plan, epoch: int) -> np.ndarray:
    """Return an epoch's annotations in random order: present ones, and absent structures at the plan's rate."""
    random = np.random.default_rng([plan.seed, epoch])
    present = random.permutation(_present(samples))
    absent = random.permutation([i for i, a in enumerate(samples.annotations) if a.present is False])
    absent = absent[: round(len(present) * plan.absent_rate / (1 - plan.absent_rate))]
    return random.permutation(np.concatenate([present, absent]).astype(int))[: plan.samples_per_epoch]


def _present(samples: Sampler) -> list[int]:
    return [i for i, a in enumerate(samples.annotations) if a.present is not False]
