"""Checkpoints of a training: weights, the optimiser's state and where the run stands, in one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from engine.errors import UserError
from engine.models.weights import write_tensors

Parameters = Mapping[str, nn.Parameter]


def save_checkpoint(
    path: Path,
    parameters: Parameters,
    optimizer: torch.optim.Optimizer,
    state: dict,
    further: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint in one step: a process that is killed meanwhile leaves the one before.

    Args:
        parameters: by name; those of `optimizer`.
        state: all else that is needed to go on; goes through JSON.
        further: tensors to keep beside the parameters.
    """
    tensors = {f"parameter.{name}": parameter for name, parameter in parameters.items()}
    tensors |= {f"further.{name}": tensor for name, tensor in (further or {}).items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = value
    write_tensors(path, tensors, {"state": json.dumps(state)})


def check_checkpoint(path: Path) -> None:
    """Refuse to go on where there is nothing to go on from.

    Raises:
        UserError: there is no checkpoint.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path} to go on from; start without --resume")


def load_checkpoint(
    path: Path, parameters: Parameters, optimizer: torch.optim.Optimizer
) -> tuple[dict, dict[str, Tensor]]:
    """Put a checkpoint back into `parameters` and `optimizer`.

    Returns:
        the state and the further tensors that were saved.

    Raises:
        UserError: there is no checkpoint, or it is of another training.
    """
    check_checkpoint(path)
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        for name, parameter in parameters.items():
            parameter.data.copy_(tensors[f"parameter.{name}"])
            prefix = f"optimizer.{name}."
            moments = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if moments:
                optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in moments.items()}
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a checkpoint of this training; start without --resume") from error
    return state, {k.removeprefix("further."): v for k, v in tensors.items() if k.startswith("further.")}
