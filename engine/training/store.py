"""Packed pictures of many sets as one, and what is drawn from them: pictures, prompts about them, masks."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from engine.data.annotations import Prompts
from engine.data.synonyms import Wordings, exchange_sides, misspell
from engine.errors import UserError
from engine.prompts import OTHER_STRUCTURES, absent_from
from engine.training.packing import PackedSet, unpack_masks

MISSPELT = 0.05  # of the prompts


@dataclass(frozen=True)
class Source:
    """A data set of a recipe.

    Attributes:
        folder: its name.
        region: what sets of other regions show is not in its pictures.
        weight: how often its pictures are drawn, against those of the others.
        mirror: whether left and right may be exchanged.
        complete: whether each picture has all of the set's structures labelled that it shows.
        planes: in which volumes are sliced.
        pictures: at most so many are taken; all when None.
    """

    folder: str
    region: str
    weight: float
    mirror: bool
    complete: bool = False
    planes: tuple[str, ...] = ("axial",)
    pictures: int | None = None


@dataclass(frozen=True)
class Asking:
    """How pictures are asked about (see `Recipe`)."""

    prompts_per_image: int
    absent_rate: float
    plain_rate: float


class PictureStore:
    """The pictures of some packed sets, numbered through, on a device.

    Args:
        sets, sources: as many, each of one data set.

    Raises:
        UserError: a set has a wording that is held out.

    Attributes:
        mirror, coloured: (pictures,) bool, whether each may be mirrored, and whether it has colours.
        side: of the pictures, in pixels.
    """

    def __init__(
        self, sets: Sequence[PackedSet], sources: Sequence[Source], wordings: Wordings, device: torch.device
    ):
        self._images = [s.images.to(device) for s in sets]
        self._masks = torch.cat([s.masks for s in sets]).to(device)
        self._wordings = wordings
        self.side = self._masks.shape[1]
        counts = [len(s.images) for s in sets]
        self._set_of = np.repeat(np.arange(len(sets)), counts)
        self._first = np.cumsum([0, *counts])
        self._weights = np.concatenate(
            [np.full(n, source.weight / n) for n, source in zip(counts, sources, strict=True)]
        )
        self._weights /= self._weights.sum()
        self.mirror = torch.tensor([sources[s].mirror for s in self._set_of])
        self.coloured = torch.tensor([sets[s].images.shape[1] == 3 for s in self._set_of])
        self._shown: dict[int, list[tuple[Prompts, int, float]]] = defaultdict(list)
        self._missing: dict[int, list[Prompts]] = defaultdict(list)
        first_mask = 0
        for index, packed in enumerate(sets):
            self._add(packed, sources[index], int(self._first[index]), first_mask)
            first_mask += len(packed.masks)
        plain = [{item.plain_prompt for item in s.labelled} for s in sets]
        absent = absent_elsewhere(plain, [s.wordings for s in sets], sources, wordings)
        self._elsewhere: list[list[Prompts]] = [[((name,),) for name in structures] for structures in absent]

    def __len__(self) -> int:
        return len(self._set_of)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all pictures, in their order."""
        digest = hashlib.sha256()
        for images in self._images:
            digest.update(images.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def _add(self, packed: PackedSet, source: Source, first_picture: int, first_mask: int) -> None:
        by_structure = Counter(item.plain_prompt for item in packed.labelled if item.mask is not None)
        prompts_of = {item.plain_prompt: item.prompts for item in packed.labelled}
        if held_out := self._wordings.held_out_among(packed.wordings):
            raise UserError(f"'{held_out}' of the set {packed.name} is held out; it must not be trained on")
        found: dict[int, set[str]] = defaultdict(set)
        for item in packed.labelled:
            picture = first_picture + item.picture
            if item.mask is not None:
                rarity = by_structure[item.plain_prompt] ** -0.5
                self._shown[picture].append((item.prompts, first_mask + item.mask, rarity))
                found[picture].add(item.plain_prompt)
            elif not source.complete:
                self._missing[picture].append(item.prompts)
        if source.complete:
            for picture in range(first_picture, first_picture + len(packed.images)):
                self._missing[picture] = [p for name, p in prompts_of.items() if name not in found[picture]]

    def draw(self, count: int, random: np.random.Generator) -> Tensor:
        """Return numbers of pictures (count,) int64, each set drawn by its weight."""
        return torch.from_numpy(random.choice(len(self), count, p=self._weights))

    def images(self, pictures: Tensor) -> Tensor:
        """Return images (n, 3, side, side) float in 0..1."""
        sets = self._set_of[pictures.numpy()]
        chosen = [
            self._images[s][int(p) - int(self._first[s])].expand(3, -1, -1)
            for p, s in zip(pictures, sets, strict=True)
        ]
        return torch.stack(chosen).float() / 255

    def masks(self, numbers: Tensor) -> Tensor:
        """Return masks (…, side, side) float, 0 or 1, by their numbers (…) int64; empty ones for −1."""
        bits = self._masks[numbers.clamp(min=0).to(self._masks.device)]
        bits = bits * (numbers >= 0).to(bits)[..., None, None]
        return unpack_masks(bits.flatten(0, -3)).unflatten(0, numbers.shape)

    def ask(
        self, pictures: Tensor, mirrored: Tensor, asking: Asking, random: np.random.Generator
    ) -> tuple[list[str], Tensor]:
        """Draw prompts about pictures.

        Args:
            mirrored: (n,) bool, for which of them left is right.

        Returns:
            k prompts for each picture, picture by picture, and the numbers of their masks (n, k) int64; −1 where
            the picture does not show what the prompt asks for.
        """
        prompts, masks = [], []
        for picture, is_mirrored in zip(pictures.tolist(), mirrored.tolist(), strict=True):
            asked = self._asked(picture, asking, random)
            for wording, mask in asked:
                if is_mirrored:
                    wording = exchange_sides(wording)
                prompts.append(misspell(wording, random) if random.random() < MISSPELT else wording)
                masks.append(mask)
        return prompts, torch.tensor(masks).view(len(pictures), asking.prompts_per_image)

    def _asked(self, picture: int, asking: Asking, random: np.random.Generator) -> list[tuple[str, int]]:
        shown, missing = self._shown[picture], self._missing[picture]
        rarity = np.array([item[2] for item in shown])
        order = cycle(random.choice(len(shown), len(shown), False, rarity / rarity.sum()) if shown else ())
        elsewhere = self._elsewhere[self._set_of[picture]]
        asked = []
        for _ in range(asking.prompts_per_image):
            wanted = next(order, None) if random.random() >= asking.absent_rate else None
            if wanted is not None:
                prompts, mask, _ = shown[wanted]
            else:
                among = missing if missing and random.random() < 0.5 else elsewhere
                prompts, mask = among[random.integers(len(among))], -1
            asked.append((self._wordings.draw(prompts, asking.plain_rate, random), mask))
        return asked


def absent_elsewhere(
    plain: Sequence[set[str]], words: Sequence[set[str]], sources: Sequence[Source], wordings: Wordings
) -> list[list[str]]:
    """Return for each set what its pictures cannot show: structures of other regions, and `OTHER_STRUCTURES`.

    Args:
        plain, words: the plain prompts of each set, and all its wordings.
    """
    structures = [{wordings.structure(prompt) for prompt in prompts} for prompts in plain]
    absent = []
    for own, source in zip(words, sources, strict=True):
        here = {n for names, s in zip(structures, sources, strict=True) if s.region == source.region for n in names}
        absent.append(absent_from(own, sorted({*OTHER_STRUCTURES}.union(*structures) - here)))
    return absent
