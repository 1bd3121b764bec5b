"""Writing safetensors files, which are the only weights that are ever loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engine.files import replacing

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str] | None = None) -> None:
    """Write tensors by name in one step (see `replacing`).

    Raises:
        UserError: the disk is full or the folder cannot be written; the file that was there stays as it was.
    """
    from safetensors.torch import save  # it loads PyTorch, which those who only read cards do without

    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(on_cpu, metadata)  # its own writing to a file leaves another one when it is killed
    with replacing(path) as temporary:
        temporary.write_bytes(content)
