"""The hyper-parameters of a training, and what of them is refused."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml

from engine.choices import LOSSES, METHODS
from engine.errors import UserError
from engine.imaging.volumes.planes import ALL_PLANES, CHANNELS, PLANES, SLICE

# shallow and dense: the paper's; san and cris: its benchmark's; the others: what is usual for them
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
PLATEAU, COSINE = SCHEDULES = ("plateau", "cosine")
CHOICES = {
    "method": METHODS,
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
    "seed": 0,
}
NUMBERS = ("learning_rate", "weight_decay", "gradient_clip", "dice_weight", "cross_entropy_weight")
SHARES = ("absent_rate", "plateau_factor")


@dataclass(frozen=True)
class Plan:
    """The hyper-parameters; the defaults are the paper's where it has them (VLSM-Adapter, section 3).

    Attributes:
        placement, hidden_size, learning_rate: the method's own when None.
        planes: in which volumes are sliced: axial, coronal, sagittal or all.
        channels: see `engine.imaging.volumes.planes.CHANNELS`.
        samples_per_epoch: annotations drawn in an epoch; every one that is present when None.
        absent_rate: the share of images without the structure among an epoch's, as far as there are any, and the
            share of prompts that are replaced by that of something absent; both have empty masks.
        loss: one of `LOSSES`; the two weights are of its parts.
        schedule: of the learning rate: "plateau", the paper's, lowers it when validation stops improving; "cosine"
            lowers it to 1 % over `epochs`, which suits a run whose length is known.
        plateau_epochs: without a lower validation loss, before the rate is multiplied by `plateau_factor`.
        patience_epochs: without a better validation Dice (or, where that is equal, a lower loss), before training
            stops.
    """

    method: str = "dense"
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
    schedule: str = PLATEAU
    plateau_epochs: int = 5
    plateau_factor: float = 0.3
    patience_epochs: int = 20
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
