"""What an adapter may change of a frozen CLIPSeg, and the bottleneck of the paper's adapters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from transformers import CLIPSegConfig

from engine.choices import PLACEMENTS, VARIANTS

CONDITION_HIDDEN_SIZE = 256


@dataclass(frozen=True)
class BaseShape:
    """The widths and depths of a base that an adapter has to fit."""

    vision_size: int
    text_size: int
    condition_size: int
    extract_layers: tuple[int, ...]

    @classmethod
    def of(cls, config: CLIPSegConfig) -> "BaseShape":
        return cls(
            vision_size=config.vision_config.hidden_size,
            text_size=config.text_config.hidden_size,
            condition_size=config.projection_dim,
            extract_layers=tuple(config.extract_layers),
        )


class Adapter(nn.Module):
    """The places where an adapter may act; every one leaves its input as it is until a method overrides it.

    Features have the shape (batch, tokens, width) and come back in the same shape. `layer` counts the
    layers of an encoder from 0.

    Attributes:
        hidden_size: the width that the method has when none is asked for; 0 where there is nothing to choose.
        placements: those that the method can have; the first is taken when none is asked for.
        variants: those of its net.
        frozen_encoder: the vision encoder gives what it gave without the adapter.
        changes_base: weights of the base itself are trained.
    """

    hidden_size: ClassVar[int] = 0
    placements: ClassVar[tuple[str, ...]] = PLACEMENTS
    variants: ClassVar[tuple[str, ...]] = VARIANTS[:1]
    frozen_encoder: ClassVar[bool] = False
    changes_base: ClassVar[bool] = False

    def attach(self, model: nn.Module) -> None:
        """Take hold of parts of the frozen base, once, when both become one model (see `CLIPSeg`)."""

    def vision_attention(self, layer: int, features: Tensor) -> Tensor:
        """Adapt what self-attention of a vision layer gives, before the residual is added."""
        return features

    def vision_mlp(self, layer: int, features: Tensor) -> Tensor:
        """Adapt what the MLP of a vision layer gives, before the residual is added."""
        return features

    def text_attention(self, layer: int, features: Tensor) -> Tensor:
        """Adapt what self-attention of a text layer gives, before the residual is added."""
        return features

    def text_mlp(self, layer: int, features: Tensor) -> Tensor:
        """Adapt what the MLP of a text layer gives, before the residual is added."""
        return features

    def activation(self, index: int, features: Tensor) -> Tensor:
        """Adapt the vision activation taken out after layer `extract_layers[index]`, for the decoder alone."""
        return features

    def condition(self, projected: Tensor, end_of_text: Sequence[Tensor]) -> Tensor:
        """Adapt the condition vector.

        Args:
            projected: (prompts, condition_size), the projected end-of-text token of the last layer.
            end_of_text: the end-of-text token after each of `extract_layers`, each (prompts, text_size).
        """
        return projected


class Bottleneck(nn.Module):
    """f + relu(W2·relu(W1·f + b1) + b2): the adapter block of VLSM-Adapter (MICCAI 2024, section 2.2)."""

    def __init__(self, size: int, hidden_size: int):
        super().__init__()
        self.down = nn.Linear(size, hidden_size)
        self.up = nn.Linear(hidden_size, size)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.up(self.down(features).relu()).relu()


def bottlenecks(count: int, size: int, hidden_size: int) -> nn.ModuleList:
    """Return `count` independent bottlenecks of the same size."""
    return nn.ModuleList(Bottleneck(size, hidden_size) for _ in range(count))


def condition_adapter(shape: BaseShape, placement: str) -> nn.Module:
    """Return the adapter of the condition vector: a bottleneck in placement VLC, otherwise the identity."""
    return Bottleneck(shape.condition_size, CONDITION_HIDDEN_SIZE) if placement == "VLC" else nn.Identity()
