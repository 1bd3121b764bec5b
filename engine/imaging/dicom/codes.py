"""What prompts mean in DICOM's coded terms (SNOMED CT), by the lists of the standard that pydicom keeps."""

from functools import cache
from typing import NamedTuple

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from engine.spelling import plain_words

# Each category (PS3.16, CID 7150) with the group of its types; the first that knows a word wins.
GROUPS = (
    (codes.SCT.AnatomicalStructure, codes.cid7192),
    (codes.SCT.Tissue, codes.cid7191),
    (codes.SCT.MorphologicallyAbnormalStructure, codes.cid7194),
    (codes.SCT.BodySubstance, codes.cid7197),
    (codes.SCT.PhysicalObject, codes.cid7193),
)
SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}
SAME = {"tumor": "neoplasm", "urinary bladder": "bladder"}  # SNOMED's own synonyms


class Meaning(NamedTuple):
    """Category and type of a segment (PS3.3 C.8.20.4), and the side of a paired organ."""

    category: Code
    type: Code
    side: Code | None = None


GENERAL = Meaning(codes.SCT.Tissue, codes.SCT.Tissue)


def meaning_of(prompt: str) -> Meaning:
    """Return the coded meaning of a prompt: "left lung" is Lung, Left. `GENERAL` where no list knows it.

    Articles, plurals, capitals and British spelling do not matter.
    """
    words = plain_words(prompt)
    whole = _known(words)
    if whole or not words or words[0] not in SIDES:
        return whole or GENERAL
    part = _known(words[1:])
    return part._replace(side=SIDES[words[0]]) if part else GENERAL


def _known(words: list[str]) -> Meaning | None:
    text = " ".join(words)
    names = (SAME.get(name, name) for name in (text, text.removesuffix("s")))
    return next((_table()[name] for name in names if name in _table()), None)


@cache
def _table() -> dict[str, Meaning]:
    table: dict[str, Meaning] = {}
    for category, group in GROUPS:
        for code in group.concepts.values():
            table.setdefault(" ".join(plain_words(code.meaning)), Meaning(category, code))
    return table
