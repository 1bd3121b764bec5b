"""Measure what it costs to draw pictures and prompts and to change them, beside the step that they are for.

    python Testing/drawing.py [DEVICE]

The pictures are random, and so are the weights of the network, which has the size of the base's.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

from engine.data.synonyms import Wordings
from engine.models.vocabulary import train_tokenizer
from engine.nets.clipseg import CLIPSeg
from engine.training.changes import Changes
from engine.training.packing import Labelled, PackedSet
from engine.training.pretraining import Pretrainer
from engine.training.recipe import Recipe, build
from engine.training.store import PictureStore, Source

ROOT = Path(__file__).resolve().parent.parent
PICTURES, BATCH, REPEATS = 200, 16, 7


def random_set(side: int) -> PackedSet:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (PICTURES, 3, side, side), dtype=torch.uint8, generator=random)
    masks = torch.randint(256, (PICTURES, side, side // 8), dtype=torch.uint8, generator=random)
    labelled = [Labelled(number, (("polyp",), ("a polyp", "round polyp")), number) for number in range(PICTURES)]
    return PackedSet("random", images, masks, labelled)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times)


def main(device: torch.device) -> None:
    recipe = replace(Recipe.read(ROOT / "Resources" / "Experiments" / "sighted.yaml"), tower=None)
    tokenizer = train_tokenizer(["polyp", "a polyp", "round polyp"], 300)
    model = CLIPSeg(build(recipe, tokenizer), freeze=False).to(device)
    store = PictureStore([random_set(recipe.side)], [Source("random", "bowel", 1, True)], Wordings(), device)
    random = np.random.default_rng(0)

    def draw() -> None:
        pictures = store.draw(BATCH, random)
        changes = Changes.draw(store.mirror[pictures], store.coloured[pictures], 0)
        _, masks = store.ask(pictures, changes.mirrored, recipe.asking, random)
        changes = changes.to(device)
        changes.of_images(store.images(pictures), recipe.side)
        changes.of_masks(store.masks(masks), recipe.side)

    with TemporaryDirectory() as folder:
        run = Pretrainer(model, tokenizer, recipe, store, None, Path(folder))
        stage = recipe.all_stages[-1]
        optimizer = run._optimizer(stage, {})
        drawing, step = seconds(draw, device), seconds(lambda: run._step(stage, [], random, optimizer), device)
    print(f"{device}: drawing {BATCH} pictures {drawing * 1000:.0f} ms, {BATCH / drawing:.0f} a second")
    print(f"{device}: a step of the whole net {step * 1000:.0f} ms; drawing is {drawing / step:.1%} of it")


if __name__ == "__main__":
    main(torch.device(sys.argv[1] if len(sys.argv) > 1 else "cpu"))
