"""The adapter methods by name. A further method is one file beside these and one line in `METHODS`."""

from engine.model.adapter import PLACEMENTS, Adapter, BaseShape
from engine.model.methods.dense import DenseAdapter
from engine.model.methods.shallow import ShallowAdapter

METHODS: dict[str, type[Adapter]] = {
    "shallow": ShallowAdapter,
    "dense": DenseAdapter,
}


def build_adapter(method: str, placement: str, shape: BaseShape, hidden_size: int | None = None) -> Adapter:
    """Build an adapter with fresh weights.

    Args:
        method: a key of `METHODS`.
        placement: V (vision), VL (vision and language) or VLC (also the condition vector).
        shape: the base that it has to fit.
        hidden_size: width of the bottleneck; the paper's value for the method when None.

    Raises:
        ValueError: an unknown method or placement.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}'; there are {', '.join(METHODS)}")
    if placement not in PLACEMENTS:
        raise ValueError(f"unknown placement '{placement}'; there are {', '.join(PLACEMENTS)}")
    kind = METHODS[method]
    return kind(shape, placement, hidden_size or kind.hidden_size)
