"""What is measured on: a full-size base, volumes, adapters and training pictures, all made at random."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPSegConfig

from engine.imaging.volumes.volume import Volume
from engine.models.bases import Base
from engine.models.bundle import AdapterCard, save_bundle
from engine.models.vocabulary import train_tokenizer
from engine.nets.initialise import new_network
from engine.nets.methods import METHODS, build_model

PROMPTS = ("brain", "liver", "left lung")
SIDE = 512  # of slices and pictures
BLOCK = 16


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


def random_volume(slices: int, seed: int = 0) -> Volume:
    """Return smooth random structures (slices, 512, 512) int16 without empty slices."""
    coarse = np.random.default_rng(seed).normal(0, 100, (slices, SIDE // BLOCK, SIDE // BLOCK)).astype(np.int16)
    return Volume(coarse.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2), (0.8, 0.8, 1.0), name="benchmark")


def random_adapter(folder: Path, base: Base, method: str, seed: int) -> Path:
    """Make an adapter for a base as training finds it at its start."""
    torch.manual_seed(seed)
    kind = METHODS[method]
    placement = kind.placements[0]
    trained = build_model(method, base.load_network(), placement, kind.hidden_size).trained
    described = (method, placement, kind.hidden_size, str(base.folder), base.sha256, list(PROMPTS))
    save_bundle(folder, trained, AdapterCard(folder.name, *described))
    return folder


def draw_pictures(folder: Path, count: int) -> Path:
    """Write pictures of a bright disc on noise, in the MedVLSM layout; all of them for training."""
    for part in ("images", "masks", "anns"):
        (folder / part).mkdir(parents=True)
    rows = []
    grid = np.mgrid[:SIDE, :SIDE]
    for number in range(count):
        random = np.random.default_rng(number)
        center = random.uniform(0.3, 0.7, (2, 1, 1)) * SIDE
        disc = np.linalg.norm(grid - center, axis=0) < random.uniform(0.1, 0.25) * SIDE
        picture = random.integers(0, 90, (SIDE, SIDE, 3), np.uint8)
        picture[disc] += 120
        Image.fromarray(picture).save(folder / "images" / f"{number}.png")
        Image.fromarray(disc.astype(np.uint8) * 255).save(folder / "masks" / f"{number}.png")
        names = {"img_name": f"{number}.png", "mask_name": f"{number}.png"}
        rows.append(names | {"prompts": {"p1": "disc"}})
    (folder / "anns" / "train.json").write_text(json.dumps(rows))
    return folder
