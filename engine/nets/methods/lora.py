"""LoRA: low-rank updates of the query and value projections in self-attention (Hu et al., ICLR 2022)."""

from collections.abc import Sequence

from torch import Tensor, nn

from engine.nets.adapter import Adapter, BaseShape, condition_adapter

ALPHA = 16  # the update is scaled by alpha / rank


class LoraAdapter(Adapter):
    """W·x becomes W·x + (alpha / rank)·B·A·x in the layers that dense adapters act on, `hidden_size` being the
    rank. B starts at zero, so training starts from the base as it is."""

    hidden_size = 8

    def __init__(self, shape: BaseShape, placement: str, hidden_size: int):
        super().__init__()
        depth = max(shape.extract_layers)
        self.vision = _updates(depth, shape.vision_size, hidden_size)
        self.text = _updates(depth if "L" in placement else 0, shape.text_size, hidden_size)
        self.conditional: nn.Module = condition_adapter(shape, placement)

    def attach(self, model: nn.Module) -> None:
        for updates, encoder in ((self.vision, model.vision), (self.text, model.text)):
            for update, layer in zip(updates, encoder.encoder.layers, strict=False):
                layer.self_attn.q_proj.register_forward_hook(update["query"].add_to)
                layer.self_attn.v_proj.register_forward_hook(update["value"].add_to)

    def condition(self, projected: Tensor, end_of_text: Sequence[Tensor]) -> Tensor:
        return self.conditional(projected)


class LowRankUpdate(nn.Module):
    def __init__(self, size: int, rank: int):
        super().__init__()
        self.down = nn.Linear(size, rank, bias=False)
        self.up = nn.Linear(rank, size, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale = ALPHA / rank

    def add_to(self, projection: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Add the update to what a linear layer gives; a forward hook."""
        return output + self.scale * self.up(self.down(inputs[0]))


def _updates(depth: int, size: int, rank: int) -> nn.ModuleList:
    pairs = ({name: LowRankUpdate(size, rank) for name in ("query", "value")} for _ in range(depth))
    return nn.ModuleList(nn.ModuleDict(pair) for pair in pairs)
