"""The hyper-parameters of a training, and what of them is refused."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml

from engine.choices import GRIDS, HALF, LOSSES, METHODS, PRECISIONS, PRODUCT, PROTOCOLS, VARIANTS
from engine.errors import UserError
from engine.imaging.volumes.planes import ALL_PLANES, CHANNELS, PLANES, SLICE

# shallow, dense and cris: the paper's; san: its benchmark's configuration, which the paper's script overrides (see
# `protocols`); the others: what is usual for them
LEARNING_RATES = {
    "dense": 1e-3,
    "dense-everywhere": 1e-3,
    "shallow": 3e-4,
    "telescopic": 1e-3,
    "lora": 1e-3,
    "decoder": 3e-4,
    "full": 1e-4,
    "san": 2e-3,
    "cris": 1e-4,
}
DICE_WEIGHT, CROSS_ENTROPY_WEIGHT = 1.5, 1.0
DICE_SMOOTHING = 1.0  # in pixels; an empty mask then has a gradient
PLATEAU, COSINE = SCHEDULES = ("plateau", "cosine")
PLAIN, RANDOM = PROMPTS = ("plain", "random")
BILINEAR, NEAREST = RESIZES = ("bilinear", "nearest")
CHOICES = {
    "protocol": PROTOCOLS,
    "method": METHODS,
    "variant": VARIANTS,
    "precision": ("auto", *PRECISIONS),
    "mask_resize": RESIZES,
    "validation_prompts": PROMPTS,
    "test_prompts": PROMPTS,
    "presence_gate": (True, False),
    "metric_grid": GRIDS,
    "loss": LOSSES,
    "schedule": SCHEDULES,
    "planes": (*PLANES, ALL_PLANES),
    "channels": CHANNELS,
    "augment": (True, False),
    "mirror": (True, False),
}
WHOLE_NUMBERS = {  # with the lowest
    "hidden_size": 0,
    "epochs": 1,
    "batch_size": 1,
    "samples_per_epoch": 1,
    "prompts_per_image": 1,
    "plateau_epochs": 0,
    "patience_epochs": 1,
    "minimum_epochs": 0,
    "largest_validation": 0,
    "mask_above": 0,
    "seed": 0,
}
NUMBERS = (
    *("learning_rate", "weight_decay", "gradient_clip", "dice_weight", "cross_entropy_weight"),
    *("dice_smoothing", "minimum_gain"),
)
SHARES = ("absent_rate", "plateau_factor")


@dataclass(frozen=True)
class Plan:
    """The hyper-parameters; the defaults are the paper's where it has them (VLSM-Adapter, section 3).

    Attributes:
        protocol: whose values those fields have that were not chosen one by one (see `engine.training.protocols`).
        variant: of a baseline's net: as in its own paper, or as VLSM-Adapter's code has it.
        start: name or folder of an adapter with whose weights training starts; new ones when None.
        placement, hidden_size, learning_rate: the method's own when None.
        planes: in which volumes are sliced: axial, coronal, sagittal or all.
        channels: see `engine.imaging.volumes.planes.CHANNELS`.
        samples_per_epoch: annotations drawn in an epoch; every one that is present when None.
        absent_rate: the share of images without the structure among an epoch's, as far as there are any, and the
            share of prompts that are replaced by that of something absent; both have empty masks.
        loss: one of `LOSSES`; the two weights are of its parts.
        dice_smoothing: in pixels, added to both sides of Dice's fraction.
        precision: of the forward pass: auto, fp32, bf16 or fp16.
        mask_resize: how masks come to the base's square: bilinear, thresholded at one half, or nearest.
        mask_above: the grey value above which a pixel of a mask's file belongs to it, where the file holds more
            than 0 and 1.
        schedule: of the learning rate: "plateau", the paper's, lowers it when validation stops improving; "cosine"
            lowers it to 1 % over `epochs`, which suits a run whose length is known.
        plateau_epochs: without a lower validation loss, before the rate is multiplied by `plateau_factor`.
        patience_epochs: without a better validation Dice (or, where that is equal, a lower loss), before training
            stops.
        minimum_epochs: before which training does not stop.
        minimum_gain: in validation Dice, less than which is no improvement for `patience_epochs`.
        validation_prompts: the plain class prompt, or one drawn anew at random for each image and epoch.
        largest_validation: annotations, of which more are thinned evenly; 0 for all.
        test_prompts, presence_gate, metric_grid: how the adapter is measured on test images in the end, beside the
            product's own rules (see `engine.evaluation.measuring.Rules`).
    """

    protocol: str = PRODUCT
    method: str = "dense"
    variant: str = VARIANTS[0]
    start: str | None = None
    placement: str | None = None
    hidden_size: int | None = None
    planes: str = "axial"
    channels: str = SLICE
    epochs: int = 200
    batch_size: int = 32
    samples_per_epoch: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 1e-3
    gradient_clip: float = 0.5
    loss: str = "logits"
    dice_weight: float = DICE_WEIGHT
    cross_entropy_weight: float = CROSS_ENTROPY_WEIGHT
    dice_smoothing: float = DICE_SMOOTHING
    precision: str = "auto"
    mask_resize: str = BILINEAR
    mask_above: int = HALF
    schedule: str = PLATEAU
    plateau_epochs: int = 5
    plateau_factor: float = 0.3
    patience_epochs: int = 20
    minimum_epochs: int = 0
    minimum_gain: float = 0.0
    validation_prompts: str = PLAIN
    largest_validation: int = 256  # more cost time and say little more
    test_prompts: str = PLAIN
    presence_gate: bool = True
    metric_grid: str = GRIDS[0]
    absent_rate: float = 0.1
    prompts_per_image: int = 1
    augment: bool = False
    mirror: bool = False
    seed: int = 41

    def resolved(self) -> "Plan":
        """Return the plan with the method's own values where none were given.

        Raises:
            UserError: a value with which nothing can be trained.
        """
        from engine.nets.methods import METHODS as KINDS  # the nets, which load PyTorch

        self._check_values()
        method = KINDS[self.method]
        if self.placement is not None and self.placement not in method.placements:
            known = ", ".join(filter(None, method.placements)) or "none"
            raise UserError(f"the method '{self.method}' has no placement '{self.placement}'; there are {known}")
        if self.hidden_size and not method.hidden_size:
            raise UserError(f"the method '{self.method}' has no hidden size; leave it out")
        if self.variant not in method.variants:
            raise UserError(f"the method '{self.method}' has no variant '{self.variant}'; leave it out")
        return replace(
            self,
            placement=method.placements[0] if self.placement is None else self.placement,
            hidden_size=self.hidden_size or method.hidden_size,
            learning_rate=self.learning_rate or LEARNING_RATES[self.method],
        )

    def _check_values(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                choices = ", ".join(map(str, known))
                raise UserError(f"{name} is {getattr(self, name)}; there are {choices}")
        for name, lowest in WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if not (self._is_left_open(name) or (type(value) is int and value >= lowest)):
                raise UserError(f"{name} is {value}; give a whole number from {lowest} on")
        for name in (*NUMBERS, *SHARES):
            value, limit = getattr(self, name), 1 if name in SHARES else math.inf
            if not (self._is_left_open(name) or (type(value) in (int, float) and 0 <= value < limit)):
                wanted = "a share below 1" if name in SHARES else "a number from 0 on"
                raise UserError(f"{name} is {value}; give {wanted}")

    def _is_left_open(self, name: str) -> bool:
        return getattr(self, name) is None and getattr(type(self), name) is None


def read_plan(path: Path) -> dict:
    """Return the hyper-parameters that a YAML file names.

    Raises:
        UserError: it cannot be read, or has a key that is none.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    known = [field.name for field in fields(Plan)]
    unknown = sorted(map(str, set(values) - set(known))) if isinstance(values, dict) else ["(no keys at all)"]
    if unknown:
        raise UserError(f"{path} has unknown keys {', '.join(unknown)}; there are {', '.join(known)}")
    return values
