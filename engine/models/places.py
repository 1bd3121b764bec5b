"""Where models are, and which there are. Needs no torch, so that they can be listed without."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
HUB = "hf:"  # before OWNER/NAME of an adapter on the Hugging Face Hub
PUBLIC_BASES = {
    "clipseg": "CIDAS/clipseg-rd64-refined",
    "clip-vit-b-16": "timm/vit_base_patch16_clip_224.openai",
    "clip-rn50": "timm/resnet50_clip.openai",
}
# of each kind of base: configuration, weights, and the pickled weights that are converted. A folder of open_clip
# may hold a config.json of something else beside, so its kind is looked for first.
KIND_FILES = {
    "clip": ("open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    "clipseg": ("config.json", "model.safetensors", "pytorch_model.bin"),
}


def shipped(folder: str) -> Path:
    """Return where a folder lies that comes with the engine: inside the package where pip installed it, and beside
    it in the repository and in Slicer's extension."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


SHIPPED_MODELS = shipped("Resources/Models")


def user_models() -> Path:
    """Return the folder of the user's own bases and adapters: VLSM_MODELS, or ~/.vlsm-segmenter/models."""
    return Path(os.environ.get("VLSM_MODELS") or Path.home() / ".vlsm-segmenter" / "models")


def model_folders() -> list[Path]:
    """Return the folders in which models are looked up by name: the user's own before the shipped ones."""
    return [user_models(), SHIPPED_MODELS]


def is_base(folder: Path) -> bool:
    """Return whether a folder holds a base of any kind."""
    return any((folder / files[0]).is_file() for files in KIND_FILES.values())


def base_names() -> list[str]:
    """Return the names under which bases can be asked for."""
    return sorted({*local_base_names(), *PUBLIC_BASES})


def local_base_names() -> list[str]:
    """Return the names of the bases in the model folders."""
    configurations = [files[0] for files in KIND_FILES.values()]
    return sorted(
        {p.parent.name for folder in model_folders() for c in configurations for p in folder.glob(f"*/{c}")}
    )
