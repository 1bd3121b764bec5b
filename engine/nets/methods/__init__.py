"""The methods by name. A further adapter is one file beside these one line in `ADAPTERS`,
and its name among `engine.choices.METHODS`."""

from torch import nn
from transformers import CLIPSegForImageSegmentation

from engine.choices import VARIANTS
from engine.errors import UserError
from engine.nets.adapter import Adapter, BaseShape
from engine.nets.clipseg import CLIPSeg
from engine.nets.cris import CRIS
from engine.nets.methods.dense import DenseAdapter, DenseEverywhereAdapter
from engine.nets.methods.lora import LoraAdapter
from engine.nets.methods.shallow import ShallowAdapter
from engine.nets.methods.telescopic import TelescopicAdapter
from engine.nets.methods.tuning import DecoderTuning, FullTuning
from engine.nets.prompted import PromptedNet
from engine.nets.san import SAN

ADAPTERS: dict[str, type[Adapter]] = {
    "shallow": ShallowAdapter,
    "dense": DenseAdapter,
    "dense-everywhere": DenseEverywhereAdapter,
    "telescopic": TelescopicAdapter,
    "lora": LoraAdapter,
    "decoder": DecoderTuning,
    "full": FullTuning,
}
BASELINES: dict[str, type[SAN] | type[CRIS]] = {"san": SAN, "cris": CRIS}
METHODS = ADAPTERS | BASELINES


def build_adapter(method: str, placement: str, shape: BaseShape, hidden_size: int | None = None) -> Adapter:
    """Build an adapter with fresh weights.

    Args:
        method: a key of `ADAPTERS`.
        placement: V (vision), VL (vision and language) or VLC (also the condition vector); "" for the methods
            that have none.
        shape: the base that it has to fit.
        hidden_size: width of the bottleneck; the paper's value for the method when None.

    Raises:
        ValueError: an unknown method or placement.
    """
    if method not in ADAPTERS:
        raise ValueError(f"unknown method '{method}'; there are {', '.join(ADAPTERS)}")
    kind = ADAPTERS[method]
    if placement not in kind.placements:
        known = ", ".join(kind.placements) or "none"
        raise ValueError(f"the method '{method}' has no placement '{placement}'; there are {known}")
    return kind(shape, placement, hidden_size or kind.hidden_size)


def build_model(
    method: str, network: nn.Module, placement: str, hidden_size: int | None = None, variant: str = VARIANTS[0]
) -> PromptedNet:
    """Build the net of a method on the network of a base.

    Args:
        method: a key of `METHODS`.
        network: a CLIPSeg of Hugging Face or, for the baselines, a CLIP of open_clip.
        placement, hidden_size: see `build_adapter`.
        variant: of a baseline: see SAN and CRIS.

    Raises:
        ValueError: an unknown method, placement or variant.
        UserError: the network is not of the kind that the method needs.
    """
    if method in METHODS and variant not in METHODS[method].variants:
        raise ValueError(f"the method '{method}' has no variant '{variant}'")
    if method in BASELINES:
        kind = BASELINES[method]
        sizes = {"hidden_size": hidden_size or kind.hidden_size} if kind.hidden_size else {}
        return kind(network, variant=variant, **sizes)
    if not isinstance(network, CLIPSegForImageSegmentation):
        raise UserError(f"the method '{method}' needs a CLIPSeg as base, and this is a CLIP; choose another base")
    return CLIPSeg(network, build_adapter(method, placement, BaseShape.of(network.config), hidden_size))
