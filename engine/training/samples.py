"""Training samples: annotated images made ready for a base, with prompts drawn at random and absent ones among
them. Every draw depends on the seed, the epoch and the position alone, so a run can be repeated."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data import set_track_meta
from monai.transforms import (
    Compose,
    Flipd,
    RandAdjustContrastd,
    RandAffined,
    RandGaussianNoised,
    RandScaleIntensityd,
)
from torch import Tensor
from torch.nn import functional as F

from engine.data import Annotation, DataSet
from engine.training.losses import UNKNOWN
from engine.training.plan import BILINEAR, NEAREST

set_track_meta(False)

CACHE_BYTES = 6 << 30
SMALLEST_SHARE = 1e-6
SIDED_WORDS = {"left", "right", "anterior", "posterior"}
KEYS = ("image", "masks")


@dataclass(frozen=True)
class Sample:
    """An image with some prompts and their masks.

    Attributes:
        key: of the image; equal for all samples of one.
        image: (3, side, side) float in 0..1; None where it was not wanted.
        prompts: n wordings.
        masks: (n, side, side) float: 1 for the structure, 0 beside it, and `UNKNOWN` where nobody has labelled; all
            0 for an absent prompt.
    """

    key: Hashable
    image: Tensor | None
    prompts: tuple[str, ...]
    masks: Tensor


def augmentation() -> Compose:
    """Return the random changes of shape and intensity: rotation by at most 17°, scale, shift, contrast, noise."""
    affine = RandAffined(
        KEYS,
        prob=0.9,
        rotate_range=0.3,
        scale_range=((-0.3, 0.25), (-0.3, 0.25)),
        shear_range=0.1,
        translate_range=(30, 30),
        mode=("bilinear", "nearest"),
        padding_mode="reflection",
    )
    return Compose(
        [
            affine,
            RandAdjustContrastd("image", prob=0.5, gamma=(0.6, 1.7)),
            RandScaleIntensityd("image", prob=0.5, factors=0.25, channel_wise=True),
            RandGaussianNoised("image", prob=0.2, std=0.04),
        ]
    )


class Sampler:
    """Draws samples from one data set.

    Args:
        data_set: the labelled images.
        side: of the base's square, in pixels.
        augment: change shape and intensity at random.
        mirror: also mirror images whose prompts name no side (needs `augment`).
        absent_prompts: wordings that fit no image of this data set.
        absent_rate: how often a prompt is replaced by an absent one, with an empty mask.
        prompts_per_image: how many prompts each image is asked for; the further ones name other structures
            that are in the image, or absent ones where there are none.
        plain_rate: how often the plain class prompt is used rather than any wording.
        mask_resize: how masks come to the square: bilinear, cut at one half, or nearest.
    """

    def __init__(
        self,
        data_set: DataSet,
        side: int,
        augment: bool = False,
        mirror: bool = False,
        absent_prompts: Sequence[str] = (),
        absent_rate: float = 0.0,
        prompts_per_image: int = 1,
        plain_rate: float = 0.0,
        mask_resize: str = BILINEAR,
    ):
        self.annotations = data_set.annotations
        self.side = side
        self._data_set = data_set
        self._augmentation = augmentation() if augment else None
        self._mirror = mirror
        self._absent_prompts = tuple(absent_prompts)
        self._absent_rate = absent_rate if absent_prompts else 0.0
        self._prompts_per_image = prompts_per_image
        self._plain_rate = plain_rate
        self._mask_resize = mask_resize
        self._resized: dict[Hashable, Tensor] = {}
        self._resized_bytes = 0
        self._by_image: dict[Hashable, list[Annotation]] = {}
        for annotation in self.annotations:
            self._by_image.setdefault(annotation.image, []).append(annotation)

    def draw(
        self, position: int, seed: Sequence[int], wants_image: Callable[[Hashable], bool] = lambda key: True
    ) -> Sample:
        """Return the sample of the annotation at `position`; equal seeds give equal samples.

        Args:
            wants_image: whether the image of a key is needed; it always is for augmentation.
        """
        random = np.random.default_rng([*seed, position])
        annotation = self.annotations[position]
        prompts, masks = zip(*self._prompted_masks(annotation, random), strict=True)
        if self._augmentation is None and not wants_image(annotation.image):
            return Sample(annotation.image, None, prompts, torch.stack(masks))
        sample = {"image": self._image(annotation), "masks": torch.stack(masks)}
        if self._augmentation is not None:
            sample = self._augmented(sample, prompts, random)
        image = sample["image"].expand(3, -1, -1).clamp(0, 1)
        return Sample(annotation.image, image, prompts, sample["masks"].round())

    def _prompted_masks(self, annotation: Annotation, random: np.random.Generator) -> list[tuple[str, Tensor]]:
        chosen: list[tuple[str, Tensor]] = []
        here = self._by_image[annotation.image]
        others = [a for a in here if a is not annotation and a.present is not False]
        absent = [a for a in here if a.present is False]
        for _ in range(self._prompts_per_image):
            if random.random() < self._absent_rate or (chosen and not others):
                chosen.append((self._absent_wording(absent, random), torch.zeros(self.side, self.side)))
            else:
                wanted = annotation if not chosen else others[random.integers(len(others))]
                chosen.append((self._wording(wanted, random), self._mask(wanted)))
        return chosen

    def _absent_wording(self, absent: Sequence[Annotation], random: np.random.Generator) -> str:
        number = random.integers(len(absent) + len(self._absent_prompts))
        if number < len(absent):
            return self._wording(absent[number], random)
        return self._absent_prompts[number - len(absent)]

    def _wording(self, annotation: Annotation, random: np.random.Generator) -> str:
        if random.random() < self._plain_rate:
            return annotation.plain_prompt
        wordings = annotation.prompts[random.integers(len(annotation.prompts))]
        return wordings[random.integers(len(wordings))]

    def _augmented(self, sample: dict, prompts: Sequence[str], random: np.random.Generator) -> dict:
        sided = any(SIDED_WORDS & set(prompt.lower().split()) for prompt in prompts)
        if self._mirror and not sided and random.random() < 0.5:
            sample = Flipd(KEYS, spatial_axis=1)(sample)
        self._augmentation.set_random_state(seed=int(random.integers(2**31)))
        return self._augmentation(sample)

    def _image(self, annotation: Annotation) -> Tensor:
        """Return the image (1 or 3, side, side) in 0..1."""

        def resize() -> Tensor:
            pixels = torch.from_numpy(np.ascontiguousarray(self._data_set.image(annotation))).float()
            channels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
            return self._to_square(channels).round().clamp(0, 255).byte()

        return self._once(annotation.image, resize).float() / 255

    def _mask(self, annotation: Annotation) -> Tensor:
        """Return the mask (side, side): 0, 1 or `UNKNOWN`."""

        def resize() -> Tensor:
            mask, known = self._data_set.mask(annotation), self._data_set.known(annotation)
            if known is None:
                return self._shares(mask).round().to(torch.int8)
            shares = self._shares(known)  # of what is known of a pixel, more than half has to be the structure
            resized = (self._shares(mask & known) / shares.clamp(min=SMALLEST_SHARE)).round()
            return torch.where(shares > 0.5, resized, UNKNOWN).to(torch.int8)

        return self._once((annotation.image, annotation.target), resize).float()

    def _shares(self, mask: np.ndarray) -> Tensor:
        return self._to_square(torch.from_numpy(np.ascontiguousarray(mask)).float()[None], self._mask_resize)[0]

    def _to_square(self, channels: Tensor, resize: str = BILINEAR) -> Tensor:
        size = (self.side, self.side)
        if resize == NEAREST:
            return F.interpolate(channels[None], size, mode="nearest-exact")[0]  # as Pillow does it
        return F.interpolate(channels[None], size, mode="bilinear", antialias=True)[0]

    def _once(self, key: Hashable, resize: Callable[[], Tensor]) -> Tensor:
        """Return what was resized before, or resize it; it is kept, as bytes, while there is room."""
        kept = self._resized.get(key)
        if kept is None:
            kept = resize()
            if self._resized_bytes + kept.nbytes <= CACHE_BYTES:
                self._resized[key] = kept
                self._resized_bytes += kept.nbytes
        return kept


def collate(samples: Sequence[Sample]) -> tuple[list[str], Tensor]:
    """Return the n · k prompts of n samples, image by image, and their masks (n · k, side, side)."""
    prompts = [prompt for sample in samples for prompt in sample.prompts]
    return prompts, torch.cat([sample.masks for sample in samples])
