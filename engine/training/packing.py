"""Labelled pictures as tensors: squares of the base's side with their masks, in files that are easily sent.

A pretraining reads nothing else, so it also runs on a machine where the data sets are not.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F

from engine.data import Annotation, DataSet
from engine.data.annotations import Prompts
from engine.errors import UserError
from engine.models.weights import write_tensors

LARGEST_PART_BYTES = 60 << 20


@dataclass(frozen=True)
class Labelled:
    """A structure that was looked for in a picture.

    Attributes:
        picture: its number in the set.
        prompts: as in `Annotation`.
        mask: its number in the set; None where the picture does not show the structure.
    """

    picture: int
    prompts: Prompts
    mask: int | None

    @property
    def plain_prompt(self) -> str:
        return self.prompts[0][0]


@dataclass(frozen=True)
class PackedSet:
    """The pictures of one split of a data set.

    Attributes:
        images: (pictures, 1 or 3, side, side) uint8.
        masks: (masks, side, side / 8) uint8; a byte holds eight pixels, the leftmost in its highest bit.
    """

    name: str
    images: Tensor
    masks: Tensor
    labelled: list[Labelled]

    @property
    def wordings(self) -> set[str]:
        return {word for item in self.labelled for words in item.prompts for word in words}


def unpack_masks(masks: Tensor) -> Tensor:
    """Return masks (n, side, side) float, 0 or 1, from their bits (n, side, side / 8)."""
    places = torch.arange(7, -1, -1, device=masks.device, dtype=torch.uint8)
    return (masks[..., None] >> places & 1).flatten(-2).float()


def pack(
    data_set: DataSet, side: int, folder: Path, on_picture: Callable[[int, int], None], at_most: int | None = None
) -> None:
    """Write the pictures of a data set and their masks as `000.safetensors`, `001.safetensors` … into a folder.

    A structure that is labelled in parts of a picture only is left out of it.

    Args:
        side: of the squares, in pixels, a multiple of 8.
        on_picture: called with pictures done and in all.
        at_most: so many pictures, chosen at random among those that show something; all when None.

    Raises:
        UserError: a picture or a mask is missing or damaged, or the disk is full.
    """
    by_image: dict = {}
    for annotation in data_set.annotations:
        by_image.setdefault(annotation.image, []).append(annotation)
    images = list(by_image)
    if at_most is not None:
        shown = [image for image in images if any(a.present is not False for a in by_image[image])]
        images = [shown[i] for i in sorted(np.random.default_rng(0).permutation(len(shown))[:at_most])]
    folder.mkdir(parents=True, exist_ok=True)
    squares: list[_Square] = []
    for done, image in enumerate(images, start=1):
        squares.append(_Square.of(data_set, by_image[image], side))
        if done == len(images) or sum(s.nbytes for s in squares) + squares[-1].nbytes > LARGEST_PART_BYTES:
            _write_part(folder / f"{len(list(folder.glob('*.safetensors'))):03}.safetensors", squares)
            squares = []
        on_picture(done, len(images))


@dataclass(frozen=True)
class _Square:
    """A picture (1 or 3, side, side) uint8, the bits of its masks, and all prompts with whether there is a mask."""

    image: Tensor
    masks: list[Tensor]
    prompts: list[tuple[Prompts, bool]]

    @property
    def nbytes(self) -> int:
        return 3 * self.image[0].nbytes + sum(mask.nbytes for mask in self.masks)

    @classmethod
    def of(cls, data_set: DataSet, annotations: Sequence[Annotation], side: int) -> "_Square":
        pixels = torch.from_numpy(np.ascontiguousarray(data_set.image(annotations[0]))).float()
        image = _to_square(pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1), side)
        if (image == image[:1]).all():
            image = image[:1]
        masks, prompts = [], []
        for annotation in annotations:
            if annotation.present is not False and data_set.known(annotation) is not None:
                continue  # it is labelled in parts of the picture only
            mask = torch.zeros(1, side, side)
            if annotation.present is not False:
                mask = _to_square(torch.from_numpy(data_set.mask(annotation).copy()).float()[None], side)
            prompts.append((annotation.prompts, bool(mask.any())))
            if mask.any():
                masks.append(torch.from_numpy(np.packbits(mask[0].numpy(), axis=-1)))
        return cls(image, masks, prompts)


def _to_square(channels: Tensor, side: int) -> Tensor:
    """Resize (channels, height, width) float in 0..255 to (channels, side, side) uint8."""
    resized = F.interpolate(channels[None], (side, side), mode="bilinear", antialias=True)[0]
    return resized.round().clamp(0, 255).byte()


def _write_part(path: Path, squares: Sequence[_Square]) -> None:
    channels = max(len(square.image) for square in squares)
    masks = [mask for square in squares for mask in square.masks]
    side = squares[0].image.shape[-1]
    tensors = {
        "images": torch.stack([square.image.expand(channels, -1, -1) for square in squares]),
        "masks": torch.stack(masks) if masks else torch.zeros(0, side, side // 8, dtype=torch.uint8),
    }
    prompts = [[number, *found] for number, square in enumerate(squares) for found in square.prompts]
    write_tensors(path, tensors, {"prompts": json.dumps(prompts)})


def read_pack(folder: Path) -> PackedSet:
    """Read what `pack` wrote.

    Raises:
        UserError: the folder holds no part, or one is damaged.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise UserError(f"{folder} holds no packed pictures; pack them by --data")
    images, masks, labelled = [], [], []
    pictures = count = 0
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                images.append(file.get_tensor("images"))
                masks.append(file.get_tensor("masks"))
                prompts = json.loads(file.metadata()["prompts"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged or no packed pictures ({error}); pack them again") from error
        for picture, wordings, is_shown in prompts:
            wordings = tuple(tuple(words) for words in wordings)
            labelled.append(Labelled(pictures + picture, wordings, count if is_shown else None))
            count += is_shown
        pictures += len(images[-1])
    channels = max(part.shape[1] for part in images)
    images = torch.cat([part.expand(-1, channels, -1, -1) for part in images])
    return PackedSet(folder.name, images, torch.cat(masks), labelled)
