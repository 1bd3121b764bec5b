"""A model on its device, ready to segment; all that leave their base as it is share one copy of its weights."""

import copy
from pathlib import Path
from weakref import WeakValueDictionary, finalize

import torch
from torch import nn

from engine.models.bases import Base
from engine.models.bundle import AdapterCard, load_model
from engine.nets.faster import fold_activations, pack_for_cpu
from engine.nets.methods import ADAPTERS, BASELINES
from engine.nets.prompted import PromptedNet

_networks: WeakValueDictionary[tuple, nn.Module] = WeakValueDictionary()  # held by the models that share them


def place_model(
    base: Base, folder: Path | None, card: AdapterCard | None, device: torch.device, dtype: torch.dtype
) -> PromptedNet:
    """Load a model for inference, by as few operations and with as little memory as its device allows.

    It can be neither trained nor moved nor saved.

    Args:
        folder, card: the bundle of the adapter and what `read_card` read from it; the base alone when None.

    Raises:
        UserError: see `load_model`.
    """
    network = _network(base, device, dtype) if _can_share(base, card) else None
    model = load_model(base, folder, card, network and _twin(network))
    if network is not None:
        finalize(model, lambda network: None, network)  # holds it as long as the model is there
    _prepare(model, device, dtype)
    return model


def _can_share(base: Base, card: AdapterCard | None) -> bool:
    if card is None:
        return base.kind == "clipseg"
    return card.method in ADAPTERS and not ADAPTERS[card.method].changes_base


def _network(base: Base, device: torch.device, dtype: torch.dtype) -> nn.Module:
    key = base, device, dtype
    network = _networks.get(key)
    if network is None:
        network = base.load_network()
        _prepare(network, device, dtype)
        _networks[key] = network  # not before: where memory runs out meanwhile, a part of it has moved
    return network


def _twin(network: nn.Module) -> nn.Module:
    """Return a network of its own, for adapters to take hold of, with the very weights of another."""
    weights = {id(weight): weight for weight in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, weights)


def _prepare(net: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    fold_activations(net)
    net.to(device, dtype)
    if device.type == "cpu" and not isinstance(net, tuple(BASELINES.values())):
        pack_for_cpu(net)
