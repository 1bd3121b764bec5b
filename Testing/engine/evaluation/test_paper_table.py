"""The paper's Table 1 as data, and what ours is compared with it by."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import wilcoxon

from engine.evaluation import paper
from engine.evaluation.measuring import Score


def score(case, dice, hd95=2.0, structure="disc"):
    return Score(case, "random", structure, structure, dice, dice / 2, hd95, 0.9, 0.1, 0.1)


def test_every_set_has_every_figure_of_every_method():
    assert paper.TABLE.keys() == paper.SETS.keys() and len(paper.SETS) == 8
    assert all(rows.keys() == paper.PERCENT.keys() for rows in paper.TABLE.values())
    assert all(len(row) == 5 for rows in paper.TABLE.values() for row in rows.values())
    for rows in paper.TABLE.values():  # Dice is the larger one, wherever both are of the same masks
        assert all(dice > iou for dice, iou in zip(rows["dice"], rows["iou"], strict=True))
    assert paper.of_paper("busi", "shallow", "VL", "dice") == 65.51
    assert paper.of_paper("busi", "decoder", "", "dice") == paper.of_paper("busi", "full", "", "dice") == 62.91
    assert paper.of_paper("busi", "shallow", "V", "dice") is None is paper.of_paper("other", "san", "", "iou")


def test_the_table_is_the_one_that_was_written_down(shared_data: Path):
    path = shared_data.parent / "paper_table1.md"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside the shared data")
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in path.read_text().splitlines() if "|" in line]
    names, figures = (
        {name: data for data, name in paper.SETS.items()},
        {"DSC": "dice", "IoU": "iou", "HD95": "hd95"},
    )
    data, seen = None, 0
    for name, figure, *values in rows[2:]:
        data = names.get(name, data)
        assert paper.TABLE[data][figures[figure]] == tuple(map(float, values)), (data, figure)
        seen += 1
    assert seen == 24


def test_seeds_give_a_mean_and_a_deviation_of_their_means():
    seeds = [[score("a", 0.4), score("b", 0.6, float("nan"))], [score("a", 0.6, 4.0), score("b", 1.0)]]
    summary = paper.over_seeds(seeds)
    assert summary["dice"] == {"mean": pytest.approx(65), "deviation": pytest.approx(30 / math.sqrt(2))}
    assert summary["hd95"]["mean"] == pytest.approx((2 + 3) / 2)  # over the cases that have one
    assert paper.over_seeds(seeds[:1])["iou"] == {"mean": pytest.approx(25), "deviation": None}
    assert paper.over_seeds([[score("a", 0, float("nan"))]])["hd95"]["mean"] is None
    assert paper.by_case(seeds) == {("a", "disc"): pytest.approx(0.5), ("b", "disc"): pytest.approx(0.8)}


def test_methods_are_compared_on_the_cases_that_both_answered_and_p_is_adjusted():
    draw = np.random.default_rng(1)
    base = {(str(n), "disc"): value for n, value in enumerate(draw.uniform(0.4, 0.6, 30))}
    better = {case: value + 0.1 + draw.normal(0, 0.02) for case, value in base.items()}
    noise = {case: value + draw.normal(0, 0.02) for case, value in base.items()} | {("alone", "disc"): 0.0}
    tests = {(row["first"], row["second"]): row for row in paper.paired_tests({"a": base, "b": better, "c": noise})}
    assert tests.keys() == {("a", "b"), ("a", "c"), ("b", "c")}
    row = tests["a", "b"]
    assert row["cases"] == 30 and row["difference"] == pytest.approx(0.1, abs=0.02)
    assert row["p"] == wilcoxon([better[case] - base[case] for case in base]).pvalue
    ranked = sorted(tests.values(), key=lambda row: row["p"])
    assert ranked[0]["adjusted_p"] == pytest.approx(3 * ranked[0]["p"])
    assert ranked[2]["adjusted_p"] == max(ranked[2]["p"], ranked[1]["adjusted_p"]) > 0.05
    assert paper.paired_tests({"a": base, "b": dict(base)})[0]["p"] == 1.0
