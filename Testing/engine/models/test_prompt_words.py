"""Which words a base cannot know, by its tokenizer."""

import pytest

from engine.models.bases import open_base
from engine.models.vocabulary import clip_tokenizer
from engine.prompts import unknown_words

LEARNED = ["brain", "left lung", "grey matter", "anterior hippocampus", "white matter of the brain", "T1"]


@pytest.mark.parametrize("prompt", ["мозг", "脑", "دماغ", "뇌", "मस्तिष्क", "מוח", "brain 脑"])
def test_words_of_other_scripts_are_unknown_to_every_base(prompt):
    for tokenizer in (open_base("mini").load_tokenizer(), clip_tokenizer()):
        assert unknown_words(tokenizer, prompt) and "brain" not in unknown_words(tokenizer, prompt)


@pytest.mark.parametrize("prompt", LEARNED)
def test_words_that_were_learned_are_known(prompt):
    assert unknown_words(open_base("mini").load_tokenizer(), prompt) == []


@pytest.mark.parametrize("prompt", [*LEARNED, "hippocampus", "β-amyloid", "µm", "pancreas", "gallbladder"])
def test_clip_knows_english(prompt):
    assert unknown_words(clip_tokenizer(), prompt) == []


@pytest.mark.parametrize("word", ["Gehirn", "Leber", "cerveau", "foie", "pancreas"])
def test_a_small_base_does_not_know_what_it_never_saw(word):
    assert unknown_words(open_base("mini").load_tokenizer(), f"left {word}") == [word]
