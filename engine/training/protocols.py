"""What the paper's own code does differently, as data: each difference is a field of the plan, with its reason.

`--protocol paper` takes these values where none are given one by one; the product's own are the defaults of `Plan`.
The code is naamiinepal/vlsm-adapter, with naamiinepal/medvlsm for what it leaves out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from engine.choices import METHODS, PAPER, PRODUCT

BASE = "base"  # no field of the plan, but chosen like one


@dataclass(frozen=True)
class Difference:
    """A field that the paper's code sets in another way.

    Attributes:
        field: of `Plan`, or the base.
        value: theirs; {method: value} where it depends on the method, which has the product's own where it is not
            named.
        reason: where theirs comes from, and why ours is another.
    """

    field: str
    value: object
    reason: str


DIFFERENCES = (
    Difference(
        BASE,
        dict.fromkeys(METHODS, "clipseg") | {"san": "clip-vit-b-16", "cris": "clip-rn50"},
        "each method stands on its own public weights: SAN on CLIP ViT-B/16 at 640 pixels, CRIS on CLIP RN50 "
        "at 416, both with CLIP's mean and deviation; ours is the base that is shipped",
    ),
    Difference(
        "learning_rate",
        {"shallow": 3e-4, "dense": 1e-3, "decoder": 1e-3, "full": 1e-3, "san": 3e-4, "cris": 1e-4},
        "scripts/finetune.py; ours are gentler where the base itself is trained, and SAN's is that of the "
        "benchmark's configuration, which the script overrides",
    ),
    Difference(
        "variant",
        {"san": "released", "cris": "released"},
        "SAN: CLIP's layers 0, 1, 2 go into the side layers 0, 3, 6, the reverse of SAN's map, and no "
        "gradient passes CLIP, so that 7.12 of 8.37 million parameters are trained; CRIS: the last "
        "enlargement is bicubic with aligned corners; ours follow the papers of both, with a bilinear "
        "enlargement",
    ),
    Difference(
        "start",
        {"cris": "cris-refcoco"},
        "CRIS starts from its authors' weights for RefCOCO (cris_best.pth); they are read by `engine.adapters "
        "import`, and nothing is trained on them otherwise",
    ),
    Difference(
        "loss",
        "reference",
        "probabilities go into MONAI's DiceCELoss, whose cross-entropy takes them for logits; a perfect "
        "answer then costs 0.66, so ours gives logits",
    ),
    Difference(
        "dice_smoothing",
        1e-5,
        "MONAI's default; with one pixel instead, an empty mask has a gradient, which absent prompts need",
    ),
    Difference(
        "precision",
        "fp16",
        "the trainer's 16-mixed; ours takes bf16 where the device computes in it, which needs no scaling of "
        "gradients",
    ),
    Difference(
        "mask_resize",
        "nearest",
        "Pillow's nearest neighbour; a bilinear resize that is cut at one half moves edges less",
    ),
    Difference(
        "mask_above",
        0,
        "scripts/eval_metrics.py counts every grey value above 0; in a JPEG these ring around the edges, so "
        "ours parts them in the middle",
    ),
    Difference("absent_rate", 0.0, "the code asks for nothing that is absent; ours teaches to answer 'not found'"),
    Difference(
        "minimum_epochs",
        10,
        "the trainer's min_epochs; with a patience of 20 it never decides, and is kept for form",
    ),
    Difference(
        "minimum_gain",
        1e-4,
        "early stopping's min_delta; ours counts any gain, as an adapter that finds nothing yet may learn slowly",
    ),
    Difference(
        "validation_prompts",
        "random",
        "every split draws from all prompts but p0; the best epoch then depends on the draw, so ours asks the same",
    ),
    Difference("largest_validation", 0, "all of the split is validated; ours thins what is above 256 to save time"),
    Difference(
        "test_prompts",
        "random",
        "as in training, though the longer prompts were made from the masks and give part of the answer away; "
        "ours reports the plain class prompt",
    ),
    Difference(
        "presence_gate",
        False,
        "there is no 'not found'; ours empties a mask whose presence is below the calibrated threshold",
    ),
    Difference(
        "metric_grid",
        "enlarged",
        "masks are cut at one half on the base's square, enlarged by nearest neighbour to the picture's size "
        "and measured there (src/train.py, scripts/eval_metrics.py), while the log of a test has them on the "
        "square ('square'); ours enlarges the probability, then cuts it",
    ),
)
PROTOCOLS = {PRODUCT: (), PAPER: DIFFERENCES}


def settings(protocol: str, method: str) -> dict[str, object]:
    """Return the fields of the plan that a protocol sets for a method, with their values; without the base.

    Raises:
        KeyError: an unknown protocol.
    """
    values = {d.field: of_method(d, method) for d in PROTOCOLS[protocol] if d.field != BASE}
    return {field: value for field, value in values.items() if value is not None} | {"protocol": protocol}


def base_of(protocol: str, method: str) -> str:
    """Return the base on which a protocol trains a method."""
    bases = (of_method(d, method) for d in PROTOCOLS[protocol] if d.field == BASE)
    return next(filter(None, bases), "mini")


def of_method(difference: Difference, method: str) -> object:
    """Return the value for a method; None where the product's own stands."""
    value = difference.value
    return value.get(method) if isinstance(value, Mapping) else value


def reasons(protocol: str, method: str) -> dict[str, str]:
    """Return {field: reason} of what a protocol sets for a method; for the card."""
    return {d.field: d.reason for d in PROTOCOLS[protocol] if of_method(d, method) is not None}
