"""What a sentence encoder knows of words, handed to a small text encoder: which phrases mean nearly the same."""

import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from pydicom.sr.codedict import codes
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from engine.archives import DAMAGE, safe_entries
from engine.errors import UserError
from engine.models.pretrained import PackagedFile, fetch
from engine.models.weights import write_tensors

TERMS = (codes.cid4, codes.cid7191, codes.cid7192, codes.cid7194)
LONGEST_WORDS = 6  # longer phrases say the same again
AT_A_TIME = 128


@dataclass(frozen=True)
class Lesson:
    """Phrases and their embeddings.

    Attributes:
        embeddings: (phrases, width) float, of length 1.
    """

    phrases: list[str]
    embeddings: Tensor

    def save(self, path: Path) -> None:
        write_tensors(path, {"embeddings": self.embeddings.half()}, {"phrases": json.dumps(self.phrases)})

    @classmethod
    def load(cls, path: Path) -> "Lesson":
        """Raises:
        UserError: the file is missing or damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                return cls(json.loads(file.metadata()["phrases"]), file.get_tensor("embeddings").float())
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} holds no lesson for the text encoder ({error}); pack it again") from error

    def draw(self, count: int, random: np.random.Generator) -> tuple[list[str], Tensor]:
        """Return some phrases, and how alike each two are (count, count), −1..1."""
        chosen = random.choice(len(self.phrases), min(count, len(self.phrases)), replace=False)
        return [self.phrases[i] for i in chosen], likeness(self.embeddings[torch.from_numpy(chosen)])


def likeness(vectors: Tensor) -> Tensor:
    """Return the cosine of each two of n vectors (n, n)."""
    unit = F.normalize(vectors, dim=-1)
    return unit @ unit.T


def clinical_terms() -> list[str]:
    """Return the names of what DICOM's lists of anatomic regions, organs, tissues and lesions hold."""
    return sorted({code.meaning for group in TERMS for code in group.concepts.values()})


def prepare_lesson(teacher: PackagedFile, phrases: Iterable[str]) -> Lesson:
    """Let a sentence encoder of Hugging Face's format, in a ZIP file, embed the shorter ones of some phrases.

    Raises:
        UserError: it cannot be had or is damaged.
    """
    phrases = sorted({p for p in phrases if len(p.split()) <= LONGEST_WORDS}, key=lambda p: (len(p), p))
    path = fetch(teacher)
    with TemporaryDirectory() as name:
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(name, safe_entries(archive, path))
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
            encoder = AutoModel.from_pretrained(name, local_files_only=True).eval()
        except (OSError, ValueError, *DAMAGE) as error:
            raise UserError(f"{path} holds no sentence encoder ({' '.join(str(error).split())[:200]})") from error
    parts = [phrases[i : i + AT_A_TIME] for i in range(0, len(phrases), AT_A_TIME)]
    return Lesson(phrases, torch.cat([_embed(encoder, tokenizer, part) for part in parts]))


@torch.inference_mode()
def _embed(encoder: torch.nn.Module, tokenizer, phrases: Sequence[str]) -> Tensor:
    tokens = tokenizer(list(phrases), return_tensors="pt", padding=True, truncation=True)
    features = encoder(**tokens).last_hidden_state
    mask = tokens.attention_mask[..., None]
    return F.normalize((features * mask).sum(1) / mask.sum(1), dim=-1).clone()
