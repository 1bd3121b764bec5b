"""Table 1 of the paper (VLSM-Adapter, MICCAI 2024), and how our own figures stand beside it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import mean, stdev

from scipy.stats import wilcoxon

from engine.evaluation.measuring import Score

SETS = {  # MedVLSM's folder -> the paper's name
    "kvasir_polyp": "Kvasir-SEG",
    "bkai_polyp": "BKAI",
    "clinicdb_polyp": "ClinicDB",
    "isic": "ISIC-16",
    "dfu": "DFU",
    "camus": "CAMUS",
    "busi": "BUSI",
    "chexlocalize": "CheXlocalize",
}
METHODS = ("full", "decoder", "cris", "san", "shallow", "dense")
COLUMNS = {"full": 0, "decoder": 0, "cris": 1, "san": 2, "shallow": 3, "dense": 4}  # of the next table
TABLE = {  # Dice and IoU in %, HD95 in pixels; CLIPSeg, CRIS, SAN, shallow, dense
    "kvasir_polyp": {
        "dice": (87.69, 89.43, 69.58, 86.85, 89.10),
        "iou": (81.72, 83.37, 58.05, 79.26, 82.39),
        "hd95": (54.02, 55.23, 130.75, 52.18, 47.79),
    },
    "bkai_polyp": {
        "dice": (85.59, 92.62, 66.26, 83.67, 87.23),
        "iou": (77.52, 88.30, 54.58, 75.02, 79.81),
        "hd95": (87.91, 49.80, 224.37, 87.79, 70.02),
    },
    "clinicdb_polyp": {
        "dice": (88.58, 93.63, 81.36, 89.04, 88.73),
        "iou": (81.51, 88.74, 72.61, 81.93, 81.84),
        "hd95": (19.30, 12.36, 38.42, 18.03, 18.76),
    },
    "isic": {
        "dice": (91.88, 91.49, 90.39, 91.40, 92.05),
        "iou": (85.76, 85.41, 83.61, 85.05, 85.98),
        "hd95": (60.93, 64.39, 87.25, 60.29, 54.38),
    },
    "dfu": {
        "dice": (72.12, 74.01, 63.38, 69.47, 72.14),
        "iou": (61.61, 64.31, 51.63, 58.27, 61.42),
        "hd95": (38.24, 41.92, 60.10, 38.75, 38.79),
    },
    "camus": {
        "dice": (88.93, 91.29, 46.42, 87.16, 89.71),
        "iou": (80.69, 84.42, 31.81, 78.01, 81.85),
        "hd95": (16.69, 12.33, 175.81, 19.14, 14.16),
    },
    "busi": {
        "dice": (62.91, 67.50, 45.61, 65.51, 65.02),
        "iou": (55.52, 60.90, 35.27, 58.19, 57.20),
        "hd95": (72.98, 50.63, 152.10, 63.36, 64.37),
    },
    "chexlocalize": {
        "dice": (58.51, 60.76, 44.37, 58.14, 58.99),
        "iou": (45.45, 47.99, 31.97, 44.84, 46.01),
        "hd95": (537.57, 519.21, 724.55, 533.04, 535.97),
    },
}
PLACEMENT = "VL"  # of the table's adapters
PERCENT = {"dice": 100, "iou": 100, "hd95": 1}  # what ours are multiplied by


def of_paper(data_set: str, method: str, placement: str, figure: str) -> float | None:
    """Return a figure of the table; None where it has none."""
    if data_set not in TABLE or method not in COLUMNS or placement not in ("", PLACEMENT):
        return None
    return TABLE[data_set][figure][COLUMNS[method]]


def over_seeds(seeds: Sequence[Sequence[Score]]) -> dict[str, dict[str, float | None]]:
    """Return {figure: {mean, deviation}} in the paper's units: each seed's mean over cases, then mean and standard
    deviation over seeds. HD95 is over the cases in which both masks have a pixel."""
    summary = {}
    for figure, factor in PERCENT.items():
        values = [factor * mean(own) for scores in seeds if (own := _values(scores, figure))]
        deviation = stdev(values) if len(values) > 1 else None
        summary[figure] = {"mean": mean(values) if values else None, "deviation": deviation}
    return summary


def _values(scores: Sequence[Score], figure: str) -> list[float]:
    return [value for score in scores if (value := getattr(score, figure)) == value]  # NaN equals nothing


def by_case(seeds: Sequence[Sequence[Score]]) -> dict[tuple[str, str], float]:
    """Return {(case, structure): Dice}, the mean over seeds."""
    found = defaultdict(list)
    for scores in seeds:
        for score in scores:
            found[score.case, score.structure].append(score.dice)
    return {case: mean(dices) for case, dices in found.items()}


def paired_tests(methods: Mapping[str, Mapping[tuple[str, str], float]]) -> list[dict]:
    """Compare all pairs of methods on the cases that both have answered.

    Args:
        methods: name -> what `by_case` returns.

    Returns:
        for each pair {first, second, cases, difference (second minus first Dice, mean), p, adjusted_p}: of
        Wilcoxon's signed-rank test, two-sided, and adjusted for the number of pairs by Holm's method. Where no
        case differs, p is 1.
    """
    rows = []
    for first, second in combinations(methods, 2):
        cases = methods[first].keys() & methods[second].keys()
        differences = [methods[second][case] - methods[first][case] for case in sorted(cases)]
        if not differences:
            continue
        p = float(wilcoxon(differences).pvalue) if any(differences) else 1.0
        rows.append(
            {"first": first, "second": second, "cases": len(cases), "difference": mean(differences), "p": p}
        )
    lowest = 0.0
    for rank, row in enumerate(sorted(rows, key=lambda row: row["p"])):
        lowest = row["adjusted_p"] = max(lowest, min(1.0, (len(rows) - rank) * row["p"]))
    return rows
