"""Pictures of what adapters find in test images, and a page that shows them, as far as the images' terms allow."""

import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.data import DataSet
from engine.evaluation.measuring import ALL, Score, by_structure
from engine.evaluation.metrics import dice
from engine.evaluation.shipped import Trial
from engine.evaluation.terms import Terms, terms_of
from engine.files import write_text
from engine.imaging.volumes.segments import Segment, segment_colors
from engine.pictures.gallery import Exhibit, compared, write_gallery
from engine.pictures.phantoms import Draw
from engine.segmentation.segmenter import Segmenter
from engine.tables import with_interval

PLACES = ("best", "upper third", "lower third", "worst")
INCHES, TOGETHER_INCHES = 2.4, 3.2
LONGEST_PROMPT = 40
INTRODUCTION = """# Gallery

What the shipped adapters make of images that they were not trained on. The upper row of a picture shows the
images alone, with the prompt; the lower row the same with two outlines: **green** is the reference, **red**
what the adapter found. Nobody picked the images: of the measured ones in which the structure is, ranked by Dice
with the plain class prompt, they are the best, the worst, and those at a third and at two thirds of the way.
Dice is 1 where both outlines agree and 0 where they have nothing in common; of a volume it counts all slices,
of which one is shown: that with most of both.

Images are shown only where their terms allow it: few, small, with a credit in the picture, and under the same
terms whatever the licence of the project's code. Where they do not, the adapter was given pictures that are
drawn by a few lines of code ([`engine/pictures/phantoms.py`](../../engine/pictures/phantoms.py)): they show what
is asked, not how well it is done on patients. For research only; not a medical device.

    python -m engine.results --data FOLDER … -o results --gallery Resources/Gallery

makes this page again, and measures.
"""


@dataclass(frozen=True)
class Section:
    """A part of the page: its title, a picture where there is one, and what is said below (Markdown)."""

    title: str
    picture: Path | None
    text: str


def exhibit(segmenter: Segmenter, data_set: DataSet, score: Score, title: str, plane: str | None = None) -> Exhibit:
    """Return the case of a score with the reference, and what is found again for its prompt in these planes."""
    case = data_set.case(score.case)
    truth = next(truth.mask for truth in case.truths if truth.structure == score.structure)
    segmenter.set_volume(case.volume, plane)
    return compared(title, case.volume, truth, segmenter.segment(score.prompt, cut=True).mask())


def draw_row(path: Path, trial: Trial, segmenter: Segmenter, scores: Sequence[Score]) -> Section:
    """Draw test images, or drawn pictures in their place, with references and results, as far as there are any."""
    terms = terms_of(trial.data_set.name)
    ranked = sorted((s for s in scores if s.kind == "plain" and s.truth_share), key=lambda score: -score.dice)
    prompts, exhibits = [], []
    if terms.shown:
        prompts, exhibits = _test_images(trial.data_set, segmenter, ranked)
    elif terms.draw and ranked:
        prompts, exhibits = _drawn_pictures(terms.draw, segmenter, ranked[0].prompt)
    if exhibits:
        alone = [
            replace(shown, title=_shortened(prompt), outlined=False)
            for prompt, shown in zip(prompts, exhibits, strict=True)
        ]
        write_gallery(path, [*alone, *exhibits], len(exhibits), INCHES, legend=True, note=terms.credit)
    text = f"{_figures(trial, scores)}\n\n{_said_of(terms)}"
    return Section(trial.card.name, path if exhibits else None, text)


def draw_together(path: Path, trial: Trial, segmenter: Segmenter, scores: Sequence[Score]) -> Section | None:
    """Draw one test image with what several prompts find in it; None where there is no such image.

    Of the images that show all the structures, it is the one with the median of their mean Dice.
    """
    terms = terms_of(trial.data_set.name)
    together = _scores_together(terms, scores)
    if not (terms.shown and together):
        return None
    chosen = sorted(together, key=lambda found: sum(score.dice for score in found))[len(together) // 2]
    exhibits = [exhibit(segmenter, trial.data_set, score, "") for score in chosen]
    captions = [f"{start}: Dice {score.dice:.2f}" for start, score in zip(terms.together, chosen, strict=True)]
    colors = segment_colors(terms.together)
    references, results = (
        [
            Segment(caption, shown.segments[side].mask, color)
            for caption, shown, color in zip(captions, exhibits, colors, strict=True)
        ]
        for side in (0, 1)
    )
    volume = exhibits[0].volume
    panels = [
        Exhibit("image", volume, references, outlined=False),
        Exhibit("references", volume, references),
        Exhibit("results", volume, results),
    ]
    write_gallery(path, panels, len(panels), TOGETHER_INCHES, legend=True, note=terms.credit)
    text = f"One image, encoded once, then asked for each structure in turn (`{trial.card.name}`).\nOf the "
    text += (
        f"{len(together)} measured images that show all of them, it is the one with the median of the mean Dice."
    )
    return Section("Three prompts on one image", path, f"{text}\n\n{_said_of(terms)}")


def write_page(path: Path, sections: Sequence[Section]) -> None:
    """Write the page; its pictures lie beside it."""
    parts = [INTRODUCTION]
    for section in sections:
        picture = f"![{section.title}]({section.picture.name})\n\n" if section.picture else ""
        parts.append(f"## {section.title}\n\n{picture}{section.text}\n")
    write_text(path, "\n".join(parts))


def _test_images(
    data_set: DataSet, segmenter: Segmenter, ranked: Sequence[Score]
) -> tuple[list[str], list[Exhibit]]:
    """Return prompts and exhibits from the best to the worst score."""
    places = np.linspace(0, len(ranked) - 1, min(len(PLACES), len(ranked))).round().astype(int)
    names = PLACES if len(places) == len(PLACES) else [f"{place + 1} of {len(ranked)}" for place in places]
    chosen = [ranked[place] for place in places]
    exhibits = [
        exhibit(segmenter, data_set, score, f"Dice {score.dice:.2f} ({name})")
        for score, name in zip(chosen, names, strict=True)
    ]
    return [score.prompt for score in chosen], exhibits


def _drawn_pictures(draw: Draw, segmenter: Segmenter, prompt: str) -> tuple[list[str], list[Exhibit]]:
    exhibits = []
    for seed in range(len(PLACES)):
        volume, truth = draw(seed)
        segmenter.set_volume(volume)
        result = segmenter.segment(prompt).mask()
        score = dice(int((result & truth).sum()), int(result.sum()), int(truth.sum()))
        exhibits.append(compared(f"Dice {score:.2f}", volume, truth, result))
    return [prompt] * len(exhibits), exhibits


def _scores_together(terms: Terms, scores: Sequence[Score]) -> list[list[Score]]:
    """Return, for each case that shows all the structures that are asked for together, their scores."""
    by_case: dict[str, list[Score]] = defaultdict(list)
    for start in terms.together:
        for score in scores:
            if score.kind == "plain" and score.truth_share and score.structure.startswith(start):
                by_case[score.case].append(score)
    return [found for found in by_case.values() if len(found) == len(terms.together)]


def _figures(trial: Trial, scores: Sequence[Score]) -> str:
    structures = by_structure([score for score in scores if score.kind == "plain"])
    means = structures.get(ALL) or next(iter(structures.values()))
    count, of = trial.data_set.case_count, trial.split_cases
    cases = f"{count} of {of} test cases" + (", evenly spread," if count < of else "")
    figure = with_interval(means, "dice", 3)
    return f"Dice {figure} with the plain class prompt, over {cases} of `{trial.data_set.name}`."


def _said_of(terms: Terms) -> str:
    if terms.shown:
        changes = "made small, with outlines drawn on them"
        return f"Images: {terms.title} ({terms.source}).\nLicence: {terms.licence}; {changes}."
    drawn = "These pictures are drawn. " if terms.draw else ""
    return f"{drawn}No image of {terms.title} is shown: {terms.reason}\n({terms.source})."


def _shortened(prompt: str) -> str:
    return textwrap.shorten(prompt, LONGEST_PROMPT, placeholder=" …")
