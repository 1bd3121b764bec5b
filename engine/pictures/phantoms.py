"""Drawn pictures of what must not be shown: a polyp, a mark on skin, a tumour in an ultrasound image.

They copy no image; they only have the colours, the texture and the shape that the prompts speak of.
"""

from collections.abc import Callable

import numpy as np

from engine.imaging.volumes.volume import Volume

SIDE = 352

Phantom = tuple[Volume, np.ndarray]  # a picture, and (1, y, x) bool: where the structure was drawn
Draw = Callable[[int], Phantom]


def polyp(seed: int) -> Phantom:
    """Draw a round, shiny bulge on a pink wall with folds, seen through an endoscope."""
    random = np.random.default_rng(seed)
    mask, depth = _blob(random, radius=random.uniform(45, 75), wobble=0.08)
    folds = _noise(random, 30)
    wall = np.array([178, 92, 78]) + folds[..., None] * (34, 26, 24) + _noise(random, 3)[..., None] * 6
    bulge = np.array([196, 86, 74]) + depth[..., None] * (40, 22, 20) + _noise(random, 4)[..., None] * 8
    picture = _blend(wall, bulge, mask, softness=2.5)
    rim = np.clip(_smooth(mask, 7) - mask, 0, 1)
    picture = picture * (1 - 0.5 * rim[..., None])  # the shadow beside the bulge
    for row, column in random.normal(0, 14, (4, 2)) + _center(mask) - 12:
        picture += 110 * np.exp(-(_distance(row, column) ** 2) / 18)[..., None]  # wet, so it glistens
    lit = np.clip(1.15 - (_distance(SIDE / 2, SIDE / 2) / (0.62 * SIDE)) ** 4, 0, 1)
    return _picture(picture * lit[..., None]), mask[None]


def skin_lesion(seed: int) -> Phantom:
    """Draw a dark, uneven mark on light skin with hairs."""
    random = np.random.default_rng(seed)
    mask, depth = _blob(random, radius=random.uniform(55, 95), wobble=0.16)
    skin = np.array([206, 160, 138]) + _noise(random, 25)[..., None] * 8 + _noise(random, 2)[..., None] * 5
    mark = np.array([112, 70, 54]) - depth[..., None] * (38, 26, 18) + _noise(random, 9)[..., None] * (20, 15, 12)
    picture = _blend(skin, mark, mask, softness=5)
    for _ in range(5):
        picture = picture * (1 - 0.55 * _hair(random)[..., None])
    return _picture(picture), mask[None]


def breast_tumour(seed: int) -> Phantom:
    """Draw a dark body with a shadow below it in layered, speckled tissue."""
    random = np.random.default_rng(seed)
    mask, _ = _blob(random, radius=random.uniform(38, 62), wobble=0.14, flatness=0.7)
    rows = np.linspace(0, 1, SIDE)[:, None]
    tissue = 105 + 45 * np.cos(9 * rows + _noise(random, 40)) * np.exp(-2 * rows) + 18 * _noise(random, 14)
    below = np.cumsum(mask, axis=0) > 0
    shadow = 1 - 0.45 * _smooth(below, 9) * (1 - mask)
    echo = np.where(_smooth(mask, 1.5) > 0.5, 26 + 6 * _noise(random, 6), tissue * shadow)
    speckle = _smooth(random.rayleigh(0.8, (SIDE, SIDE)), 1.1)
    return _picture(echo * speckle * (1.1 - 0.5 * rows)), mask[None]


def _blob(
    random: np.random.Generator, radius: float, wobble: float, flatness: float = 0.85
) -> tuple[np.ndarray, np.ndarray]:
    """Return a round shape with an uneven border (y, x) bool, and how deep inside it each pixel is (0..1)."""
    row, column = random.uniform(0.4, 0.6, 2) * SIDE
    rows, columns = np.mgrid[:SIDE, :SIDE] - np.array([row, column])[:, None, None]
    turn = random.uniform(0, np.pi)
    along, across = rows * np.cos(turn) + columns * np.sin(turn), columns * np.cos(turn) - rows * np.sin(turn)
    angle = np.arctan2(across, along)
    border = 1 + sum(
        random.normal(0, wobble / waves) * np.cos(waves * angle + random.uniform(0, 6)) for waves in (2, 3, 4, 5, 7)
    )
    away = np.hypot(along, across / flatness) / (radius * border)
    return away < 1, np.clip(1 - away, 0, 1)


def _smooth(values: np.ndarray, size: float) -> np.ndarray:
    """Return values (y, x) under a Gaussian of `size` pixels, going round at the borders."""
    frequencies = np.fft.fftfreq(SIDE)
    gaussian = np.exp(-2 * (np.pi * size) ** 2 * (frequencies[:, None] ** 2 + frequencies**2))
    return np.fft.ifft2(np.fft.fft2(values) * gaussian).real


def _noise(random: np.random.Generator, size: float) -> np.ndarray:
    """Return smooth noise of mean 0 and deviation 1 with spots of about `size` pixels."""
    noise = _smooth(random.normal(size=(SIDE, SIDE)), size)
    return (noise - noise.mean()) / noise.std()


def _hair(random: np.random.Generator) -> np.ndarray:
    """Return a thin curve across the picture, 0..1."""
    rows = np.arange(SIDE)
    place = random.uniform(0, SIDE) + random.uniform(-0.8, 0.8) * rows + 25 * np.sin(rows / random.uniform(60, 120))
    return np.exp(-(((np.arange(SIDE)[None] - place[:, None]) / 1.2) ** 2))


def _blend(outside: np.ndarray, inside: np.ndarray, mask: np.ndarray, softness: float) -> np.ndarray:
    share = _smooth(mask, softness)[..., None]
    return outside * (1 - share) + inside * share


def _center(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0)


def _distance(row: float, column: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.hypot(rows - row, columns - column)


def _picture(values: np.ndarray) -> Volume:
    return Volume(np.clip(values, 0, 255).astype(np.uint8)[None], name="drawn picture", flat=True)
