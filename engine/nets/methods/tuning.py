"""Fine-tuning: no new weights; parts of the base itself are trained, and the bundle holds all of them."""

from typing import ClassVar

from torch import nn

from engine.nets.adapter import Adapter, BaseShape


class DecoderTuning(Adapter):
    """The decoder alone: what the reference's code trains as "end-to-end CLIPSeg" (1,127,009 parameters of the
    public base), since Hugging Face's forward lets no gradient into the encoders."""

    placements = ("",)
    frozen_encoder = True
    changes_base = True
    parts: ClassVar[tuple[str, ...]] = ("decoder",)

    def __init__(self, shape: BaseShape, placement: str, hidden_size: int):
        super().__init__()

    def attach(self, model: nn.Module) -> None:
        for name in self.parts:
            self.add_module(name, getattr(model, name).requires_grad_(True))


class FullTuning(DecoderTuning):
    """Every weight that the logits depend on: true end-to-end fine-tuning."""

    frozen_encoder = False
    parts = ("vision", "text", "text_projection", "decoder")

    def attach(self, model: nn.Module) -> None:
        super().attach(model)
        model.vision.post_layernorm.requires_grad_(False)  # the logits do not depend on it
