"""Words of prompts as lists of coded terms spell them. Needs nothing but Python."""

import re

ARTICLES = {"the", "a", "an"}
AMERICAN = {
    "caecum": "cecum",
    "foetus": "fetus",
    "grey": "gray",
    "oedema": "edema",
    "oesophagus": "esophagus",
    "tumour": "tumor",
}


def plain_words(text: str) -> list[str]:
    """Return the words of a text in lower case and American spelling, without articles."""
    words = re.findall(r"[^\W_]+", text.lower())
    return [AMERICAN.get(word, word) for word in words if word not in ARTICLES]
