"""Random changes of shape and intensity, for many squares at once and on any device."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

TURN, SHEAR, SHIFT = 0.3, 0.1, 0.23  # at most: radians, share, and share of half a side
ZOOM, STRETCH = 0.3, 0.15  # at most, as logarithms: of both sides, and of one against the other
GAMMA, GAIN, TINT = 0.5, 0.25, 0.1  # at most, as logarithms; a tint is a gain of one channel
NOISE, BLUR = 0.05, 0.8  # at most: standard deviation in 0..1, and share of the mean of 3 × 3 pixels


@dataclass(frozen=True)
class Changes:
    """What is done to n squares; a tensor with one row for each.

    Attributes:
        places: (n, 2, 3) from a place in the changed square to one in the old, both in −1..1.
        mirrored: (n,) bool, whether left and right were exchanged.
        gamma: (n,) exponents.
        gain: (n, 3) factors of the channels.
        blur: (n,) share of a blurred square; negative for a sharpened one.
        noise: (n,) standard deviation of noise.
    """

    places: Tensor
    mirrored: Tensor
    gamma: Tensor
    gain: Tensor
    blur: Tensor
    noise: Tensor

    @classmethod
    def draw(cls, mirror: Tensor, coloured: Tensor, seed: int) -> "Changes":
        """Draw changes on the CPU; equal seeds give equal ones.

        Args:
            mirror, coloured: (n,) bool, whether a square may be mirrored, and whether its channels differ.
        """
        count = len(mirror)
        random = torch.Generator().manual_seed(seed)

        def within(*most: float) -> Tensor:
            return torch.tensor(most) * (2 * torch.rand(count, len(most), generator=random) - 1)

        def sometimes(share: float) -> Tensor:
            return torch.rand(count, generator=random) < share

        turn, shear, zoom, stretch, *shift = within(TURN, SHEAR, ZOOM, STRETCH, SHIFT, SHIFT).unbind(1)
        mirrored = mirror & sometimes(0.5)
        across, down = torch.exp(zoom + stretch) * (1 - 2.0 * mirrored), torch.exp(zoom - stretch)
        places = torch.stack(
            [
                torch.stack([turn.cos() * across, -turn.sin() * down + shear, shift[0]], dim=1),
                torch.stack([turn.sin() * across, turn.cos() * down, shift[1]], dim=1),
            ],
            dim=1,
        )
        gamma, gain, blur, noise = within(GAMMA, GAIN, BLUR, NOISE).unbind(1)
        return cls(
            places,
            mirrored,
            gamma=torch.exp(gamma * sometimes(0.5)),
            gain=torch.exp((gain * sometimes(0.5))[:, None] + within(TINT, TINT, TINT) * coloured[:, None]),
            blur=blur * sometimes(0.4),
            noise=noise.abs() * sometimes(0.3),
        )

    @classmethod
    def none(cls, count: int) -> "Changes":
        """Return what leaves squares as they are."""
        places, zeros, ones = torch.eye(2, 3).expand(count, -1, -1), torch.zeros(count), torch.ones(count)
        return cls(places, zeros.bool(), gamma=ones, gain=ones[:, None].expand(-1, 3), blur=zeros, noise=zeros)

    def __getitem__(self, rows: Tensor) -> "Changes":
        return Changes(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to(self, device: torch.device) -> "Changes":
        return Changes(*(getattr(self, field.name).to(device) for field in fields(self)))

    def of_images(self, images: Tensor, side: int) -> Tensor:
        """Return changed images (n, 3, side, side) in 0..1, from (n, 3, height, width) in 0..1."""
        moved = self._moved(images, side)
        blurred = F.avg_pool2d(moved, 3, stride=1, padding=1, count_include_pad=False)
        moved = torch.lerp(moved, blurred, _rows(self.blur)).clamp(1e-4, 1)  # a power of 0 has no slope
        changed = moved ** _rows(self.gamma) * self.gain[:, :, None, None]
        changed = changed + _rows(self.noise) * torch.randn_like(changed[:, :1])
        return changed.clamp(0, 1)

    def of_masks(self, masks: Tensor, side: int) -> Tensor:
        """Return changed masks (n, k, side, side), 0 or 1, from k of each square (n, k, height, width)."""
        return (self._moved(masks, side) > 0.5).float()

    def _moved(self, squares: Tensor, side: int) -> Tensor:
        grid = F.affine_grid(self.places, [len(squares), 1, side, side], align_corners=False)
        return F.grid_sample(squares, grid, padding_mode="reflection", align_corners=False)


def _rows(values: Tensor) -> Tensor:
    return values[:, None, None, None]
