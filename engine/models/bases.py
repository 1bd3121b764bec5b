"""Bases: frozen CLIPSegs in the Hugging Face folder format, and CLIPs in open_clip's, found by name or folder."""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, CLIPSegForImageSegmentation, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from engine.errors import UserError
from engine.files import make_folder, read_json, sha256_of, write_text
from engine.models.places import KIND_FILES, PUBLIC_BASES, base_names, is_base, model_folders, user_models
from engine.models.vocabulary import clip_tokenizer
from engine.models.weights import write_tensors
from engine.nets.towers import new_clip

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DEFAULT_SIDE = 352
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP_VOCABULARY = 49408
CLIP_SIDES = {"clip-vit-b-16": 640, "clip-rn50": 416}  # what SAN and CRIS read; for classification it is 224


@dataclass(frozen=True)
class Base:
    """A CLIPSeg or CLIP in a folder, and how images are made ready for it.

    Attributes:
        name: what people call it.
        kind: "clipseg", or "clip" for the CLIPs of open_clip, which only the baselines can use.
        folder: holds the configuration, the weights and the tokenizer's files.
        sha256: hash of all its floating-point weights; adapters name the base that they fit by it.
        side: of the square that it reads, in pixels.
        mean, std: of the three channels, for values in 0..1.
        presence_threshold: of the presence score without an adapter, below which a prompt counts as not found.
    """

    name: str
    kind: str
    folder: Path
    sha256: str
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    presence_threshold: float = 0.5

    def load_network(self) -> nn.Module:
        """Load the weights in fp32, ready for inference: a `CLIPSegForImageSegmentation`, or a `CLIP` of
        open_clip.

        Raises:
            UserError: weights are missing, do not fit the configuration or are no longer those of `sha256`, or
                open_clip is not installed.
        """
        network = self._load_clip() if self.kind == "clip" else self._load_clipseg()
        if hash_weights(self.folder / KIND_FILES[self.kind][1]) != self.sha256:
            raise UserError(f"the weights in {self.folder} were replaced meanwhile; start again")
        return network.eval()

    def _load_clip(self) -> nn.Module:
        configuration, weights, _ = KIND_FILES["clip"]
        network = new_clip(_clip_settings(self.folder / configuration)[0])
        try:
            network.load_state_dict(load_file(self.folder / weights))
        except (RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.folder} cannot be loaded ({reason}); get the base again") from error
        return network

    def _load_clipseg(self) -> CLIPSegForImageSegmentation:
        transformers_logging.disable_progress_bar()  # it would only flash by
        try:
            network, loading = CLIPSegForImageSegmentation.from_pretrained(
                self.folder,
                local_files_only=True,
                dtype=torch.float32,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
        except Exception as error:  # transformers raises many kinds for files that do not fit together
            raise UserError(f"{self.folder} cannot be loaded ({_first_line(error)}); get the base again") from error
        if loading["missing_keys"]:
            missing = ", ".join(sorted(loading["missing_keys"])[:3])
            raise UserError(f"{self.folder} lacks weights ({missing} …); get the base again")
        return network

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Raises:
            UserError: its files are missing or damaged.
        """
        if not any(all((self.folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
            if self.kind == "clip" and self._vocabulary_size() == CLIP_VOCABULARY:
                return clip_tokenizer()
            raise UserError(f"{self.folder} holds no tokenizer.json; the base is incomplete, get it again")
        try:
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except Exception as error:  # transformers raises many kinds for damaged files
            raise UserError(f"the tokenizer in {self.folder} is damaged ({_first_line(error)})") from error

    def _vocabulary_size(self) -> int:
        settings, _ = _clip_settings(self.folder / KIND_FILES["clip"][0])
        return settings.get("text_cfg", {}).get("vocab_size", CLIP_VOCABULARY)


def open_base(name_or_folder: str) -> Base:
    """Find a base and check its files.

    Raises:
        UserError: there is no such base, its files are incomplete or damaged, or it is neither a CLIPSeg nor a
            CLIP of open_clip.
    """
    folder = _find_base(name_or_folder).absolute()
    kind = next(kind for kind in KIND_FILES if (folder / KIND_FILES[kind][0]).is_file())
    configuration, weights, _ = KIND_FILES[kind]
    settings = {}
    if kind == "clip":
        settings = _clip_pixel_settings(folder / configuration)
        settings["size"] = CLIP_SIDES.get(_base_name(name_or_folder), settings["size"])
    elif (model := _read_json(folder / configuration).get("model_type")) != "clipseg":
        raise UserError(f"{folder} holds a '{model}' model; a base must be a CLIPSeg or a CLIP of open_clip")
    folder = _with_safetensors(folder, kind)
    processor = folder / "preprocessor_config.json"
    settings |= _read_json(processor) if processor.is_file() else {}
    side, mean, std = _pixel_settings(settings, processor if processor.is_file() else folder / configuration)
    base = Base(_base_name(name_or_folder), kind, folder, hash_weights(folder / weights), side, mean, std)
    return _with_card(base)


def save_clip(folder: Path, clip: nn.Module, config: dict, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a CLIP as a base folder of open_clip's format.

    Args:
        clip, config: what `new_clip` made, and of what.
    """
    configuration, weights, _ = KIND_FILES["clip"]
    make_folder(folder)
    write_tensors(folder / weights, clip.state_dict())
    tokenizer.save_pretrained(folder)
    pixels = {"mean": CLIP_MEAN, "std": CLIP_STD}
    write_text(folder / configuration, json.dumps({"model_cfg": config, "preprocess_cfg": pixels}, indent=1) + "\n")


def _clip_settings(path: Path) -> tuple[dict, dict]:
    """Return the configuration of the network and of its images."""
    settings = _read_json(path)
    parts = settings.get("model_cfg"), settings.get("preprocess_cfg", {})
    if not all(isinstance(part, dict) for part in parts) or not isinstance(parts[0].get("vision_cfg"), dict):
        raise UserError(f"{path} does not describe a CLIP; get the base again")
    return parts


def _clip_pixel_settings(path: Path) -> dict:
    """Return side, mean and standard deviation of a CLIP, named as a Hugging Face image processor names them."""
    network, pixels = _clip_settings(path)
    mean, std = pixels.get("mean", CLIP_MEAN), pixels.get("std", CLIP_STD)
    return {"size": network["vision_cfg"].get("image_size", 224), "image_mean": mean, "image_std": std}


def _pixel_settings(settings: dict, path: Path) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Return side, mean and standard deviation as a Hugging Face image processor keeps them."""
    size = settings.get("size", DEFAULT_SIDE)
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge"))
    mean, std = (tuple(settings.get(f"image_{k}", v)) for k, v in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)))
    if not isinstance(size, int) or size < 1 or len(mean) != 3 or len(std) != 3 or 0 in std:
        raise UserError(f"{path} has no valid size, image_mean or image_std; get the base again")
    return size, mean, std


def hash_weights(path: Path) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of the floating-point tensors of a file.

    Tensors are taken in order of their names, so a file and its re-saved or converted copy are equal.

    Raises:
        UserError: the file is truncated or not safetensors.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); get it again") from error
    return _hash_weights(path, status.st_mtime_ns, status.st_size)


@lru_cache
def _hash_weights(path: Path, modified_ns: int, size: int) -> str:
    """Hash a file once, as long as it stays the same."""
    digest = hashlib.sha256()
    try:
        with safe_open(path, framework="pt") as file:
            for key in sorted(file.keys()):
                tensor = file.get_tensor(key)
                if tensor.is_floating_point():
                    digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or not safetensors ({error}); get it again") from error
    return digest.hexdigest()


def _find_base(name_or_folder: str) -> Path:
    candidates = [Path(name_or_folder), *(folder / name_or_folder for folder in model_folders())]
    for folder in candidates if name_or_folder else []:
        if is_base(folder):
            return folder
    if name_or_folder in PUBLIC_BASES:
        return _fetch(name_or_folder)
    raise UserError(
        f"there is no base '{name_or_folder}'; there are {', '.join(base_names())}, "
        "or give a folder that holds a CLIPSeg (config.json, model.safetensors, tokenizer) "
        "or a CLIP of open_clip (open_clip_config.json, open_clip_model.safetensors)"
    )


def _fetch(name: str) -> Path:
    repository = PUBLIC_BASES[name]
    wanted = ["*.json", "*.txt", "*.safetensors", "*.bin"]
    if name.startswith("clip-"):
        wanted = ["*.json", "*.txt", KIND_FILES["clip"][1]]  # the rest holds the vision tower alone, or repeats it
    try:
        return Path(snapshot_download(repository, allow_patterns=wanted, local_files_only=True))
    except OSError:
        pass  # not in the cache yet
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises errors of several libraries when there is no network
        raise UserError(
            f"the base '{name}' is not on this machine and cannot be fetched ({type(error).__name__}); put the "
            f"files of {repository} into {user_models() / name}, or give their folder with --base FOLDER"
        ) from error
    check_fetched(folder)
    return folder


def check_fetched(folder: Path) -> None:
    """Compare large files with their SHA-256 on the hub, by which its cache names them.

    Raises:
        UserError: one of them is another.
    """
    for path in sorted(folder.iterdir()):
        blob = path.resolve()
        if re.fullmatch("[0-9a-f]{64}", blob.name) and sha256_of(blob) != blob.name:
            raise UserError(
                f"{path.name} is not the file that the hub has (checksum differs); delete {blob}, try again"
            )


def _base_name(name_or_folder: str) -> str:
    return Path(name_or_folder).resolve().name if Path(name_or_folder).is_dir() else name_or_folder


def _with_safetensors(folder: Path, kind: str) -> Path:
    """Return a folder with safetensors weights: the same, or a converted copy that is made once."""
    _, weights, pickle = KIND_FILES[kind]
    if (folder / weights).is_file():
        return folder
    pickled = folder / pickle
    if not pickled.is_file():
        raise UserError(f"{folder} holds no {weights}; the base is incomplete, get it again")
    hashes = "".join(sha256_of(path) for path in [pickled, *_small_files(folder)])
    copy = user_models() / ".converted" / hashlib.sha256(hashes.encode()).hexdigest()[:16]
    if not (copy / weights).is_file():
        _convert(pickled, copy / weights)
    return copy


def _convert(pickled: Path, safe: Path) -> None:
    try:
        weights = torch.load(pickled, map_location="cpu", weights_only=True)
        weights = {name: weight.clone().contiguous() for name, weight in weights.items()}
    except Exception as error:  # torch raises many kinds for a damaged or a hostile file
        raise UserError(f"{pickled} is damaged or holds more than weights; get it again") from error
    safe.parent.mkdir(parents=True, exist_ok=True)
    for path in _small_files(pickled.parent):
        shutil.copy(path, safe.parent / path.name)
    write_tensors(safe, weights, {"format": "pt"})


def _small_files(folder: Path) -> list[Path]:
    """Return the files of configuration and tokenizer."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt"))


def _with_card(base: Base) -> Base:
    """Return a base with the presence threshold of its card, if it has one, whose weights these must be."""
    path = base.folder / "card.json"
    card = _read_json(path) if path.is_file() else {}
    if path.is_file() and card.get("sha256") != base.sha256:
        raise UserError(f"the weights in {base.folder} are not those of its card; get the base '{base.name}' again")
    threshold = card.get("presence_threshold", base.presence_threshold)
    if type(threshold) not in (int, float) or not 0 <= threshold <= 1:
        raise UserError(f"{path} has a presence_threshold that is no probability; get the base '{base.name}' again")
    return replace(base, presence_threshold=threshold)


def _read_json(path: Path) -> dict:
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings; get the base again")
    return values


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
