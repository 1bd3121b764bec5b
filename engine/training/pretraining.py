"""Train a small base on a mixture of labelled data sets, from nothing or from an earlier base."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, PreTrainedTokenizerBase

from engine.data import DataSet, open_data_set, wordings
from engine.errors import UserError
from engine.models.bases import IMAGENET_MEAN, IMAGENET_STD, Base
from engine.models.vocabulary import train_tokenizer
from engine.nets.clipseg import CLIPSeg
from engine.nets.initialise import new_network
from engine.prompts import MAXIMUM_TOKENS, OTHER_STRUCTURES, absent_from, encode_prompts
from engine.training.checkpoints import load_checkpoint, save_checkpoint
from engine.training.losses import SegmentationLoss
from engine.training.optimizer import MuonAdamW
from engine.training.samples import Sample, Sampler, collate

WARM_UP_STEPS = 100


@dataclass(frozen=True)
class Stage:
    """A part of the training on squares of one size, with its own cosine schedule."""

    side: int
    batch_size: int
    steps: int
    learning_rate: float


@dataclass(frozen=True)
class Recipe:
    """All that determines a base; a YAML file with these keys (see Resources/Models/mini/recipe.yaml)."""

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


@dataclass(frozen=True)
class Step:
    """What is told after each step."""

    stage: int
    number: int
    steps: int
    loss: float


def source_folders(recipe: Recipe, roots: Sequence[Path]) -> list[Path]:
    """Find the recipe's data sets, each in the first of `roots` that holds it.

    Raises:
        UserError: none of the roots holds a data set.
    """
    folders = []
    for source in recipe.sources:
        folder = next((root / source["folder"] for root in roots if (root / source["folder"]).is_dir()), None)
        if folder is None:
            raise UserError(f"the data set {source['folder']} is in none of {', '.join(map(str, roots))}")
        folders.append(folder)
    return folders


def open_sources(recipe: Recipe, roots: Sequence[Path]) -> list[DataSet]:
    """Open the training splits of the recipe's data sets, volumes sliced in the source's planes."""
    planes = [tuple(source.get("planes", ("axial",))) for source in recipe.sources]
    folders = source_folders(recipe, roots)
    return [open_data_set(folder, "train", cut) for folder, cut in zip(folders, planes, strict=True)]


def absent_structures(recipe: Recipe, sets: Sequence[DataSet]) -> list[list[str]]:
    """Return for each set what its pictures do not show: what sets of other regions do, and `OTHER_STRUCTURES`."""
    absent = []
    for data_set, source in zip(sets, recipe.sources, strict=True):
        elsewhere = [
            s for s, other in zip(sets, recipe.sources, strict=True) if other["region"] != source["region"]
        ]
        structures = {annotation.plain_prompt for s in elsewhere for annotation in s.annotations}
        absent.append(absent_from(wordings(data_set), sorted(structures.union(OTHER_STRUCTURES))))
    return absent


def build(
    recipe: Recipe, sets: Sequence[DataSet], start: Base | None = None
) -> tuple[CLIPSegForImageSegmentation, PreTrainedTokenizerBase]:
    """Return a CLIPSeg with random weights, and a tokenizer learned from the prompts.

    Args:
        start: a base of the same network, whose weights and tokenizer are taken instead; it may be for squares of
            another size.

    Raises:
        UserError: `start` is of another network.
    """
    if start:
        tokenizer = start.load_tokenizer()
    else:
        tokenizer = train_tokenizer(set.union(*(wordings(s) for s in sets)), recipe.network["vocabulary"])
    torch.manual_seed(recipe.seed)
    network = new_network(_network_config(recipe.network, tokenizer))
    if start:
        _take_weights(network, start)
    return network, tokenizer


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


def pretrain(
    model: CLIPSeg,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    sets: Sequence[DataSet],
    checkpoint: Path,
    on_step: Callable[[Step], None],
    resume: bool = False,
    checkpoint_every: int = 100,
) -> None:
    """Train all weights of `model` through the stages of a recipe.

    Args:
        sets: the training sets, one for each source of the recipe.
        checkpoint: a safetensors file that keeps weights, optimiser and place; with `resume`, where to go on.

    Several processes (under `accelerate launch` or `torch.distributed.run`) share each batch; the first one writes.
    """
    processes = Accelerator(cpu=model.device.type == "cpu")
    parameters = dict(model.named_parameters())
    optimizer = MuonAdamW(parameters, recipe.weight_decay)
    loss_of = SegmentationLoss()
    done = load_checkpoint(checkpoint, parameters, optimizer)[0]["done"] if resume else 0
    for index, stage in enumerate(Stage(**values) for values in recipe.stages):
        start, done = min(done, stage.steps), max(0, done - stage.steps)
        batches = _batches(recipe, sets, stage, index, start, (processes.process_index, processes.num_processes))
        for number, batch in enumerate(batches, start=start + 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(stage, number)
            loss = _step(model, tokenizer, batch, optimizer, loss_of, recipe.gradient_clip, processes)
            on_step(Step(index, number, stage.steps, loss))
            if (number % checkpoint_every == 0 or number == stage.steps) and processes.is_main_process:
                before = sum(values["steps"] for values in recipe.stages[:index])
                save_checkpoint(checkpoint, parameters, optimizer, {"done": before + number})


def learning_rate(stage: Stage, number: int) -> float:
    """Return the rate of a step: a linear start, then half a cosine to 1 % of the stage's rate."""
    cosine = 0.5 * (1 + math.cos(math.pi * number / stage.steps))
    return stage.learning_rate * min(1.0, number / WARM_UP_STEPS) * max(cosine, 0.01)


def _batches(
    recipe: Recipe, sets: Sequence[DataSet], stage: Stage, index: int, start: int, share: tuple[int, int]
) -> Iterator[list[Sample]]:
    """Yield the batches of a stage after `start` steps; `share` is this process and the number of them."""
    process, processes = share
    samplers = _samplers(recipe, sets, stage.side)
    present = [[i for i, a in enumerate(s.annotations) if a.present is not False] for s in sets]
    weights = np.array([source["weight"] for source in recipe.sources], float)
    for number in range(start, stage.steps):
        random = np.random.default_rng([recipe.seed, index, number])
        samples = []
        for place, source in enumerate(random.choice(len(sets), stage.batch_size, p=weights / weights.sum())):
            position = present[source][random.integers(len(present[source]))]
            if place % processes == process:
                samples.append(samplers[source].draw(position, (recipe.seed, index, number, place)))
        yield samples


def _samplers(recipe: Recipe, sets: Sequence[DataSet], side: int) -> list[Sampler]:
    return [
        Sampler(
            data_set,
            side,
            augment=True,
            mirror=source["mirror"],
            absent_prompts=absent,
            absent_rate=recipe.absent_rate,
            plain_rate=recipe.plain_rate,
            prompts_per_image=recipe.prompts_per_image,
        )
        for data_set, source, absent in zip(sets, recipe.sources, absent_structures(recipe, sets), strict=True)
    ]


def _step(
    model: CLIPSeg,
    tokenizer: PreTrainedTokenizerBase,
    batch: list[Sample],
    optimizer: MuonAdamW,
    loss_of: SegmentationLoss,
    clip: float,
    processes: Accelerator,
) -> float:
    images = torch.stack([sample.image for sample in batch]).to(model.device)
    prompts, masks = collate(batch)
    mean, std = images.new_tensor(IMAGENET_MEAN), images.new_tensor(IMAGENET_STD)
    pixel_values = (images - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    input_ids = encode_prompts(tokenizer, prompts).to(model.device)
    with torch.autocast(model.device.type, torch.bfloat16):
        logits = model(pixel_values, input_ids)
    loss = loss_of(logits.float(), masks.to(logits.device))
    optimizer.zero_grad()
    loss.backward()
    _average_gradients(model, processes)
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return processes.reduce(loss.detach(), "mean").item()


def _average_gradients(model: CLIPSeg, processes: Accelerator) -> None:
    if processes.num_processes == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    mean = processes.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
    for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
