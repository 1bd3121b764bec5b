"""Measure shipped adapters again on the test splits of their data sets, and compare with what their cards say."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from engine.data import DataSet, is_data_set, open_data_set, open_splits
from engine.data.head import PUBLISHED, head_folder, head_set
from engine.errors import UserError
from engine.evaluation.measuring import (
    Score,
    by_structure,
    evaluate,
    plain,
    prompt_checks,
    random,
    wrong,
    wrong_prompts,
)
from engine.imaging.volumes.planes import orient, resolve_planes
from engine.models.bundle import QUESTIONS, WEIGHTS, AdapterCard, measured, read_card
from engine.models.places import SHIPPED_MODELS
from engine.segmentation.segmenter import Segmenter
from engine.tables import FIGURES, markdown_table, with_interval

COLUMNS = (
    *("adapter", "data set", "prompts", "structure"),
    *FIGURES,
    *("false positives", "cases", "on the card", "agrees"),
)
SAME_DICE = 0.005  # devices and precisions differ by less
ANY = "(any)"  # of the structures that are not there
FALSE_POSITIVES = ("false_positive_rate", "false_positive_share")


@dataclass(frozen=True, eq=False)
class Trial:
    """An adapter with the cases that it is measured on.

    Attributes:
        folder, card: the bundle.
        data_set: the test split, or a part of it.
        split_cases: how many cases the whole split has.
        wrong_prompts: what may be asked for where it is not; the same for a part as for the whole.
        plane: in which volumes are sliced; as the adapter wants when None.
        slices_per_case: of the first one, in all planes in which it is segmented.
    """

    folder: Path
    card: AdapterCard
    data_set: DataSet
    split_cases: int
    wrong_prompts: list[str]
    plane: str | None
    slices_per_case: int

    @property
    def slices(self) -> int:
        return self.data_set.case_count * self.slices_per_case


def shipped_adapters() -> list[Path]:
    """Return the folders of all adapters that are shipped."""
    return sorted(path.parent for path in SHIPPED_MODELS.glob(f"*/{WEIGHTS}"))


def open_trial(
    adapter: Path, data: Sequence[Path], subset: int | None = None, plane: str | None = None
) -> Trial | None:
    """Return an adapter with the test split of its data set; None where no folder has one.

    The set is the one that the card names, in its metrics or as what it was trained on, by the name of its folder.
    An adapter for the tissues of a head without such a set is measured on the published head.

    Args:
        data: data sets, or folders that hold them.
        subset: take that many cases of the split, spread evenly; all when None.
        plane: see `Trial`.

    Raises:
        UserError: the card or the set is not valid.
    """
    card = read_card(adapter)
    for folder in _named_sets(card, data):
        whole = open_splits(folder, ("axial",), drop_overlap=True)["test"]
        if whole.case_count:
            return _trial(adapter, card, whole, _part(folder, whole, subset), plane)
    if set(PUBLISHED) <= set(card.prompts) and _has_head():
        return _trial(adapter, card, head_set(), head_set(), plane)
    return None


def measure(
    trial: Trial, segmenter: Segmenter, seed: int = 0, on_case: Callable[[], None] = lambda: None
) -> list[Score]:
    """Ask each case for what is in it, by the plain class prompt and a random one, and for what is not.

    Args:
        on_case: called after each case; raise `Cancelled` in it to stop.
    """
    asks = [plain, random(seed), wrong(trial.wrong_prompts, seed)]
    return evaluate(segmenter, trial.data_set, asks, on_case, trial.plane)


def summarise(trial: Trial, scores: Sequence[Score]) -> dict:
    """Return {data set, cases, split_cases, metrics, card's metrics}; metrics by kind of question and structure."""
    kinds = {kind: [score for score in scores if score.kind == kind] for kind in QUESTIONS}
    metrics = {kind: by_structure(kinds[kind]) for kind in ("plain", "random")}
    if kinds["wrong"]:
        once = {(score.case, score.prompt): score for score in kinds["wrong"]}  # not for each structure shown
        checks = prompt_checks([*once.values()])
        metrics["wrong"] = {ANY: {name: checks[name] for name in FALSE_POSITIVES} | {"cases": len(once)}}
    name = trial.data_set.name
    return {
        "data_set": name,
        "cases": trial.data_set.case_count,
        "split_cases": trial.split_cases,
        "metrics": metrics,
        "card": {kind: trial.card.metrics.get(measured(name, kind), {}) for kind in QUESTIONS},
    }


def table(summaries: dict[str, dict]) -> str:
    """Return one Markdown table of {adapter: summary}."""
    rows = []
    for adapter, summary in summaries.items():
        whole = summary["cases"] == summary["split_cases"]
        for kind, structures in summary["metrics"].items():
            for structure, figures in structures.items():
                said = summary["card"][kind].get(structure, {})
                texts = [with_interval(figures, *figure) for figure in FIGURES.values()]
                row = [adapter, summary["data_set"], QUESTIONS[kind], structure, *texts, _false_positives(figures)]
                rows.append([*row, figures["cases"], _short(said), _agreement(figures, said, whole)])
    return markdown_table(COLUMNS, rows)


def with_metrics(card: AdapterCard, summary: dict) -> AdapterCard:
    """Return a card that says what was measured, first the plain class prompt.

    Raises:
        UserError: only a part of the test split was measured.
    """
    if summary["cases"] < summary["split_cases"]:
        raise UserError("a card holds figures of whole test splits; leave out --subset")
    new = {measured(summary["data_set"], kind): structures for kind, structures in summary["metrics"].items()}
    return replace(card, metrics=new | {key: value for key, value in card.metrics.items() if key not in new})


def _named_sets(card: AdapterCard, data: Iterable[Path]) -> list[Path]:
    """Return the folders that the card names; those in its metrics before those in its words."""
    places = [path for folder in data for path in (folder.resolve(), *sorted(folder.iterdir()))]
    folders = [path for path in places if path.is_dir() and is_data_set(path)]
    names = {key.split(",")[0] for key in card.metrics}
    first = [folder for folder in folders if folder.name in names]
    pattern = r"(?<![\w-]){}(?![\w-])"
    second = [f for f in folders if re.search(pattern.format(re.escape(f.name)), card.data_set, re.IGNORECASE)]
    return list(dict.fromkeys(first + second))


def _part(folder: Path, whole: DataSet, count: int | None) -> DataSet:
    paths = list(whole.paths.values())
    if count is None or count >= len(paths):
        return whole
    wanted = {paths[index] for index in np.linspace(0, len(paths) - 1, count).round().astype(int)}
    return open_data_set(folder, "test", left_out=set(open_data_set(folder, "test").paths.values()) - wanted)


def _trial(adapter: Path, card: AdapterCard, whole: DataSet, part: DataSet, plane: str | None) -> Trial:
    volume = part.case(next(iter(part.paths))).volume
    planes = resolve_planes(volume, plane or ("auto" if min(volume.shape) == 1 else card.plane))
    slices = sum(len(orient(volume.voxels, volume, plane)) for plane in planes)
    return Trial(adapter, card, part, whole.case_count, wrong_prompts(whole), plane, slices)


def _has_head() -> bool:
    try:
        return head_folder().is_dir()
    except UserError:
        return False


def _false_positives(figures: dict) -> str:
    if "false_positive_rate" not in figures:
        return ""
    return "in {false_positive_rate:.1%} of cases, {false_positive_share:.1%} of voxels".format(**figures)


def _short(said: dict) -> str:
    if "dice" in said:
        return f"Dice {said['dice']:.3f}"
    return f"{said['false_positive_rate']:.1%} of cases" if said else ""


def _agreement(figures: dict, said: dict, whole: bool) -> str:
    """Compare Dice with the card's: equal for the whole split; for a part, the card's within the interval."""
    if "dice" not in figures or "dice" not in said:
        return ""
    if whole:
        return "yes" if abs(figures["dice"] - said["dice"]) <= SAME_DICE else "no"
    low, high = figures["dice_interval"]
    return "within the interval" if low <= said["dice"] <= high else "outside the interval"
