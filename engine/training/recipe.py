"""Recipes: all that determines a base, and the network and the data that they name."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import yaml
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, PreTrainedTokenizerBase

from engine.data import DataSet, open_splits
from engine.data.synonyms import Wordings
from engine.errors import UserError
from engine.models.bases import Base
from engine.models.pretrained import PackagedFile, fetch, read_dinov2
from engine.nets.dinov2 import clip_weights
from engine.nets.initialise import new_network
from engine.prompts import MAXIMUM_TOKENS
from engine.training.store import Asking, Source

TEXT, DECODER, ALL = "text", "decoder", "all"


@dataclass(frozen=True)
class Stage:
    """A part of the training, with its own cosine schedule.

    Attributes:
        trains: "all"; "decoder", with the text encoder, under a vision encoder that stays as it is and whose
            activations of `views` of each picture are kept; or "text", towards the recipe's teacher.
        batch_size: pictures of a step; phrases for "text".
        side: of the pictures, in pixels, where it is not the base's.
        views: the first shows each picture as it is, the others changed at random.
        tower_rate: the rate of the deepest vision layer, against `learning_rate`.
        depth_decay: the rate of each vision layer, against that of the next deeper one.
    """

    batch_size: int
    steps: int
    learning_rate: float
    trains: str = ALL
    side: int | None = None
    views: int = 1
    tower_rate: float = 1.0
    depth_decay: float = 1.0

    def __post_init__(self) -> None:
        if self.trains not in (TEXT, DECODER, ALL):
            raise ValueError(f"a stage that trains '{self.trains}'; it may train {TEXT}, {DECODER} or {ALL}")


@dataclass(frozen=True)
class Recipe:
    """All that determines a base; a YAML file with these keys (see Resources/Models/mini/recipe.yaml).

    Attributes:
        tower: the file of a pretrained DINOv2 (see `PackagedFile`); the vision encoder starts at random without.
        teacher: the file of a sentence encoder, whose judgement of what is like what the text encoder is to have.
        teacher_weight: of that in the loss.
        wordings: a file of `Wordings`, beside the recipe; the data sets' own wordings alone without.
    """

    name: str
    licence: str
    seed: int
    network: dict
    sources: list[dict]
    prompts_per_image: int
    absent_rate: float
    plain_rate: float
    weight_decay: float
    gradient_clip: float
    stages: list[dict]
    tower: dict | None = None
    teacher: dict | None = None
    teacher_weight: float = 10.0
    wordings: str | None = None
    folder: Path = field(default=Path(), compare=False)

    @classmethod
    def read(cls, path: Path) -> "Recipe":
        """Read a recipe.

        Raises:
            UserError: the file is no recipe.
        """
        try:
            recipe = cls(**yaml.safe_load(path.read_text(encoding="utf-8")), folder=path.parent)
            if recipe.all_stages and recipe.all_sources and recipe.asking:
                return recipe
            raise ValueError("no stages, or no sources")
        except (yaml.YAMLError, OSError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no recipe ({' '.join(str(error).split())})") from error

    @cached_property
    def all_stages(self) -> list[Stage]:
        return [Stage(**values) for values in self.stages]

    @cached_property
    def all_sources(self) -> list[Source]:
        return [Source(**values) for values in self.sources]

    @property
    def asking(self) -> Asking:
        return Asking(self.prompts_per_image, self.absent_rate, self.plain_rate)

    @property
    def side(self) -> int:
        return self.network["side"]

    def read_wordings(self) -> Wordings:
        """Raises:
        UserError: see `Wordings.read`.
        """
        return Wordings.read(self.folder / self.wordings) if self.wordings else Wordings()


def source_folders(recipe: Recipe, roots: Sequence[Path]) -> list[Path]:
    """Find the recipe's data sets, each in the first of `roots` that holds it.

    Raises:
        UserError: none of the roots holds a data set.
    """
    folders = []
    for source in recipe.all_sources:
        folder = next((root / source.folder for root in roots if (root / source.folder).is_dir()), None)
        if folder is None:
            raise UserError(f"the data set {source.folder} is in none of {', '.join(map(str, roots))}")
        folders.append(folder)
    return folders


def open_sources(recipe: Recipe, roots: Sequence[Path]) -> list[dict[str, DataSet]]:
    """Open the splits of the recipe's data sets, volumes sliced in the source's planes."""
    folders = source_folders(recipe, roots)
    return [
        open_splits(folder, tuple(source.planes), drop_overlap=True)
        for folder, source in zip(folders, recipe.all_sources, strict=True)
    ]


def build(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, start: Base | None = None
) -> CLIPSegForImageSegmentation:
    """Return a CLIPSeg that is ready to be trained, its vision encoder the recipe's tower.

    Args:
        start: a base of the same network, whose weights are taken instead; it may be for squares of another size.

    Raises:
        UserError: `start` is of another network, or the tower cannot be had.
    """
    torch.manual_seed(recipe.seed)
    network = new_network(_network_config(recipe.network, tokenizer))
    if start:
        _take_weights(network, start)
    elif recipe.tower:
        _take_tower(network, PackagedFile(**recipe.tower))
    return network


def _take_tower(network: CLIPSegForImageSegmentation, tower: PackagedFile) -> None:
    vision = network.config.vision_config
    weights = read_dinov2(fetch(tower))
    try:
        weights = clip_weights(weights, vision.num_hidden_layers, vision.patch_size, vision.image_size)
        network.clip.vision_model.load_state_dict(weights, strict=False)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{tower.file} has other layers than the recipe's vision ({reason})") from error


def _take_weights(network: CLIPSegForImageSegmentation, start: Base) -> None:
    weights = start.load_network().state_dict()
    name = "clip.vision_model.embeddings.position_embedding.weight"
    positions = network.clip.vision_model.embeddings.position_embedding.num_embeddings
    weights[name] = _resize_positions(weights[name], positions)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{start.name} has other layers than the recipe's network; start from nothing") from error


def _resize_positions(weight: Tensor, count: int) -> Tensor:
    """Return the position embeddings (1 + grid², width) interpolated to `count`; the class token's stays."""
    old, new = (math.isqrt(n - 1) for n in (len(weight), count))
    grid = weight[1:].T.unflatten(1, (old, old))[None]
    resized = F.interpolate(grid, (new, new), mode="bicubic")[0].flatten(1).T
    return torch.cat([weight[:1], resized])


def _network_config(network: dict, tokenizer: PreTrainedTokenizerBase) -> CLIPSegConfig:
    """Return the Hugging Face configuration of a recipe's network.

    Raises:
        UserError: vision layers beyond the deepest extracted one, which nothing would train.
    """
    needed = max(network["extract_layers"]) + 1
    if network["vision"]["num_hidden_layers"] != needed:
        raise UserError(f"the recipe extracts vision layer {needed - 1}; give the vision {needed} layers")
    text = {
        **network["text"],
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAXIMUM_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPSegConfig(
        vision_config={
            **network["vision"],
            "image_size": network["side"],
            "patch_size": network["patch_size"],
        },
        text_config=text,
        projection_dim=network["text"]["hidden_size"],
        reduce_dim=network["reduce_dim"],
        decoder_intermediate_size=network["decoder_intermediate_size"],
        extract_layers=network["extract_layers"],
        use_complex_transposed_convolution=True,
    )
