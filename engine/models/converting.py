"""Adapters of the paper's own code, and CRIS of its authors': a checkpoint becomes a bundle.

The reference (naamiinepal/vlsm-adapter, src/models/clipseg_adapter.py and base_module.py) saves its module whole:
under `net.` the adapters, and the frozen CLIPSeg as `clipseg.`, of which shallow ones hold the part `clip.` twice.
Its adapters are those of `nets/methods`, layer for layer in the same order, under other names. It takes the
highest token of a prompt as its end, which is the end-of-text token in CLIP's vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from engine.choices import PLACEMENTS, VARIANTS
from engine.errors import UserError
from engine.files import sha256_of
from engine.models.bases import Base, open_base
from engine.models.places import local_base_names
from engine.nets.adapter import Adapter, BaseShape
from engine.nets.cris import CRIS
from engine.nets.methods import METHODS, build_adapter

LISTS = {  # method -> our list of bottlenecks -> the reference's
    "shallow": {"vision": "vision_extract_adapters", "text": "text_extract_adapters"},
    "dense": {
        "vision_attentions": "v_attn_adapters",
        "vision_mlps": "v_out_adapters",
        "text_attentions": "l_attn_adapters",
        "text_mlps": "l_out_adapters",
    },
}
CRIS_NAMES = {  # how our weights of CRIS begin -> how DerrickWang005/CRIS.pytorch has them
    "clip.": "backbone.",
    "shortcut.": "backbone.visual.attnpool.connect.",
    "neck.project_sentence.": "neck.txt_proj.",
    "neck.project_fifth.": "neck.f1_v_proj.",
    "neck.norm_fifth.": "neck.norm_layer.0.",
    "neck.project_fourth.": "neck.f2_v_proj.",
    "neck.join_fourth.": "neck.f2_cat.",
    "neck.project_third.": "neck.f3_v_proj.",
    "neck.join_third.": "neck.f3_cat.",
    "neck.refine.0.": "neck.f4_proj3.",
    "neck.refine.1.": "neck.f4_proj4.",
    "neck.refine.2.": "neck.f4_proj5.",
    "neck.aggregate.": "neck.aggr.",
    "neck.locate.0.": "neck.coordconv.0.conv1.",
    "neck.locate.1.": "neck.coordconv.1.",
    "decoder.": "decoder.layers.",
    "decoder_norm.": "decoder.norm.",
    "projector.upsample.": "proj.vis.",
    "projector.kernel.": "proj.txt.",
}
CRIS_LAYER_NAMES = {  # within a layer of its decoder
    "norms.0.": "norm1.",
    "norms.1.": "norm2.",
    "norms.2.": "norm3.",
    "self_attention.": "self_attn.",
    "self_norm.": "self_attn_norm.",
    "word_attention.": "multihead_attn.",
    "word_norm.": "cross_attn_norm.",
    "mlp.": "ffn.",
}
CRIS_MARK = "neck.txt_proj.0.weight"
PARALLEL = "module."  # before each name, where it was trained on several GPUs
UNUSED = ("backbone.logit_scale",)
CONDITIONAL, THEIR_CONDITIONAL = "conditional", "cond_adapter"
LINEAR_LAYERS = {"down": "fc1", "up": "fc2"}
FROZEN = {"clipseg.": "", "clip.": "clip."}  # the reference's prefix -> Hugging Face's
SETTINGS = ("functools.partial", "torch.optim.", "torch.nn.", "monai.", "src.")  # what its hyper-parameters are of
DEFAULT_THRESHOLD = 0.5
NAMES_SHOWN = 3


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        weights: by the reference's names, without `net.`.
        threshold: of the probability, from its hyper-parameters.
    """

    path: Path
    sha256: str
    weights: dict[str, Tensor]
    threshold: float


@dataclass(frozen=True, eq=False)
class Converted:
    """An adapter with what `build_model` was given for it; `base_checked` says whether the checkpoint held the
    frozen weights too, and they are those of the base."""

    adapter: Adapter | CRIS
    method: str
    placement: str
    hidden_size: int
    base_checked: bool
    variant: str = VARIANTS[0]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a Lightning checkpoint, a state dict alone, or a .safetensors file. Nothing in it is run.

    Raises:
        UserError: the file is missing, damaged, holds objects of unknown kinds, or no weights.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; name a checkpoint (.ckpt, .pt or .safetensors)")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load_pickled(path)
    except UserError:
        raise
    except Exception as error:  # torch and safetensors raise many kinds for a damaged or a hostile file
        raise UserError(f"{path} is damaged or no checkpoint of PyTorch; get it again") from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} holds no state dict; name a checkpoint of VLSM-Adapter's code")
    settings = content.get("hyper_parameters")
    threshold = settings.get("threshold") if isinstance(settings, dict) else None
    valid = isinstance(threshold, float) and 0 < threshold < 1
    names = {str(name).removeprefix("net.").removeprefix(PARALLEL): weight for name, weight in weights.items()}
    return Checkpoint(path, sha256_of(path), names, threshold if valid else DEFAULT_THRESHOLD)


def convert(checkpoint: Checkpoint, base: Base) -> Converted:
    """Return the adapter of a checkpoint; its method, placement and width are read from names and shapes.

    Raises:
        UserError: no or an unknown adapter, another base, or weights that are missing, left over, of another
            shape or not finite.
    """
    path, weights = checkpoint.path, checkpoint.weights
    if CRIS_MARK in weights:
        return _convert_cris(checkpoint, base)
    method, placement = _kind(path, weights)
    network = base.load_network()
    base_checked = _check_frozen(path, weights, base, network.state_dict())
    first = weights.get(f"{next(iter(LISTS[method].values()))}.0.fc1.weight")
    hidden_size = METHODS[method].hidden_size if first is None or not first.ndim else len(first)
    adapter = build_adapter(method, placement, BaseShape.of(network.config), hidden_size)
    names = {ours: _their_name(method, ours) for ours in adapter.state_dict()}
    _check_adapter(path, weights, {names[ours]: w for ours, w in adapter.state_dict().items()}, base)
    adapter.load_state_dict({ours: weights[theirs] for ours, theirs in names.items()})
    return Converted(adapter, method, placement, hidden_size, base_checked)


def _convert_cris(checkpoint: Checkpoint, base: Base) -> Converted:
    """Return CRIS with all its weights; those of the base are replaced too, so that only its shape counts."""
    weights = {name: weight for name, weight in checkpoint.weights.items() if name not in UNUSED}
    net = CRIS(base.load_network(), VARIANTS[1])
    ours = net.state_dict()
    names = {name: _their_cris_name(name) for name in ours}
    _check_adapter(checkpoint.path, weights, {names[name]: weight for name, weight in ours.items()}, base)
    net.load_state_dict({name: weights[theirs] for name, theirs in names.items()})
    return Converted(net, "cris", "", 0, True, VARIANTS[1])


def _their_cris_name(ours: str) -> str:
    """Return the authors' name of one of our weights, for example decoder.layers.0.norm1.weight."""
    start = next(start for start in CRIS_NAMES if ours.startswith(start))
    rest = ours.removeprefix(start)
    if start == "decoder.":
        layer, _, rest = rest.partition(".")
        part = next(part for part in CRIS_LAYER_NAMES if rest.startswith(part))
        rest = f"{layer}.{CRIS_LAYER_NAMES[part]}{rest.removeprefix(part)}"
    return CRIS_NAMES[start] + rest


class _Setting:
    """Stands in for an object of a run's settings (optimizer, scheduler, loss): keeps nothing, does nothing."""

    def __init__(self, *arguments: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _load_pickled(path: Path) -> object:
    try:
        unknown = get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # the format before PyTorch 1.6, which has no list of names
        unknown = []
    foreign = sorted(name for name in unknown if not name.startswith(SETTINGS))
    if foreign:
        raise UserError(
            f"{path} holds more than weights and settings ({_some(foreign)}) and is not loaded, as it could run "
            "code; if you trust it, save its weights alone where it was trained: "
            "torch.save(torch.load(CKPT, weights_only=False)['state_dict'], 'weights.pt')"
        )
    with safe_globals([(_Setting, name) for name in unknown]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _kind(path: Path, weights: Mapping[str, Tensor]) -> tuple[str, str]:
    """Return method and placement."""
    there = {name.split(".")[0] for name in weights}
    methods = [method for method, lists in LISTS.items() if there & {*lists.values()}]
    if len(methods) != 1:
        known = " or ".join(next(iter(lists.values())) for lists in LISTS.values())
        raise UserError(
            f"{path} holds no shallow or dense adapter of VLSM-Adapter's code: it has no {known}, "
            f"but {_some(sorted(there)) or 'nothing'}"
        )
    parts = {ours.split("_")[0] for ours, theirs in LISTS[methods[0]].items() if theirs in there}
    has = {"V": "vision" in parts, "L": "text" in parts, "C": THEIR_CONDITIONAL in there}
    placement = "".join(letter for letter in has if has[letter])
    if placement not in PLACEMENTS:
        raise UserError(f"{path} has its adapters in {placement}; this engine knows {', '.join(PLACEMENTS)}")
    return methods[0], placement


def _their_name(method: str, ours: str) -> str:
    """Return the reference's name of one of our weights, for example v_attn_adapters.0.fc1.weight."""
    part, *number, layer, kind = ours.split(".")
    theirs = THEIR_CONDITIONAL if part == CONDITIONAL else LISTS[method][part]
    return ".".join([theirs, *number, LINEAR_LAYERS[layer], kind])


def _check_adapter(path: Path, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], base: Base) -> None:
    """Compare names and shapes of the adapter's weights with those that fit the base."""
    missing = [name for name in expected if name not in weights]
    left_over = [name for name in weights if name not in expected and not name.startswith(tuple(FROZEN))]
    misshapen = [
        f"{name} {tuple(weights[name].shape)} for {tuple(weight.shape)}"
        for name, weight in expected.items()
        if name in weights and weights[name].shape != weight.shape
    ]
    kinds = {"lacks": missing, "has left over": left_over, "has of another shape": misshapen}
    wrong = [f"{kind} {_some(names)}" for kind, names in kinds.items() if names]
    if wrong:
        raise UserError(f"{path} does not fit the base '{base.name}': it {'; it '.join(wrong)}")
    endless = [name for name in expected if not weights[name].isfinite().all()]
    if endless:
        raise UserError(f"{path} has weights that are not finite ({_some(endless)}); take an earlier checkpoint")


def _check_frozen(path: Path, weights: Mapping[str, Tensor], base: Base, of_base: Mapping[str, Tensor]) -> bool:
    """Refuse another base than the checkpoint's; return whether the checkpoint tells."""
    frozen = [
        (replacement + name.removeprefix(prefix), weight)
        for name, weight in weights.items()
        for prefix, replacement in FROZEN.items()
        if name.startswith(prefix) and not name.endswith("position_ids")  # these are no weights
    ]
    if not frozen:
        return False
    different = _different(frozen, of_base)
    if different:
        owner = next((name for name in local_base_names() if _is_of(frozen, name)), None)
        remedy = (
            f"is that of '{owner}': add --base {owner}" if owner else "is no base here: give its folder with --base"
        )
        raise UserError(
            f"the CLIPSeg in {path} is not the base '{base.name}' "
            f"({len(different)} weights differ, {_some(different)}); it {remedy}"
        )
    return True


def _different(frozen: list[tuple[str, Tensor]], of_base: Mapping[str, Tensor]) -> list[str]:
    """Return the names of frozen weights that a base has otherwise or that only one has."""
    unequal = {
        name
        for name, weight in frozen
        if name not in of_base
        or weight.shape != of_base[name].shape
        or not torch.equal(weight.float(), of_base[name].float())
    }
    absent = of_base.keys() - {name for name, _ in frozen}
    return sorted(unequal | {name for name in absent if not name.endswith("position_ids")})


def _is_of(frozen: list[tuple[str, Tensor]], base: str) -> bool:
    try:
        return not _different(frozen, open_base(base).load_network().state_dict())
    except UserError:  # a damaged base is not the one
        return False


def _some(names: list[str]) -> str:
    """Return the first names for a message."""
    return ", ".join(names[:NAMES_SHOWN]) + (" …" if len(names) > NAMES_SHOWN else "")
