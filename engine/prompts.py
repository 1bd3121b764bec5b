"""Prompts: from what a person typed to the tokens of a base."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from engine.errors import UserError

MAXIMUM_TOKENS = 77


def split_prompts(text: str) -> list[str]:
    """Split what was typed into prompts: one a line, or separated by semicolons; empty ones are dropped."""
    return [prompt for part in re.split(r"[;\n]", text) if (prompt := " ".join(part.split()))]


def check_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> None:
    """Refuse prompts that a base cannot read whole.

    Raises:
        UserError: no prompt, an empty one, one given twice, or one past 77 tokens.
    """
    if not prompts:
        raise UserError("no prompt; say what to segment, for example --prompt brain")
    for prompt in prompts:
        if not prompt.strip():
            raise UserError("an empty prompt; say what to segment, for example --prompt brain")
        count = len(tokenizer(prompt).input_ids)
        if count > MAXIMUM_TOKENS:
            raise UserError(
                f"the prompt '{prompt[:40]}…' has {count} tokens and the base reads at most {MAXIMUM_TOKENS}; "
                "shorten it"
            )
    repeated = {prompt for prompt in prompts if list(prompts).count(prompt) > 1}
    if repeated:
        raise UserError(f"the prompt '{min(repeated)}' is given twice; give it once")


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Tensor:
    """Return token ids (prompts, tokens) int64, padded to the longest; a prompt past 77 tokens is cut and
    keeps its end-of-text token."""
    encoded = tokenizer(list(prompts), padding=True, truncation=True, max_length=MAXIMUM_TOKENS)
    return torch.tensor(encoded.input_ids)
