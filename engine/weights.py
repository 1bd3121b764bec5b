"""Writing safetensors files, which are the only weights that are ever loaded."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import UserError
from engine.files import replacing


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors by name in one step (see `replacing`).

    Raises:
        UserError: the disk is full or the folder cannot be written; the file that was there stays as it was.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(on_cpu, temporary, metadata)
        except SafetensorError as error:  # its kind for everything that the operating system says
            raise UserError(f"cannot write {path}: {error}") from error
