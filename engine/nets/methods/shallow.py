"""Shallow adapters: bottlenecks on what the encoders give to the decoder, none inside the encoders."""

from collections.abc import Sequence

from torch import Tensor, nn

from engine.nets.adapter import Adapter, BaseShape, bottlenecks, condition_adapter


class ShallowAdapter(Adapter):
    """One bottleneck on each extracted vision activation; with VL, one on each extracted end-of-text token,
    whose sum is added to the condition vector (VLSM-Adapter, section 2.3)."""

    hidden_size = 512
    frozen_encoder = True

    def __init__(self, shape: BaseShape, placement: str, hidden_size: int):
        super().__init__()
        count = len(shape.extract_layers)
        self.vision = bottlenecks(count, shape.vision_size, hidden_size)
        self.text = bottlenecks(count if "L" in placement else 0, shape.text_size, hidden_size)
        self.conditional: nn.Module = condition_adapter(shape, placement)

    def activation(self, index: int, features: Tensor) -> Tensor:
        return self.vision[index](features)

    def condition(self, projected: Tensor, end_of_text: Sequence[Tensor]) -> Tensor:
        tokens = (adapter(token) for adapter, token in zip(self.text, end_of_text, strict=False))
        return sum(tokens, start=self.conditional(projected))
