"""Measure a model on labelled images, at their original resolution."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch

from engine.bases import Base
from engine.data import Annotation, DataSet
from engine.metrics import dice, intersection_over_union
from engine.model.clipseg import CLIPSeg
from engine.pixels import to_pixel_values, to_slice_size
from engine.prompts import encode_prompts


@torch.inference_mode()
def evaluate(
    model: CLIPSeg,
    base: Base,
    data_set: DataSet,
    annotations: Sequence[Annotation] | None = None,
    threshold: float = 0.5,
    on_image: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Segment every annotation with its plain class prompt and compare.

    A case (a picture, or a whole volume with all its slices) counts once for each prompt.

    Args:
        annotations: a part of the data set's; all when None.
        on_image: called after each image.

    Returns:
        {prompt: {"dice": mean, "iou": mean, "cases": count}}; prompts of pictures that differ in wording for
        the same data set are listed apart.
    """
    counts: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(3, np.int64))
    tokenizer = base.load_tokenizer()
    autocast = torch.autocast(model.device.type, torch.bfloat16)
    for _, group in groupby(annotations or data_set.annotations, key=lambda a: a.image):
        wanted = list(group)
        image = torch.from_numpy(np.ascontiguousarray(data_set.image(wanted[0]))).float() / 255
        pixel_values = to_pixel_values(image[None], base.side, base.mean, base.std).to(model.device)
        tokens = encode_prompts(tokenizer, [a.plain_prompt for a in wanted]).to(model.device)
        with autocast:
            maps = model.encode_images(pixel_values)
            logits = model.decode(maps.expand(len(wanted), -1, -1, -1), model.encode_prompts(tokens)).float()
        results = (to_slice_size(logits, *image.shape[:2]) >= threshold).cpu().numpy()
        for annotation, result in zip(wanted, results, strict=True):
            truth = data_set.mask(annotation)
            counts[annotation.plain_prompt, annotation.case] += ((result & truth).sum(), result.sum(), truth.sum())
        on_image()
    return _means(counts)


def _means(counts: dict[tuple[str, str], np.ndarray]) -> dict[str, dict[str, float]]:
    by_prompt: dict[str, list[np.ndarray]] = defaultdict(list)
    for (prompt, _), values in counts.items():
        by_prompt[prompt].append(values)
    return {
        prompt: {
            "dice": float(np.mean([dice(*values.tolist()) for values in rows])),
            "iou": float(np.mean([intersection_over_union(*values.tolist()) for values in rows])),
            "cases": len(rows),
        }
        for prompt, rows in by_prompt.items()
    }


def overall(figures: dict[str, dict[str, float]], name: str = "dice") -> float:
    """Return the mean of a figure over all cases of all prompts."""
    return float(np.average([f[name] for f in figures.values()], weights=[f["cases"] for f in figures.values()]))
