"""Measure an adapter on labelled images as a user would run it, at their original resolution."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch.nn import functional

from engine.choices import GRIDS
from engine.data import Case, DataSet, Truth, wordings
from engine.data.synonyms import Wordings
from engine.errors import UserError
from engine.evaluation.metrics import dice, hausdorff_95, intersection_over_union
from engine.models.presence import Rates
from engine.prompts import OTHER_STRUCTURES, absent_from
from engine.segmentation.segmenter import Segmenter

BOOTSTRAP_SAMPLES = 2000
ALL = "(all)"  # structures together
LARGEST_CALIBRATION = 200  # cases; more cost time and move the threshold little
HELD_OUT = "held out"
IN_VAIN = ("wrong", "absent")  # the kinds that ask for what is not there
DENIAL = "no "  # of a prompt such as "No tumor in the breast", for an image without one


@dataclass(frozen=True, eq=False)
class Question:
    """A prompt for a case, and the mask that it is measured by.

    Attributes:
        kind: plain, random, every, wrong, absent (see the functions of these names), or that of a variant.
        structure: what the mask shows, mostly its plain class prompt.
        mask: (z, y, x) bool.
        known: where it is measured, likewise; None for everywhere.
    """

    kind: str
    structure: str
    prompt: str
    mask: np.ndarray
    known: np.ndarray | None = None


Ask = Callable[[Case], Iterable[Question]]


def plain(case: Case) -> Iterator[Question]:
    """Ask for each structure by its plain class prompt."""
    for truth in case.truths:
        yield _question_of(truth, "plain", truth.plain_prompt)


def every(case: Case) -> Iterator[Question]:
    """Ask for each structure by all its wordings."""
    for truth in case.truths:
        for wording in dict.fromkeys(chain(*truth.prompts)):
            yield _question_of(truth, "every", wording)


def variants(case: Case) -> Iterator[Question]:
    """Ask for each structure by the other wordings that the data set has for measuring, each a kind of its own."""
    for truth in case.truths:
        for kind, wording in truth.variants:
            yield _question_of(truth, kind, wording)


def held_out(words: Wordings) -> Ask:
    """Ask for each structure by the wordings that no training has seen."""

    def ask(case: Case) -> Iterator[Question]:
        for truth in case.truths:
            for wording in words.held_out.get(words.structure(truth.plain_prompt), []):
                yield _question_of(truth, HELD_OUT, wording)

    return ask


def held_out_elsewhere(words: Wordings, data_set: DataSet) -> list[str]:
    """Return the wordings that no training has seen of what a data set does not have."""
    own = {words.structure(annotation.plain_prompt) for annotation in data_set.annotations}
    return [wording for name, wordings in words.held_out.items() if name not in own for wording in wordings]


def random(seed: int) -> Ask:
    """Ask for each structure by one of its wordings, as the paper does; the same one for a seed and a case."""

    def ask(case: Case) -> Iterator[Question]:
        for number, truth in enumerate(case.truths):
            draw = np.random.default_rng([seed, number, *case.name.encode()])
            wordings = truth.prompts[draw.integers(len(truth.prompts))]
            wording = wordings[draw.integers(len(wordings))]
            yield _question_of(truth, "random", wording)

    return ask


def wrong(prompts: Sequence[str], seed: int = 0) -> Ask:
    """Ask for something that is not there, and measure by what is: nothing should be found.

    Args:
        prompts: one is drawn for each case, of those that share no word with the wordings of what its masks
            show; a case for which none is left is not asked. The draw is the same for a seed and a case.
    """

    def ask(case: Case) -> Iterator[Question]:
        shown = [truth for truth in case.truths if truth.mask.any()]
        words = {word for truth in shown for wording in chain(*truth.prompts) for word in _words(wording)}
        absent = [prompt for prompt in prompts if not words & _words(prompt)]
        if absent:
            draw = np.random.default_rng([seed, *case.name.encode()])
            prompt = absent[draw.integers(len(absent))]
            for truth in shown:
                yield _question_of(truth, "wrong", prompt)

    return ask


def absent(case: Case) -> Iterator[Question]:
    """Ask for each structure that the case's labels say is not there: its mask is empty. Where the plain class
    prompt denies it ("No tumor"), ask for what it denies."""
    shown = {truth.plain_prompt.lower() for truth in case.truths if truth.mask.any()}
    for truth in case.truths:
        prompt = truth.plain_prompt
        prompt = prompt[len(DENIAL) :] if prompt.lower().startswith(DENIAL) else prompt
        if not truth.mask.any() and prompt.lower() not in shown:
            yield _question_of(truth, "absent", prompt)


def wrong_prompts(data_set: DataSet) -> list[str]:
    """Return what `wrong` may ask the cases of a data set for: structures of other subjects. Its own may be there
    though nobody has labelled them; where they are not, `absent` asks for them."""
    return absent_from(wordings(data_set), OTHER_STRUCTURES)


def _question_of(truth: Truth, kind: str, prompt: str) -> Question:
    return Question(kind, truth.structure, prompt, truth.mask, truth.known)


def _words(prompt: str) -> set[str]:
    return set(prompt.lower().split())


@dataclass(frozen=True)
class Rules:
    """How answers become masks, and on which grid they are compared.

    Attributes:
        presence_gate: a prompt whose presence is below the adapter's threshold has an empty mask.
        grid: "picture": the probability is enlarged to the picture's size, then cut at the threshold; "enlarged":
            it is cut on the base's square, and the mask enlarged by nearest neighbour; "square": the reference is
            shrunk to the square by nearest neighbour. The last two are for pictures.
    """

    presence_gate: bool = True
    grid: str = GRIDS[0]

    def __str__(self) -> str:
        gate = "" if self.presence_gate else "no presence gate, "
        return f"{gate}masks compared on the {'picture, enlarged' if self.grid == 'enlarged' else self.grid}"


@dataclass(frozen=True)
class Score:
    """How one question was answered.

    Attributes:
        case, kind, structure, prompt: the question.
        dice, iou: 0..1; see `metrics` for empty masks.
        hd95: in mm, in pixels for pictures; NaN where a mask is empty.
        presence: 0..1.
        truth_share, result_share: of the case's voxels, 0..1.
    """

    case: str
    kind: str
    structure: str
    prompt: str
    dice: float
    iou: float
    hd95: float
    presence: float
    truth_share: float
    result_share: float


def evaluate(
    segmenter: Segmenter,
    data_set: DataSet,
    asks: Sequence[Ask] = (plain,),
    on_case: Callable[[], None] = lambda: None,
    plane: str | None = None,
    rules: Rules = Rules(),
) -> list[Score]:
    """Segment every case, and compare. A prompt past 77 tokens is cut, as in training.

    Args:
        plane: see `Segmenter.set_volume`.
        on_case: called after each case; raise `Cancelled` in it to stop.
    """
    scores = []
    for case in data_set.cases():
        segmenter.set_volume(case.volume, plane)
        scores += [_score(segmenter, case, question, rules) for ask in asks for question in ask(case)]
        on_case()
    return scores


def presences(
    segmenter: Segmenter,
    data_set: DataSet,
    others: Sequence[str],
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[float], list[float]]:
    """Return the presence scores of the structures that are there, by their plain class prompts, and of what is
    not there: the structures that a case's labels call absent, and one of `others` for each case.

    An answer without a voxel counts as 0, since no presence threshold makes a mask of it. Of many cases, at most
    200 are taken, spread evenly.

    Args:
        others: what no label of the data set names.
        on_case: called with cases done and in all; raise `Cancelled` in it to stop.
    """
    names = list(data_set.paths)
    names = names[:: -(-len(names) // LARGEST_CALIBRATION) or 1]
    present, missing = [], []
    for number, name in enumerate(names, start=1):
        case = data_set.case(name)
        segmenter.set_volume(case.volume)
        questions = {q.prompt: q for ask in (plain, absent, wrong(others)) for q in ask(case)}
        for question in questions.values():
            in_vain = question.kind in IN_VAIN
            if in_vain or question.mask.any():  # the plain prompt of an empty mask may be a denial
                result = replace(segmenter.segment(question.prompt, cut=True), presence_threshold=0.0)
                (missing if in_vain else present).append(result.presence if result.mask().any() else 0.0)
        on_case(number, len(names))
    return present, missing


def presence_rates(scores: Iterable[Score]) -> Rates | None:
    """Return how often prompts for what is absent returned a mask, and prompts for what is present none; None
    where a kind was not asked."""
    found, missed = _presence_errors(scores)
    if not found or not missed:
        return None
    return Rates(float(np.mean(found)), float(np.mean(missed)), len(found), len(missed))


def _presence_errors(scores: Iterable[Score]) -> tuple[list[bool], list[bool]]:
    """Return, of each prompt asked in vain, whether it returned a mask, and of each other whether it did not."""
    in_vain, missed = {}, []
    for score in scores:
        if score.kind in IN_VAIN:
            in_vain[score.case, score.prompt] = score.result_share > 0  # measured by each structure, counted once
        elif score.truth_share:
            missed.append(score.result_share == 0)
    return list(in_vain.values()), missed


def _score(segmenter: Segmenter, case: Case, question: Question, rules: Rules) -> Score:
    result = segmenter.segment(question.prompt, cut=True)
    if not rules.presence_gate:
        result = replace(result, presence_threshold=0.0)
    mask, truth = result.mask(), question.mask
    if rules.grid != GRIDS[0]:
        mask, truth = (
            _on_grid(segmenter, case, question, result.threshold, rules.grid) if result.found else (mask, truth)
        )
    elif question.known is not None:
        mask, truth = mask & question.known, truth & question.known
    counts = int((mask & truth).sum()), int(mask.sum()), int(truth.sum())
    return Score(
        case=case.name,
        kind=question.kind,
        structure=question.structure,
        prompt=question.prompt,
        dice=dice(*counts),
        iou=intersection_over_union(*counts),
        hd95=hausdorff_95(mask, truth, case.volume.spacing_mm),
        presence=result.presence,
        truth_share=counts[2] / mask.size,
        result_share=counts[1] / mask.size,
    )


def _on_grid(
    segmenter: Segmenter, case: Case, question: Question, threshold: float, grid: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return result and reference (1, rows, columns) bool of a picture as the paper's code compares them."""
    if len(case.volume.voxels) > 1:
        raise UserError(f"{case.name} is a volume; only pictures are compared on the grid '{grid}'")
    square = segmenter.square_probability(question.prompt) >= threshold
    if grid == "square":
        return square[None], _nearest(question.mask[0], square.shape)[None]
    return _nearest(square, question.mask.shape[1:])[None], question.mask


def _nearest(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a mask (rows, columns) at another size, each pixel that of the nearest centre."""
    tensor = torch.from_numpy(mask)[None, None].float()
    return functional.interpolate(tensor, size=shape, mode="nearest-exact")[0, 0].numpy() > 0


def gated(score: Score, presence_threshold: float) -> Score:
    """Return a score without the presence gate as it is with it."""
    if score.presence >= presence_threshold:
        return score
    agrees = float(not score.truth_share)
    return replace(score, dice=agrees, iou=agrees, hd95=float("nan"), result_share=0.0)


def by_structure(scores: Iterable[Score]) -> dict[str, dict]:
    """Return {structure: means}; where there are several, ALL stands for all of them together."""
    groups: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        groups[score.structure].append(score)
    rows = {structure: means(group) for structure, group in groups.items()}
    return rows | {ALL: means(list(chain(*groups.values())))} if len(rows) > 1 else rows


def means(scores: Sequence[Score]) -> dict:
    """Return the means of Dice and IoU over all cases, of HD95 over those where both masks have a voxel, each
    with its 95 % interval."""
    distances = [score.hd95 for score in scores if not np.isnan(score.hd95)]
    figures = (
        ("dice", [score.dice for score in scores], 4),
        ("iou", [score.iou for score in scores], 4),
        ("hd95", distances, 2),
    )
    summary: dict = {}
    for name, values, digits in figures:
        summary[name] = round(float(np.mean(values)), digits) if values else None
        summary[f"{name}_interval"] = [round(limit, digits) for limit in interval(values)] if values else None
    return summary | {"cases": len(scores), "hd95_cases": len(distances)}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean (percentiles of resampled means; always the same draws)."""
    draws = np.random.default_rng(0).integers(len(values), size=(BOOTSTRAP_SAMPLES, len(values)))
    low, high = np.percentile(np.asarray(values)[draws].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def differences(first: Iterable[Score], second: Iterable[Score]) -> list[float]:
    """Return second minus first Dice of the questions that both were asked, in the order of the first."""
    before = {_question(score): score.dice for score in first}
    after = {_question(score): score.dice for score in second}
    return [after[key] - dice for key, dice in before.items() if key in after]


def _question(score: Score) -> tuple[str, ...]:
    return score.case, score.kind, score.structure, score.prompt


def prompt_checks(scores: Sequence[Score]) -> dict[str, float | int]:
    """Return how much the prompt matters, from scores of the kinds that were asked.

    Returns:
        false_positive_share: of the cases' voxels, found when asked for what is not there;
        false_positive_rate: of the prompts for what is not there, those that returned a mask;
        missed_rate: of the prompts for what is there, those that returned none;
        absent_prompts, present_prompts: how many of each were asked;
        surviving_share: the Dice with a wrong prompt, relative to that with the plain one;
        held_out_share: the Dice with held-out wordings, relative to that with the plain prompts of the same cases;
        paraphrase_spread: the standard deviation of Dice over the wordings of one structure in one case, mean.
    """
    kinds: dict[str, list[Score]] = defaultdict(list)
    for score in scores:
        kinds[score.kind].append(score)
    checks = {}
    found, missed = _presence_errors(scores)
    if found:
        shares = {(s.case, s.prompt): s.result_share for kind in IN_VAIN for s in kinds[kind]}
        checks["false_positive_share"] = np.mean(list(shares.values()))
        checks |= {"false_positive_rate": np.mean(found), "absent_prompts": len(found)}
    if missed:
        checks |= {"missed_rate": np.mean(missed), "present_prompts": len(missed)}
    right = {(s.case, s.structure): s.dice for s in kinds["plain"]}
    asked = [(s.dice, right[s.case, s.structure]) for s in kinds["wrong"] if (s.case, s.structure) in right]
    if any(dice for _, dice in asked):
        checks["surviving_share"] = sum(dice for dice, _ in asked) / sum(dice for _, dice in asked)
    taught = [right[s.case, s.structure] for s in kinds[HELD_OUT] if (s.case, s.structure) in right]
    if any(taught):
        checks["held_out_share"] = np.mean([s.dice for s in kinds[HELD_OUT]]) / np.mean(taught)
    if kinds["every"]:
        wordings = defaultdict(list)
        for score in kinds["every"]:
            wordings[score.case, score.structure].append(score.dice)
        checks["paraphrase_spread"] = np.mean([np.std(dices) for dices in wordings.values()])
    return {name: value if isinstance(value, int) else round(float(value), 4) for name, value in checks.items()}
