"""The figures on an adapter's card, measured as a user segments: the presence threshold on validation images, then
what the adapter does with it on test images."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import islice

from engine.data import DataSet
from engine.evaluation.measuring import (
    Rules,
    Score,
    absent,
    by_structure,
    evaluate,
    plain,
    presence_rates,
    presences,
    random,
    wrong,
)
from engine.models.bundle import measured
from engine.models.presence import Calibration, Rates, calibrate
from engine.segmentation.segmenter import Segmenter


def calibrate_adapter(
    segmenter: Segmenter,
    validation_set: DataSet,
    others: Sequence[str],
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration | None:
    """Choose the presence threshold; the segmenter's card then holds it, and how often it is wrong.

    Args:
        others, on_case: see `evaluation.presences`.

    Returns:
        None where nothing present or nothing absent could be asked; the card is then as it was.
    """
    calibration = calibrate(*presences(segmenter, validation_set, others, on_case))
    if calibration:
        rates = {f"{validation_set.name}, validation split": asdict(calibration.rates)}
        segmenter.card = replace(segmenter.card, presence_threshold=calibration.threshold, presence=rates)
    return calibration


def measure_adapter(
    segmenter: Segmenter,
    test_set: DataSet,
    others: Sequence[str],
    on_case: Callable[[], None] = lambda: None,
) -> tuple[list[Score], Rates | None]:
    """Measure on test images; the segmenter's card then holds the figures.

    Args:
        others: what no label of the data set names.
        on_case: called after each case; raise `Cancelled` in it to stop.

    Returns:
        the scores for the plain class prompts, and how often "found" and "not found" were wrong (see
        `evaluation.presence_rates`).
    """
    ask_wrong = wrong(others)
    asks = plain, absent, lambda case: islice(ask_wrong(case), 1)  # once: only whether anything is found counts
    scores = evaluate(segmenter, test_set, asks, on_case)
    right = [score for score in scores if score.kind == "plain"]
    rates = presence_rates(scores)
    card = segmenter.card
    segmenter.card = replace(
        card,
        presence=card.presence | ({f"{test_set.name}, test split": asdict(rates)} if rates else {}),
        metrics=card.metrics | {measured(test_set.name, "plain"): by_structure(right)},
    )
    return right, rates


def measure_by(
    rules: Rules,
    prompts: str,
    segmenter: Segmenter,
    test_set: DataSet,
    seed: int,
    on_case: Callable[[], None] = lambda: None,
) -> list[Score]:
    """Measure on test images by other rules than the product's; the segmenter's card then holds these figures too.

    Args:
        prompts: "plain" or "random".
        seed: of random prompts.
    """
    scores = evaluate(segmenter, test_set, [plain if prompts == "plain" else random(seed)], on_case, rules=rules)
    name = f"{measured(test_set.name, prompts)}, {rules}"
    segmenter.card = replace(segmenter.card, metrics=segmenter.card.metrics | {name: by_structure(scores)})
    return scores
