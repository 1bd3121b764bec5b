"""Slices that form one volume each: separated, sorted along their normal, and checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine.errors import UserError
from engine.imaging.dicom.slices import Slice
from engine.imaging.dicom.telling import UNEVEN_MM, told_apart

SAME_DIRECTION = 1e-3
LISTED = 5  # slices that a message names
AXES = ("sagittal", "coronal", "axial")


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of one size, orientation and pixel spacing, sorted along their normal.

    Attributes:
        label: what tells it from the other stacks of its series, for people; "" for the only one.
    """

    slices: tuple[Slice, ...]
    label: str = ""

    @cached_property
    def positions_mm(self) -> np.ndarray:
        """(slices, 3): of the first pixels."""
        return np.array([s.position_mm for s in self.slices])

    @property
    def normal(self) -> np.ndarray:
        return self.slices[0].normal

    @property
    def along_mm(self) -> np.ndarray:
        """(slices,): the places of the slices along their normal."""
        return self.positions_mm @ self.normal

    @property
    def shifts_mm(self) -> np.ndarray:
        """(slices, 2): how far each slice is shifted against the first along rows (x) and columns (y)."""
        orientation = self.slices[0].orientation
        away = self.positions_mm - self.positions_mm[0]
        return np.stack([away @ orientation[:3], away @ orientation[3:]], axis=1)

    @property
    def thickness_mm(self) -> float | None:
        """Of the first slice; None where it says none."""
        return _thickness_mm(self.slices[0])

    def spacing_mm(self, source: object) -> float:
        """Return the distance of the slices.

        Raises:
            UserError: two slices lie at one place, distances differ, or the slices are shifted sideways.
        """
        if len(self.slices) == 1:
            return self.thickness_mm or 1.0
        self.check_apart(source)
        along = self.along_mm
        steps = np.diff(along)
        usual, spacing = float(np.median(steps)), float(steps.mean())
        even = along[0] + spacing * np.arange(len(along))
        if np.abs(steps - usual).max() > UNEVEN_MM or np.abs(along - even).max() > UNEVEN_MM:
            raise UserError(
                f"{source} has uneven slices: {self._gaps(steps, usual)}, and {usual:.2f} mm elsewhere; a slice "
                "may be missing: get it, or add --resample to fill in between"
            )
        if np.abs(self.shifts_mm).max() > UNEVEN_MM:
            shifts = np.abs(self.shifts_mm).max(axis=1)
            far = self.slices[int(shifts.argmax())].name
            raise UserError(
                f"{source} has a tilted gantry: its slices are shifted sideways, {far} by {shifts.max():.2f} mm "
                f"against {self.slices[0].name}; add --resample to straighten it"
            )
        return spacing

    def check_apart(self, source: object) -> None:
        """Refuse slices of which two lie at one place.

        Raises:
            UserError: two do, and nothing in their headers tells the volumes apart that they may belong to.
        """
        close = np.flatnonzero(np.diff(self.along_mm) < UNEVEN_MM)
        if len(close):
            index = int(close[0])
            names = " and ".join(s.name for s in self.slices[index : index + 2])
            more = f", and {len(close) - 1} more such pairs" if len(close) > 1 else ""
            raise UserError(
                f"{source} has two slices at {self.along_mm[index]:.2f} mm along the normal, {names}{more}, and "
                "nothing in their headers tells their volumes apart, nor do their image numbers; put each volume "
                "into a folder of its own"
            )

    def _gaps(self, steps: np.ndarray, usual: float) -> str:
        odd = np.argsort(-np.abs(steps - usual))
        odd = sorted(int(i) for i in odd[:LISTED] if abs(steps[i] - usual) > UNEVEN_MM) or [int(odd[0])]
        return ", ".join(
            f"{steps[i]:.2f} mm lie between {self.slices[i].name} at {self.along_mm[i]:.2f} mm and "
            f"{self.slices[i + 1].name} at {self.along_mm[i + 1]:.2f} mm"
            for i in odd
        )


def separate(slices: Sequence[Slice]) -> list[Stack]:
    """Return the volumes of a series: slices of one size, orientation and pixel spacing, and where several lie at
    one place, of one acquisition, echo, time point or what else tells them apart.

    Raises:
        UserError: a slice has no valid place.
    """
    alike: list[list[Slice]] = []
    for slice_ in slices:
        group = next((g for g in alike if _is_alike(g[0], slice_)), None)
        if group is None:
            alike.append([slice_])
        else:
            group.append(slice_)
    stacks = []
    for group in sorted(alike, key=len, reverse=True):
        about = [] if len(alike) == 1 else [_describe(group[0])]
        ordered = _sorted(group)
        parts = told_apart(ordered, Stack(ordered).along_mm)
        stacks += [Stack(_sorted(part), ", ".join(filter(None, [*about, words]))) for words, part in parts]
    return stacks


def _is_alike(one: Slice, other: Slice) -> bool:
    return (
        one.size == other.size
        and np.abs(one.orientation - other.orientation).max() <= SAME_DIRECTION
        and np.abs(one.pixel_spacing_mm - other.pixel_spacing_mm).max() <= SAME_DIRECTION
    )


def _describe(slice_: Slice) -> str:
    normal = np.abs(slice_.normal)
    plane = AXES[int(normal.argmax())] if normal.max() > 0.9 else "oblique"
    spacing = "×".join(f"{mm:g}" for mm in slice_.pixel_spacing_mm[::-1])
    return f"{plane} {slice_.size[1]}×{slice_.size[0]} of {spacing} mm"


def _sorted(slices: Sequence[Slice]) -> tuple[Slice, ...]:
    normal = slices[0].normal
    return tuple(sorted(slices, key=lambda s: float(s.position_mm @ normal)))


def _thickness_mm(slice_: Slice) -> float | None:
    for keyword in ("SliceThickness", "SpacingBetweenSlices"):
        try:
            thickness = float(slice_.values.get(keyword) or 0)
        except (TypeError, ValueError):
            continue
        if thickness > 0 and np.isfinite(thickness):
            return thickness
    return None
