"""Volumes with labels, slice by slice, whatever the layout that names them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np

from engine.data.annotations import Annotation, Case, DataSet, Truth
from engine.errors import UserError
from engine.imaging.labels import Labels
from engine.imaging.reading import read_frames
from engine.imaging.volumes.intensity import intensity_range, to_unit
from engine.imaging.volumes.planes import check_channels, orient, take_slices
from engine.imaging.volumes.volume import Volume


@dataclass(frozen=True)
class Study:
    """A volume's file, and what is labelled in it.

    Attributes:
        name: of the case.
        image, labels: the files.
        read_labels: gives the labels on the grid of the volume.
        patient: None where it is not known.
    """

    name: str
    image: Path
    labels: Path
    read_labels: Callable[[Volume], Labels]
    patient: str | None = None

    def read(self) -> Volume:
        """Read the volume.

        Raises:
            UserError: it is missing or damaged, or holds several volumes.
        """
        try:
            volume, *others = read_frames(self.image)
        except UserError as error:
            if str(self.image) in str(error):
                raise
            raise UserError(f"{self.image}: {error}") from error
        if others:
            raise UserError(
                f"{self.image} holds {1 + len(others)} volumes, such as channels or time points; keep one of them"
            )
        return volume


class VolumeSet(DataSet):
    """The studies of one split. Slices of one value are left out.

    Args:
        wordings: label -> its prompts, the plain class prompt first.
        planes: in which the volumes are sliced.
        channels: "slice", or "2.5d" for each slice with its neighbours.
    """

    def __init__(
        self,
        name: str,
        studies: Sequence[Study],
        wordings: dict[str, tuple[str, ...]],
        planes: tuple[str, ...],
        channels: str,
    ):
        self.name = name
        self._studies = {study.name: study for study in studies}
        self._wordings = wordings
        self._planes = planes
        self._channels = channels
        self._unnamed: dict[str, dict[int, int]] = {}
        self.paths = {study.name: study.image for study in studies}
        self.patients = {study.name: study.patient for study in studies if study.patient is not None}

    @cached_property
    def annotations(self) -> list[Annotation]:
        """All structures in all slices; reads every volume once.

        Raises:
            UserError: see `case`.
        """
        return [a for case in self._studies for plane in self._planes for a in self._annotations(case, plane)]

    def image(self, annotation: Annotation) -> np.ndarray:
        case, plane, position = annotation.image
        volume, limits = self._volume(case)
        pixels = take_slices(orient(volume.voxels, volume, plane), [position], self._channels)[0]
        return np.round(to_unit(pixels, *limits) * 255).astype(np.uint8)

    def mask(self, annotation: Annotation) -> np.ndarray:
        case, plane, position = annotation.image
        volume, _ = self._volume(case)
        return self._labels(case).mask(annotation.target, lambda layer: orient(layer, volume, plane)[position])

    def known(self, annotation: Annotation) -> np.ndarray | None:
        case, plane, position = annotation.image
        volume, _ = self._volume(case)
        return self._labels(case).known(lambda layer: orient(layer, volume, plane)[position])

    def unnamed(self) -> dict[str, dict[int, int]]:
        _ = self.annotations  # which reads all labels
        return self._unnamed

    def case(self, name: str) -> Case:
        study = self._studies[name]
        volume = study.read()
        labels = study.read_labels(volume)
        known = labels.known()
        truths = [Truth((self._wordings[n],), study.labels, partial(labels.mask, n), known) for n in labels.places]
        unlabelled = tuple(words[0] for n, words in self._wordings.items() if n not in labels.places)
        return Case(name, volume, truths, unlabelled, labels.unnamed)

    def _annotations(self, case: str, plane: str) -> Iterator[Annotation]:
        volume, _ = self._volume(case)
        labels = self._labels(case)
        if labels.unnamed:
            self._unnamed[case] = labels.unnamed
        stack = orient(volume.voxels, volume, plane)
        layers = [orient(layer, volume, plane) for layer in labels.layers]
        for position in range(len(stack)):
            if stack[position].min() == stack[position].max():
                continue
            found = {(i, int(v)) for i, layer in enumerate(layers) for v in np.unique(layer[position])}
            for name, places in labels.places.items():
                present = not found.isdisjoint(places)
                if not present and not found.isdisjoint(labels.unknown):
                    continue  # it may be where nobody has labelled
                yield Annotation(case, (case, plane, position), name, (self._wordings[name],), present)

    @lru_cache(maxsize=1024)  # noqa: B019 - a data set lives as long as the training
    def _volume(self, case: str) -> tuple[Volume, tuple[float, float]]:
        volume = self._studies[case].read()
        check_channels(volume, self._channels)
        return volume, intensity_range(volume)

    @lru_cache(maxsize=1024)  # noqa: B019
    def _labels(self, case: str) -> Labels:
        return self._studies[case].read_labels(self._volume(case)[0])
