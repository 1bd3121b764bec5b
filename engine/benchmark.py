"""Compare Hugging Face's plain forward, slice by slice, with the engine, in one run on one machine."""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from engine.bases import Base
from engine.cli import run
from engine.devices import DEVICES, PRECISIONS, cpu_capabilities
from engine.imaging.intensity import intensity_range
from engine.imaging.volume import Volume
from engine.model.initialise import new_network
from engine.pixels import to_pixel_values, to_slice_size
from engine.prompts import encode_prompts
from engine.segmenter import Segmenter
from engine.vocabulary import train_tokenizer

PROMPTS = ("brain", "liver", "left lung")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m engine.benchmark", description=__doc__)
    parser.add_argument("--base", help="name or folder (default: the full-size architecture with random weights)")
    parser.add_argument("--slices", type=int, default=24, help="of the volume, each 512×512 (default: 24)")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median is reported")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--precision", default="auto", choices=("auto", *PRECISIONS))
    options = parser.parse_args()
    volume = random_volume(options.slices)
    with tempfile.TemporaryDirectory() as folder:
        base_folder = options.base or str(full_size_base(Path(folder)))
        segmenter = Segmenter(base=base_folder, device=options.device, precision=options.precision)
        figures = compare(segmenter, volume, options.repeats)
    figures |= {
        "base": options.base or "full size, random weights",
        "slices": options.slices,
        "device": device_name(segmenter.device),
        "precision": str(segmenter.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print_figures(figures)
    print(json.dumps(figures))


def full_size_base(folder: Path) -> Path:
    """Make a base with the public configuration (clipseg-rd64-refined) and random weights."""
    tokenizer = train_tokenizer(PROMPTS, 49408)
    tokens = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    config = CLIPSegConfig(
        vision_config={"image_size": 224, "patch_size": 16},
        text_config={f"{name}_token_id": token for name, token in tokens.items()},
        extract_layers=[3, 6, 9],
        reduce_dim=64,
        use_complex_transposed_convolution=True,
    )
    torch.manual_seed(0)
    new_network(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_volume(slices: int) -> Volume:
    """Return smooth random structures without empty slices, 512×512 a slice."""
    coarse = np.random.default_rng(0).normal(size=(slices, 32, 32)).astype(np.float32)
    return Volume(np.kron(coarse, np.ones((1, 16, 16), np.float32)), (0.8, 0.8, 1.0), name="benchmark")


def compare(segmenter: Segmenter, volume: Volume, repeats: int) -> dict:
    """Return seconds of both ways, the memory of the cache and the largest difference of a probability."""
    plain = PlainHuggingFace(segmenter.base, segmenter.device)
    plain.segment(Volume(volume.voxels[:1]), PROMPTS[0])  # warm up both
    segmenter.set_volume(Volume(volume.voxels[:2]))
    segmenter.segment(PROMPTS[0])
    seconds: dict[str, list[float]] = {"plain": [], "first": [], "further": []}
    difference = 0.0
    for repeat in range(repeats):
        expected = _timed(seconds["plain"], lambda: plain.segment(volume, PROMPTS[0]), segmenter.device)
        fresh = volume.with_voxels(volume.voxels + repeat)  # so that nothing is found in the cache

        def first(fresh: Volume = fresh) -> np.ndarray:
            segmenter.set_volume(fresh)
            return segmenter.segment(PROMPTS[0]).probability

        ours = _timed(seconds["first"], first, segmenter.device)
        for prompt in PROMPTS[1:]:
            _timed(seconds["further"], lambda prompt=prompt: segmenter.segment(prompt), segmenter.device)
        difference = max(difference, float(np.abs(expected - ours.astype(np.float32)).max()))
    plain_s, first_s, further_s = (statistics.median(values) for values in seconds.values())
    maps = segmenter._planes[0].maps
    return {
        "plain_seconds_per_prompt": round(plain_s, 3),
        "first_prompt_seconds": round(first_s, 3),
        "further_prompt_seconds": round(further_s, 4),
        "first_prompt_speedup": round(plain_s / first_s, 2),
        "further_prompt_speedup": round(plain_s / further_s, 1),
        "cache_kb_per_slice": round(maps.nbytes / len(maps) / 1000, 1),
        "largest_difference": round(difference, 5),
    }


class PlainHuggingFace:
    """The plain way: the model's own forward in fp32, one slice and one prompt at a time."""

    def __init__(self, base: Base, device: torch.device):
        self.base = base
        self.device = device
        self.tokenizer = base.load_tokenizer()
        self.network: CLIPSegForImageSegmentation = base.load_network().to(device)

    @torch.inference_mode()
    def segment(self, volume: Volume, prompt: str) -> np.ndarray:
        """Return probabilities (z, y, x) float32 of axial slices, percentiles window."""
        low, high = intensity_range(volume)
        tokens = encode_prompts(self.tokenizer, [prompt]).to(self.device)
        results = []
        for voxels in volume.voxels:
            unit = ((torch.from_numpy(voxels).to(self.device) - low) / (high - low)).clamp(0, 1)
            pixel_values = to_pixel_values(unit[None], self.base.side, self.base.mean, self.base.std)
            logits = self.network(pixel_values=pixel_values, input_ids=tokens).logits
            results.append(to_slice_size(logits.reshape(1, *logits.shape[-2:]), *voxels.shape)[0].cpu().numpy())
        return np.stack(results)


def device_name(device: torch.device) -> str:
    """Return the name of the GPU or the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_capabilities().get("cpu_name") or platform.processor() or platform.machine()


def _timed(seconds: list[float], work: Callable, device: torch.device):
    _synchronise(device)
    started = time.perf_counter()
    result = work()
    _synchronise(device)
    seconds.append(time.perf_counter() - started)
    return result


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def print_figures(figures: dict) -> None:
    """Show figures as a table on standard error."""
    table = Table("what", "value")
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), str(value))
    Console(file=sys.stderr).print(table)


if __name__ == "__main__":
    run(main)
