"""Prompts: from what a person typed to the tokens of a base."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from engine.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

MAXIMUM_TOKENS = 77
KNOWN_SCRIPTS = ("LATIN", "GREEK")  # Greek letters stand in English terms
KNOWN_LETTERS, SHORT_WORD = 3, 3  # a word that was learned has a token of so many; shorter words are let be
OTHER_STRUCTURES = (  # asked for where they are not, in training and in tests
    "liver",
    "left ventricle",
    "fetal head",
    "knee cartilage",
    "optic disc",
    "tooth",
    "polyp",
    "tumor",
)


def absent_from(wordings: Iterable[str], structures: Sequence[str]) -> list[str]:
    """Return the structures that none of the wordings of a data set can mean: none has their last word."""
    words = {_stem(word) for wording in wordings for word in re.findall(r"\w+", wording.lower())}
    return [structure for structure in structures if _stem(structure.split()[-1]) not in words]


def _stem(word: str) -> str:
    return word.replace("tumour", "tumor").removesuffix("s")


def split_prompts(text: str) -> list[str]:
    """Split what was typed into prompts: one a line, or separated by semicolons; empty ones are dropped."""
    return [prompt for part in re.split(r"[;\n]", text) if (prompt := " ".join(part.split()))]


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse prompts that say nothing.

    Raises:
        UserError: no prompt, an empty one, one that is no valid text, or one given twice.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise UserError("an empty prompt; say what to segment, for example --prompt brain")
    try:
        "".join(prompts).encode()
    except UnicodeEncodeError:
        raise UserError("a prompt holds bytes that are no text; type it again") from None
    repeated = sorted({prompt for prompt in prompts if list(prompts).count(prompt) > 1})
    if repeated:
        raise UserError(f"the prompt '{repeated[0]}' is given twice; give it once")


def check_lengths(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str]) -> None:
    """Refuse prompts that a base cannot read whole.

    Raises:
        UserError: a prompt past 77 tokens.
    """
    for prompt in too_long(tokenizer, prompts):
        raise UserError(
            f"the prompt '{prompt[:40]}…' has {_length(tokenizer, prompt)} tokens and the base reads at most "
            f"{MAXIMUM_TOKENS}; shorten it"
        )


def too_long(tokenizer: "PreTrainedTokenizerBase", prompts: Iterable[str]) -> list[str]:
    """Return the prompts of which a base reads the first 77 tokens alone."""
    return [prompt for prompt in prompts if _length(tokenizer, prompt) > MAXIMUM_TOKENS]


def _length(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> int:
    return len(tokenizer(prompt, verbose=False).input_ids)  # which would warn in its own words


def unknown_words(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[str]:
    """Return the words of a prompt that a base cannot have learned: those of other scripts, as all bases learned
    English, and those that its tokenizer takes apart into single letters, or nearly."""

    def is_known(word: str) -> bool:
        if not all(unicodedata.name(letter, "").startswith(KNOWN_SCRIPTS) for letter in word):
            return False
        tokens = tokenizer(word, add_special_tokens=False, verbose=False).input_ids
        longest = max((len(tokenizer.decode([token]).strip()) for token in tokens), default=0)
        return len(word) <= SHORT_WORD or longest >= KNOWN_LETTERS

    words = re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", prompt))
    return [word for word in dict.fromkeys(words) if not is_known(word)]


def encode_prompts(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str]) -> "Tensor":
    """Return token ids (prompts, tokens) int64, padded to the longest; a prompt past 77 tokens is cut and
    keeps its end-of-text token."""
    settings = {"padding": True, "truncation": True, "max_length": MAXIMUM_TOKENS}
    return tokenizer(list(prompts), return_tensors="pt", **settings).input_ids
