"""From a volume and prompts to segments: the main job, as a library.

segmenter = Segmenter("head-t1")
segmenter.set_volume(read_volume("head.nii.gz"))
result = segmenter.segment("brain")
result.mask(), result.presence, result.volume_ml()
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.errors import UserError
from engine.imaging.volumes.intensity import intensity_range, is_empty_air
from engine.imaging.volumes.planes import SLICE, check_channels, layout, orient, resolve_planes, take_slices
from engine.imaging.volumes.segments import Algorithm
from engine.imaging.volumes.volume import Volume
from engine.models.bases import open_base
from engine.models.bundle import AdapterCard, find_adapter, read_card
from engine.prompts import check_lengths, check_prompts, encode_prompts, unknown_words
from engine.segmentation.cache import EncodingCache, volume_key
from engine.segmentation.devices import choose_batch_size, choose_device, choose_dtype, in_batches, is_out_of_memory
from engine.segmentation.pixels import to_pixel_values, to_slice_size
from engine.segmentation.placing import place_model
from engine.segmentation.transfers import Transfers
from engine.version import __version__

DEFAULT_BASE = "mini"
DEFAULT_THRESHOLD = 0.5
PRESENCE_PIXELS = 100
FLOAT16_LIMITS = 2.0**-14, 1 - 2.0**-11  # a threshold rounded to 0 or 1 would take everything or nothing
UNWIDENED = np.uint8, np.int16  # voxels that go to the device as they are: a half or a quarter of the bytes
SHARED_BYTES = 512 << 20  # of a plane's activations, which are kept for further models with the same encoder

Progress = Callable[[int, int], None]
Answer = TypeVar("Answer")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Result:
    """What was found for one prompt.

    Attributes:
        prompt: as it was given.
        volume: the volume that was segmented, with its geometry.
        probability: (z, y, x) float16 in 0..1, on the volume's own grid; None where it was let go of, and then
            there is no mask either.
        presence: 0..1, the mean of the 100 highest probabilities that the decoder gave.
        threshold: what `mask` uses when it is not told another.
        presence_threshold: the presence below which the structure counts as not found.
    """

    prompt: str
    volume: Volume
    probability: np.ndarray | None
    presence: float
    threshold: float
    presence_threshold: float

    @property
    def found(self) -> bool:
        return self.presence >= self.presence_threshold

    def mask(self, threshold: float | None = None) -> np.ndarray:
        """Return the voxels (z, y, x) bool whose probability reaches the threshold; none if it was not found."""
        if not self.found:
            return np.zeros(self.probability.shape, bool)
        wanted = self.threshold if threshold is None else threshold
        lowest = np.float16(np.clip(wanted, *FLOAT16_LIMITS))
        # the bits of halves from 0 to 1 are ordered as these are, and compared in a tenth of the time
        return self.probability.view(np.uint16) >= lowest.view(np.uint16)

    def volume_ml(self, threshold: float | None = None) -> float | None:
        """Return the mask's volume; None where the size of a voxel is not known."""
        if self.volume.voxel_volume_ml is None:
            return None
        return float(self.mask(threshold).sum() * self.volume.voxel_volume_ml)


@dataclass(frozen=True, eq=False)
class _Slices:
    stack: np.ndarray  # (slices, rows, columns[, 3])
    kept: np.ndarray  # positions of the slices that are not empty air
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class _EncodedPlane:
    plane: str
    kept: np.ndarray  # positions of the slices that are not empty air
    maps: Tensor


class Segmenter:
    """A base with an adapter, warm on its device; encodes a volume once and answers any number of prompts.

    Attributes:
        volume, planes, intensity_range: what was set, the planes in which it is sliced, and the intensities
            that the model sees as 0 and 1.
        cache: keeps encodings; set another before `set_volume` to keep those of a volume apart.

    Args:
        adapter: name or folder of an adapter; the base alone when None.
        base: name or folder of a base; the adapter's own, or "mini", when None.
        device: auto, cuda, mps or cpu.
        precision: auto, fp32, bf16 or fp16.
        batch_size: slices run at a time, or auto.

    Raises:
        UserError: the adapter or base is unknown, damaged, or they do not belong together; no such device.
    """

    def __init__(
        self,
        adapter: str | None = None,
        base: str | None = None,
        device: str = "auto",
        precision: str = "auto",
        batch_size: str | int = "auto",
    ):
        self._folder = None if adapter is None else find_adapter(adapter).absolute()
        self.card: AdapterCard | None = read_card(self._folder) if self._folder else None
        if base is None:
            base = self.card.base if self.card else DEFAULT_BASE
        self.base = open_base(base)
        self.device = choose_device(device)
        self.tokenizer = self.base.load_tokenizer()
        self.volume: Volume | None = None
        self.planes: tuple[str, ...] = ()
        self.intensity_range: tuple[float, float] = (0.0, 1.0)
        self.cache = EncodingCache()
        self._planes: list[_EncodedPlane] = []
        self._or_on_cpu(lambda: self._place_model(precision, batch_size))

    @property
    def channels(self) -> str:
        """What the three channels of a grey volume hold: "slice", or "2.5d" (see `planes.with_neighbours`)."""
        return self.card.channels if self.card else SLICE

    @property
    def presence_threshold(self) -> float:
        """The presence below which a prompt counts as not found: the adapter's own, or the base's without one."""
        return (self.card or self.base).presence_threshold

    @property
    def algorithm(self) -> Algorithm:
        """What finds the segments: the adapter, or the base without one."""
        model = self.card or self.base
        return Algorithm(model.name, f"{__version__} {model.sha256[:12]}", model.sha256)

    def set_volume(
        self,
        volume: Volume,
        plane: str | None = None,
        window: str | None = None,
        on_progress: Progress = lambda done, total: None,
    ) -> None:
        """Encode a volume for the prompts that follow.

        Args:
            plane: axial, coronal, sagittal, auto or all (the mean of all three); the adapter's own when
                None, and a single slice's own.
            window: see `intensity_range`; the adapter's own when None.
            on_progress: called with slices done and in all; raise `Cancelled` in it to stop.

        Raises:
            UserError: an unknown plane or window, a volume without contrast, or not enough memory.
        """
        self._or_on_cpu(lambda: self._set_volume(volume, plane, window, on_progress))

    def _set_volume(self, volume: Volume, plane: str | None, window: str | None, on_progress: Progress) -> None:
        defaults = (self.card.plane, self.card.window) if self.card else ("auto", "auto")
        self.volume = None  # if anything goes wrong, no prompt is answered for the volume before
        if plane is None:
            plane = "auto" if min(volume.shape) == 1 else defaults[0]
        window = defaults[1] if window is None else window
        planes = resolve_planes(volume, plane)
        check_channels(volume, self.channels)
        low, high = intensity_range(volume, window)
        stacks = {name: orient(volume.voxels, volume, name) for name in planes}
        kept = {name: np.flatnonzero(~is_empty_air(stack, low, high)) for name, stack in stacks.items()}
        total, done = sum(len(positions) for positions in kept.values()), 0
        encoded, seen = [], (volume_key(volume), low, high, self.channels)
        for name, stack in stacks.items():
            slices = _Slices(stack, kept[name], low, high)
            maps = self._encode(slices, (*seen, name), lambda n, done=done: on_progress(done + n, total))
            done += len(kept[name])
            on_progress(done, total)
            encoded.append(_EncodedPlane(name, kept[name], maps))
        self.volume, self.planes, self.intensity_range = volume, planes, (low, high)
        self._planes = encoded

    def segment(
        self,
        prompt: str,
        threshold: float | None = None,
        on_progress: Progress = lambda done, total: None,
        cut: bool = False,
    ) -> Result:
        """Segment what a prompt names in the volume that was set.

        Args:
            threshold: of the probability; the adapter's own, or 0.5, when None.
            cut: read the first 77 tokens of a longer prompt, as in training.
            on_progress: called with slices done and in all; raise `Cancelled` in it to stop.

        Raises:
            UserError: no volume was set, the prompt is empty or too long, the threshold is not in 0..1, or
                there is not enough memory.
        """
        if self.volume is None:
            raise UserError("no volume to segment; call set_volume first")
        check_prompts([prompt])
        if not cut:
            check_lengths(self.tokenizer, [prompt])
        return self._or_on_cpu(lambda: self._segment(prompt, self._threshold(threshold), on_progress))

    def _segment(self, prompt: str, threshold: float, on_progress: Progress) -> Result:
        condition = self._encode_prompt(prompt)
        total, done = sum(len(plane.kept) for plane in self._planes), 0
        dtype = torch.float32 if len(self._planes) > 1 else torch.float16
        probability = torch.zeros(self.volume.shape, dtype=dtype, device=self.device)
        highest: list[Tensor] = []
        for plane in self._planes:
            highest.append(
                self._decode(plane, condition, probability, lambda n, done=done: on_progress(done + n, total))
            )
            done += len(plane.kept)
        return Result(
            prompt=prompt,
            volume=self.volume,
            probability=self._transfers.to_host(probability.half()),
            presence=float(np.mean([top.mean().item() if len(top) else 0.0 for top in highest])),
            threshold=threshold,
            presence_threshold=self.presence_threshold,
        )

    @torch.inference_mode()
    def square_probability(self, prompt: str) -> np.ndarray:
        """Return what the decoder gives for the picture that was set (side, side) float32 in 0..1, before it is
        brought to the picture's size; a prompt past 77 tokens is cut."""
        (plane,) = self._planes
        condition = self._encode_prompt(prompt)
        return self.model.decode(plane.maps.to(self.model.dtype), condition)[0].float().sigmoid().cpu().numpy()

    def warnings(self, prompt: str) -> tuple[str, ...]:
        """Return what people must know of the volume that is set and of what a prompt finds in it, in words."""
        unknown = unknown_words(self.tokenizer, prompt)
        named = ", ".join(f"'{word[:40]}'" for word in unknown[:5])
        why = "its words are English, and 'not found' says nothing about others"
        told = (f"the base {self.base.name} does not know {named}; {why}",) if unknown else ()
        return (*(self.volume.warnings if self.volume else ()), *told)

    def forget_volume(self) -> None:
        """Let go of the volume that was set and of its encodings, but for those in `cache`."""
        self.volume, self.planes, self._planes = None, (), []

    def _threshold(self, wanted: float | None) -> float:
        if wanted is None:
            return self.card.threshold if self.card else DEFAULT_THRESHOLD
        if not 0 < wanted < 1:
            raise UserError(f"the threshold is {wanted}; give a probability between 0 and 1")
        return wanted

    def _encode(self, slices: _Slices, seen: tuple, report: Callable[[int], None]) -> Tensor:
        """Return the maps of slices (slices, depth, tokens, reduce_dim) float16 on the device, kept or computed.

        Args:
            seen: what tells these slices from all others.
        """
        by_base = *seen, repr(self.base), self.model.dtype, self.device
        key = *by_base, self.card and self.card.sha256
        maps = self.cache.get(key)
        if maps is None:
            maps = self._compute_maps(slices, by_base, report)
            self.cache.put(key, maps)
        return maps

    def _compute_maps(self, slices: _Slices, by_base: tuple, report: Callable[[int], None]) -> Tensor:
        count = len(slices.kept)
        if not self._shares_activations(count):
            return self._run(lambda part: self.model.encode_images(self._read(slices, part)).half(), count, report)
        activations = self.cache.get(by_base)
        if activations is None:
            activations = self._run(lambda part: self.model.activations(self._read(slices, part)), count, report)
            self.cache.put(by_base, activations)
        return self._run(lambda part: self.model.reduce(activations[part]).half(), count)

    def _shares_activations(self, count: int) -> bool:
        """Return whether what the encoder gives for so many slices is kept, for others that leave it as it is."""
        if not self.model.frozen_encoder:
            return False
        values = count * prod(self.model.activations_shape(self.base.side))
        return values * self.model.dtype.itemsize <= SHARED_BYTES

    def _read(self, slices: _Slices, part: slice) -> Tensor:
        """Return some slices as the model reads them."""
        taken = take_slices(slices.stack, slices.kept[part], self.channels)
        narrow = taken if taken.dtype in UNWIDENED else taken.astype(np.float32)
        voxels = self._transfers.to_device(narrow).float()
        unit = ((voxels - slices.low) / (slices.high - slices.low)).clamp(0, 1)
        return to_pixel_values(unit, self.base.side, self.base.mean, self.base.std).to(self.model.dtype)

    @torch.inference_mode()
    def _run(
        self, compute: Callable[[slice], Tensor], count: int, report: Callable[[int], None] = lambda done: None
    ) -> Tensor:
        """Return what is computed of slices, batch by batch (count, …)."""
        whole = torch.empty(0)

        def run(part: slice) -> None:
            nonlocal whole
            computed = compute(part)
            if not len(whole):
                whole = computed.new_empty(count, *computed.shape[1:])
            whole[part] = computed
            self._transfers.end_batch()
            report(part.stop)

        self.batch_size = in_batches(run, count, self.batch_size)
        return whole

    @torch.inference_mode()
    def _encode_prompt(self, prompt: str) -> Tensor:
        return self.model.encode_prompts(encode_prompts(self.tokenizer, [prompt]).to(self.device))

    @torch.inference_mode()
    def _decode(
        self, plane: _EncodedPlane, condition: Tensor, probability: Tensor, report: Callable[[int], None]
    ) -> Tensor:
        """Add a plane's share of the probabilities to `probability` (z, y, x); return the highest ones."""
        axes, flips = layout(self.volume, plane.plane)
        grid = probability.movedim(axes, (0, 1, 2))  # a view in the order of `orient`, before its flips
        highest = torch.empty(0, device=self.device)
        finite = torch.ones((), dtype=torch.bool, device=self.device)

        def run(part: slice) -> None:
            nonlocal highest, finite
            logits = self.model.decode(plane.maps[part].to(self.model.dtype), condition).float()
            found = to_slice_size(logits, *grid.shape[1:]).flip(flips)
            share = (found / len(self._planes)).to(grid.dtype)
            candidates = torch.cat([highest, logits.flatten()])
            now_highest = candidates.topk(min(PRESENCE_PIXELS, len(candidates))).values
            now_finite = finite & logits.sum().isfinite()
            # memory cannot run out from here on, after which a batch that is tried again would be added twice
            kept = plane.kept[part]
            for target, source in _runs(len(grid) - 1 - kept[::-1] if 0 in flips else kept):
                grid[target].add_(share[source])
            highest, finite = now_highest, now_finite
            self._transfers.end_batch()
            report(part.stop)

        in_batches(run, len(plane.kept), self.batch_size)
        if not finite:
            raise UserError(f"the model gives no numbers in {self.model.dtype}; choose --precision fp32")
        return highest.sigmoid()

    def _or_on_cpu(self, work: Callable[[], Answer]) -> Answer:
        """Do some work; where the GPU's memory is too small, say so and do it on the CPU."""
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self.device.type == "cpu":
                raise UserError("there is not enough memory to segment even one slice; close programs") from error
            logger.warning("the memory of %s is too small; going on with the CPU", self.device)
        self._move_to_cpu()
        return work()

    def _move_to_cpu(self) -> None:
        self.device = torch.device("cpu")
        self._place_model("auto", "auto")
        self._planes = [replace(plane, maps=plane.maps.cpu()) for plane in self._planes]
        self.cache = EncodingCache()

    def _place_model(self, precision: str, batch_size: str | int) -> None:
        dtype = choose_dtype(precision, self.device)
        self.model = place_model(self.base, self._folder, self.card, self.device, dtype)
        self.batch_size = choose_batch_size(batch_size, self._bytes_per_slice(), self.device)
        self._transfers = Transfers(self.device)

    def _bytes_per_slice(self) -> int:
        return self.model.values_per_slice(self.base.side) * self.model.dtype.itemsize


def _runs(positions: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Yield the neighbours among rising positions: where they are, and which of them they are."""
    ends = [*np.flatnonzero(np.diff(positions) != 1) + 1, len(positions)]
    for start, end in pairwise([0, *ends]):
        yield slice(positions[start], positions[end - 1] + 1), slice(start, end)
