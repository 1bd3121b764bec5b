"""The page of the paper's Table 1 with ours beside it, and its plots."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from engine.commands.trials import Trial
from engine.data.splits import overlap_warning, shared_with_earlier
from engine.evaluation import paper
from engine.evaluation.measuring import Score, gated
from engine.files import replacing, write_text
from engine.models.bundle import AdapterCard, read_card
from engine.tables import markdown_table
from engine.training.protocols import DIFFERENCES, of_method
from engine.training.run_files import PROTOCOL_SCORES, SCORES

KINDS = ("paper_rules", "paper_rules_with_presence_gate", "our_rules")
METHODS_PLOT = (
    "methods.png",
    "Dice of every annotation by the paper's rules: boxes of quartiles, the mean dashed, the paper's mean as ×",
)
PLACEMENTS_PLOT = "placements.png", "Dice by placement, as in the paper's Figure 2"
UNITS = {"dice": "Dice", "iou": "IoU", "hd95": "HD95"}
RULES = """Dice and IoU in %, HD95 in pixels of the picture; means over all annotations of the test split, then
mean ± standard deviation over seeds. "Here" and "with presence gate" are by the paper's rules: a random prompt
for each annotation, the mask cut at one half on the base's square and enlarged by nearest neighbour to the
picture's size, the reference every grey value above 0 (src/train.py and scripts/eval_metrics.py of its code),
which has no presence gate. By ours: the plain class prompt, the probability enlarged before it is cut, the
reference above 127, an empty mask below the calibrated presence. Dice and IoU are 1 where both masks are empty
and 0 where one is. HD95 is defined nowhere in the paper's code; here it is the larger of the two directed 95th
percentiles of the distances between the masks' edges (MONAI), over the cases in which both masks have a pixel.
That of the table cannot be on the 352-pixel square, whose diagonal is 498: CheXlocalize has 537."""
TESTS = """Wilcoxon's signed-rank test, two-sided, on the Dice of each annotation (the mean over seeds, by the
paper's rules); p is adjusted by Holm's method for all pairs within a set."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One method on one set, with all its seeds.

    Attributes:
        placement: of adapters; "" for methods that have none.
        trials: by seed.
    """

    data: Path
    method: str
    placement: str
    base: str
    trials: dict[int, Trial]

    @property
    def name(self) -> str:
        return f"{self.method} {self.placement}".strip()

    @property
    def cards(self) -> list[AdapterCard]:
        return [read_card(trial.folder) for trial in self.trials.values()]


def write_page(output: Path, cells: Sequence[Cell], remarks: Sequence[str]) -> None:
    """Write table1.md, table1.json and the plots, of trainings that are done.

    Args:
        remarks: what differs from the paper's table in this run.
    """
    sets: dict[Path, dict[Cell, dict]] = {}
    for cell in cells:
        sets.setdefault(cell.data, {})[cell] = _figures(cell)
    parts = {data: _of_set(data, rows) for data, rows in sets.items()}
    drawn = _draw(output, list(sets.values()))
    texts = [
        "# Table 1 of VLSM-Adapter, repeated",
        "\n".join(f"- {remark}" for remark in remarks),
        _overview(list(sets.values())),
        RULES,
        *(text for text, _ in parts.values()),
        *(f"{title}:\n\n![{title}]({name})" for name, title in drawn.items()),
        f"## How it was made\n\n{_bases(cells)}\n\n{_differences(cells)}",
    ]
    results = {data.name: result for data, (_, result) in parts.items()}
    write_text(output / "table1.json", json.dumps(results, indent=1) + "\n")
    write_text(output / "table1.md", "\n\n".join(filter(None, texts)) + "\n")


def _overview(sets: Sequence[dict[Cell, dict]]) -> str:
    """Return the Dice of all sets and methods, with the differences from the paper's."""
    names = list(dict.fromkeys(cell.name for rows in sets for cell in rows))
    lines = []
    for rows in sets:
        texts = {}
        for cell, row in rows.items():
            here, published = row["paper_rules"]["dice"]["mean"], row["paper"]["dice"]
            texts[cell.name] = f"{here:.2f}" if published is None else f"{here:.2f} ({here - published:+.2f})"
        data = next(iter(rows)).data.name
        lines.append([paper.SETS.get(data, data), *(texts.get(name, "") for name in names)])
    columns = ["Dice in % (difference from the paper's)", *(f"`{name}`" for name in names)]
    return markdown_table(columns, lines) if lines else ""


def _of_set(data: Path, rows: dict[Cell, dict]) -> tuple[str, dict]:
    """Return what is written of a set, for people and for programs."""
    tests = paper.paired_tests({cell.name: row["cases"] for cell, row in rows.items()})
    overlaps = shared_with_earlier(data, "test")
    warning = f"Warning: {overlap_warning('test', overlaps)}." if overlaps else ""
    title = f"## {paper.SETS.get(data.name, data.name)}"
    text = "\n\n".join(filter(None, (title, warning, _table(rows), _tests_for_people(tests))))
    methods = {cell.name: {k: v for k, v in row.items() if k != "cases"} for cell, row in rows.items()}
    return text, {"warning": warning, "methods": methods, "tests": tests}


def _read_scores(path: Path) -> list[Score]:
    """Return what `engine.train` wrote of each test image."""
    kinds = {field.name: float if field.type is float else str for field in fields(Score)}
    with path.open(encoding="utf-8", newline="") as file:
        return [Score(**{name: kinds[name](value) for name, value in row.items()}) for row in csv.DictReader(file)]


def _figures(cell: Cell) -> dict:
    """Return the figures of a method by the paper's rules and by ours, and the Dice of each annotation."""
    cards = cell.cards
    runs = [trial.folder / "run" for trial in cell.trials.values()]
    theirs = [_read_scores(run / PROTOCOL_SCORES) for run in runs]
    ours = [_read_scores(run / SCORES) for run in runs]
    with_gate = [
        [gated(score, card.presence_threshold) for score in scores]
        for card, scores in zip(cards, theirs, strict=True)
    ]
    named = {figure: paper.of_paper(cell.data.name, cell.method, cell.placement, figure) for figure in UNITS}
    return {
        "seeds": list(cell.trials),
        "parameters": cards[0].training["parameters"],
        "epochs": [card.training["epochs_run"] for card in cards],
        "paper": named,
        **{kind: paper.over_seeds(scores) for kind, scores in zip(KINDS, (theirs, with_gate, ours), strict=True)},
        "cases": paper.by_case(theirs),
    }


def _table(rows: dict[Cell, dict]) -> str:
    columns = "method", "parameters", "figure", "here", "paper", "difference", "with presence gate", "by our rules"
    lines = []
    for cell, row in rows.items():
        for number, (figure, unit) in enumerate(UNITS.items()):
            mean, published = row["paper_rules"][figure]["mean"], row["paper"][figure]
            known = mean is not None and published is not None
            names = [f"`{cell.name}`", f"{row['parameters']:,}"] if number == 0 else ["", ""]
            theirs = ["" if published is None else f"{published:.2f}", f"{mean - published:+.2f}" if known else ""]
            here, gated_here, ours = (_spread(row[kind][figure]) for kind in KINDS)
            lines.append([*names, unit, here, *theirs, gated_here, ours])
    return markdown_table(columns, lines)


def _spread(figure: dict[str, float | None]) -> str:
    if figure["mean"] is None:
        return ""
    deviation = "" if figure["deviation"] is None else f" ± {figure['deviation']:.2f}"
    return f"{figure['mean']:.2f}{deviation}"


def _tests_for_people(tests: Sequence[dict]) -> str:
    if not tests:
        return ""
    rows = [
        [f"`{t['second']}` – `{t['first']}`", f"{100 * t['difference']:+.2f}", t["cases"], f"{t['adjusted_p']:.2g}"]
        for t in tests
    ]
    return f"{markdown_table(('pair', 'difference in Dice', 'annotations', 'p, adjusted'), rows)}\n\n{TESTS}"


def _bases(cells: Sequence[Cell]) -> str:
    cards = {cell.base: cell.cards[0] for cell in cells}
    rows = [[f"`{card.base}`", f"`{card.base_sha256[:16]}…`"] for card in cards.values()]
    return markdown_table(("base", "SHA-256 of its weights"), rows)


def _differences(cells: Sequence[Cell]) -> str:
    """Return what the trainings took otherwise than the product does, as their cards say."""
    cards = {cell.method: cell.cards[0] for cell in cells}
    rows = []
    for difference in DIFFERENCES:
        taken = {
            method: str(card.training[difference.field])
            for method, card in cards.items()
            if difference.field in card.training and of_method(difference, method) is not None
        }
        alike = len(set(taken.values())) == 1
        text = next(iter(taken.values())) if alike else ", ".join(f"{m} {value}" for m, value in taken.items())
        rows += [[f"`{difference.field}`", text, difference.reason]] if taken else []
    return markdown_table(("setting", "taken here", "where theirs comes from, and why ours differs"), rows)


def _draw(output: Path, sets: Sequence[dict[Cell, dict]]) -> dict[str, str]:
    """Draw the plots that have something to show; return {file: title}."""
    if not sets:
        return {}
    plots = {METHODS_PLOT: _draw_methods}
    if len({cell.placement for rows in sets for cell in rows if cell.placement}) > 1:
        plots[PLACEMENTS_PLOT] = _draw_placements
    for (name, _), draw in plots.items():
        columns = min(4, len(sets))
        figure = Figure(figsize=(1 + 3.4 * columns, 0.5 + 3.6 * -(-len(sets) // columns)), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        panels = list(figure.subplots(-(-len(sets) // columns), columns, squeeze=False, sharey=True).flat)
        for axes, rows in zip(panels, sets, strict=False):
            draw(axes, rows)
            data = next(iter(rows)).data.name
            axes.set(title=paper.SETS.get(data, data), ylabel="Dice, %", ylim=(-2, 115), yticks=range(0, 101, 20))
            axes.spines[["top", "right"]].set_visible(False)
        for axes in panels[len(sets) :]:
            axes.set_axis_off()
        with replacing(output / name) as temporary:
            canvas.print_png(str(temporary))
    return dict(plots)


def _draw_placements(axes: Axes, rows: dict[Cell, dict]) -> None:
    """Draw a bar for each placement of each adapter."""
    placements = list(dict.fromkeys(cell.placement for cell in rows if cell.placement))
    methods = list(dict.fromkeys(cell.method for cell in rows if cell.placement))
    for number, method in enumerate(methods):
        own = {cell: row["paper_rules"]["dice"] for cell, row in rows.items() if cell.method == method}
        places = [placements.index(cell.placement) + 0.38 * (number - (len(methods) - 1) / 2) for cell in own]
        errors = [figure["deviation"] or 0 for figure in own.values()]
        axes.bar(places, [figure["mean"] for figure in own.values()], 0.36, yerr=errors, label=method)
    axes.set_xticks(range(len(placements)), placements)
    if methods:
        axes.legend(frameon=False, ncols=2, loc="upper right")


def _draw_methods(axes: Axes, rows: dict[Cell, dict]) -> None:
    """Draw a box of each method's annotations with their mean, and the paper's mean."""
    for number, row in enumerate(rows.values(), start=1):
        dices = [100 * dice for dice in row["cases"].values()]
        axes.boxplot(dices, positions=[number], widths=0.6, showmeans=True, meanline=True, flierprops={"ms": 2})
        if row["paper"]["dice"] is not None:
            axes.plot(number, row["paper"]["dice"], "x", color="C3")
    axes.set_xticks(range(1, len(rows) + 1), [cell.name for cell in rows], rotation=30, ha="right")
