"""The methods by name. A further adapter is one file beside these and one line in `METHODS`."""

from torch import nn

from engine.model.adapter import Adapter, BaseShape
from engine.model.clipseg import CLIPSeg
from engine.model.methods.dense import DenseAdapter, DenseEverywhereAdapter
from engine.model.methods.lora import LoraAdapter
from engine.model.methods.shallow import ShallowAdapter
from engine.model.methods.telescopic import TelescopicAdapter
from engine.model.methods.tuning import DecoderTuning, FullTuning
from engine.model.prompted import PromptedNet

METHODS: dict[str, type[Adapter]] = {
    "shallow": ShallowAdapter,
    "dense": DenseAdapter,
    "dense-everywhere": DenseEverywhereAdapter,
    "telescopic": TelescopicAdapter,
    "lora": LoraAdapter,
    "decoder": DecoderTuning,
    "full": FullTuning,
}


def build_adapter(method: str, placement: str, shape: BaseShape, hidden_size: int | None = None) -> Adapter:
    """Build an adapter with fresh weights.

    Args:
        method: a key of `METHODS`.
        placement: V (vision), VL (vision and language) or VLC (also the condition vector); "" for the methods
            that have none.
        shape: the base that it has to fit.
        hidden_size: width of the bottleneck; the paper's value for the method when None.

    Raises:
        ValueError: an unknown method or placement.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}'; there are {', '.join(METHODS)}")
    kind = METHODS[method]
    if placement not in kind.placements:
        known = ", ".join(kind.placements) or "none"
        raise ValueError(f"the method '{method}' has no placement '{placement}'; there are {known}")
    return kind(shape, placement, hidden_size or kind.hidden_size)


def build_model(method: str, network: nn.Module, placement: str, hidden_size: int | None = None) -> PromptedNet:
    """Build the net of a method on the network of a base (see `build_adapter`)."""
    adapter = build_adapter(method, placement, BaseShape.of(network.config), hidden_size)
    return CLIPSeg(network, adapter)
