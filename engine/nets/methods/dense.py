"""Dense adapters: bottlenecks inside every encoder layer that the decoder's deepest activation passes."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from engine.nets.adapter import Adapter, BaseShape, bottlenecks, condition_adapter


class DenseAdapter(Adapter):
    """Two bottlenecks in each of the layers 0 … max(extract_layers) - 1: after self-attention and after the
    MLP (VLSM-Adapter, section 2.3). The deepest extracted layer itself has none, as in the reference."""

    hidden_size = 64
    further_layers: ClassVar[int] = 0  # of the vision encoder

    def __init__(self, shape: BaseShape, placement: str, hidden_size: int):
        super().__init__()
        depth = max(shape.extract_layers)
        vision_depth = depth + self.further_layers
        text_depth = depth if "L" in placement else 0
        self.vision_attentions = bottlenecks(vision_depth, shape.vision_size, hidden_size)
        self.vision_mlps = bottlenecks(vision_depth, shape.vision_size, hidden_size)
        self.text_attentions = bottlenecks(text_depth, shape.text_size, hidden_size)
        self.text_mlps = bottlenecks(text_depth, shape.text_size, hidden_size)
        self.conditional: nn.Module = condition_adapter(shape, placement)

    def vision_attention(self, layer: int, features: Tensor) -> Tensor:
        return _at(self.vision_attentions, layer, features)

    def vision_mlp(self, layer: int, features: Tensor) -> Tensor:
        return _at(self.vision_mlps, layer, features)

    def text_attention(self, layer: int, features: Tensor) -> Tensor:
        return _at(self.text_attentions, layer, features)

    def text_mlp(self, layer: int, features: Tensor) -> Tensor:
        return _at(self.text_mlps, layer, features)

    def condition(self, projected: Tensor, end_of_text: Sequence[Tensor]) -> Tensor:
        return self.conditional(projected)


class DenseEverywhereAdapter(DenseAdapter):
    """Dense adapters that are also in the deepest extracted vision layer, the 10th of the public base."""

    further_layers = 1


def _at(adapters: nn.ModuleList, layer: int, features: Tensor) -> Tensor:
    return adapters[layer](features) if layer < len(adapters) else features
