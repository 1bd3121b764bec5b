"""Tokenizers in CLIP's form: a small one of its own for a small base, learned from prompts, and CLIP's."""

import gzip
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, files

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from engine.errors import UserError
from engine.prompts import MAXIMUM_TOKENS

START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_MERGES = 48894


def train_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Learn at most `size` tokens from texts. Any text can be encoded, since single bytes are tokens too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(texts)), trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=MAXIMUM_TOKENS,
    )


def clip_tokenizer() -> CLIPTokenizer:
    """Build CLIP's own tokenizer, of 49408 tokens, from the vocabulary in open_clip's package.

    Raises:
        UserError: the package is not installed.
    """
    try:
        path = next(f for f in files("open-clip-torch") or [] if f.name == "bpe_simple_vocab_16e6.txt.gz").locate()
    except (PackageNotFoundError, StopIteration) as error:
        raise UserError(
            "the base has no tokenizer.json, and CLIP's own is in the package open-clip-torch, which is not "
            'installed; install it: pip install --no-deps "open-clip-torch>=3.0"'
        ) from error
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : CLIP_MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = _letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAXIMUM_TOKENS)


def _letters() -> list[str]:
    """Return the letters that stand for the 256 bytes, in CLIP's order: printable ones, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(code) for code in printable] + [chr(256 + n) for n in range(256 - len(printable))]
