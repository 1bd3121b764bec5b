"""Measure adapters on a split of a data set; write scores, a summary and pictures of cases."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from engine.choices import BASE_ALONE, HALF
from engine.cli import progress_bar
from engine.data import DataSet, open_data_set
from engine.data.splits import overlap_warning, shared_with_earlier
from engine.data.synonyms import Wordings
from engine.errors import UserError
from engine.evaluation.measuring import (
    ALL,
    IN_VAIN,
    Ask,
    Rules,
    Score,
    absent,
    by_structure,
    differences,
    evaluate,
    every,
    held_out,
    held_out_elsewhere,
    interval,
    plain,
    prompt_checks,
    random,
    variants,
    wrong,
    wrong_prompts,
)
from engine.evaluation.showcase import exhibit
from engine.files import check_folder, make_folder, write_csv, write_text
from engine.pictures.gallery import write_gallery
from engine.prompts import MAXIMUM_TOKENS, too_long
from engine.segmentation.segmenter import Segmenter
from engine.tables import FIGURES, INTERVALS, RULE, markdown_table, with_interval

COLUMNS = ("adapter", "prompts", "structure", *FIGURES, "cases")


def run(options: argparse.Namespace) -> None:
    check_folder(options.output)
    summaries = {}
    for data in options.data:
        folder = options.output / data.resolve().name if len(options.data) > 1 else options.output
        summaries[data.resolve().name] = _measure(options, data, folder)
    if len(summaries) > 1:
        text = _table_of_sets(summaries)
        write_text(options.output / "summary.md", f"{text}\n\n{INTERVALS} {RULE}\n")
        Console().print(Markdown(text))
    print(f"wrote {options.output}")


def _measure(options: argparse.Namespace, data: Path, output: Path) -> dict:
    """Measure all adapters on one data set; return the summary that is written beside scores and pictures."""
    names = options.adapters
    left_out, remarks = _overlap(options, data)
    data_set = open_data_set(data, options.split, left_out=left_out).masks_above(options.mask_above)
    rules = Rules(options.presence, options.grid)
    if not data_set.case_count:
        raise UserError(f"{data} has no case in its split '{options.split}'")
    scores = {}
    for name in names:
        segmenter = Segmenter(None if name == BASE_ALONE else name, options.base, options.device, options.precision)
        folder = output / Path(name).name if len(names) > 1 else output
        make_folder(folder)
        with progress_bar(name, data_set.case_count) as update:
            scores[name] = evaluate(segmenter, data_set, _asks(options, data_set), update, options.plane, rules)
        if not scores[name]:
            raise UserError(f"{data} has nothing labelled in its split '{options.split}'")
        write_csv(folder / "scores.csv", scores[name])
        _draw_cases(folder / "cases.png", segmenter, data_set, scores[name], options.plane)
    remarks += _cut_prompts(segmenter, scores[names[0]])
    remarks += [f"Measured otherwise than by default: {rules}."] if rules != Rules() else []
    remarks += [f"Masks begin above the grey value {options.mask_above}."] if options.mask_above != HALF else []
    title = f"{data_set.name}, {options.split} split"
    rows = {name: _rows(scores[name], scores[names[0]]) for name in names}
    checks = {name: prompt_checks(scores[name]) for name in names}
    text = "\n\n".join([f"## {title}", *remarks, _table(rows), _checks_for_people(checks)]).strip()
    write_text(output / "summary.md", f"{text}\n\n{INTERVALS} {RULE}\n")
    summary = {
        "data": title,
        "rule": f"{INTERVALS} {RULE}",
        "remarks": remarks,
        "adapters": {name: {"prompts": rows[name], "prompt_checks": checks[name]} for name in names},
    }
    write_text(output / "summary.json", json.dumps(summary, indent=1) + "\n")
    Console().print(Markdown(text))
    return summary


def _table_of_sets(summaries: dict[str, dict]) -> str:
    """Return the figures over all structures, a row for each data set, adapter and kind of prompt."""
    lines = []
    for data_set, summary in summaries.items():
        for name, measured in summary["adapters"].items():
            for kind, rows in measured["prompts"].items():
                row = rows.get(ALL) or next(iter(rows.values()))
                figures = [with_interval(row, *figure) for figure in FIGURES.values()]
                lines.append([data_set, name, kind, *figures, str(row["cases"])])
    return markdown_table(("data set", "adapter", "prompts", *FIGURES, "cases"), lines)


def _overlap(options: argparse.Namespace, data: Path) -> tuple[list[Path], list[str]]:
    """Return the images that are to be left out, and what is to be said of those that the splits share."""
    overlaps = shared_with_earlier(data, options.split)
    if not overlaps:
        return [], []
    if options.drop_overlap:
        return [overlap.path for overlap in overlaps], [
            f"Without {len(overlaps)} image(s) that other splits hold too."
        ]
    return [], [f"Warning: {overlap_warning(options.split, overlaps)}; --drop-overlap leaves them out."]


def _cut_prompts(segmenter: Segmenter, scores: Sequence[Score]) -> list[str]:
    cut = too_long(segmenter.tokenizer, dict.fromkeys(score.prompt for score in scores))
    if not cut:
        return []
    return [f"{len(cut)} prompt(s) of more than {MAXIMUM_TOKENS} tokens were cut there, such as '{cut[0]}'."]


def _asks(options: argparse.Namespace, data_set: DataSet) -> list[Ask]:
    known = {"p1": plain, "random": random(options.seed), "all": every, "variants": variants}
    asks = [known[name] for name in dict.fromkeys(options.prompts)]
    in_vain = options.wrong_prompt
    if options.held_out:
        words = Wordings.read(options.held_out)
        asks.append(held_out(words))
        in_vain = in_vain or held_out_elsewhere(words, data_set)
    return [*asks, absent, wrong(in_vain or wrong_prompts(data_set), options.seed)]


def _rows(scores: Sequence[Score], first: Sequence[Score]) -> dict[str, dict[str, dict]]:
    """Return {kind of prompt: {structure: means}} of one adapter, with the paired difference in Dice against the
    first one where that is another; ALL stands for all structures together."""
    kinds: dict[str, dict[str, dict]] = {}
    for kind in dict.fromkeys(score.kind for score in scores if score.kind not in IN_VAIN):
        ours, theirs = ([s for s in part if s.kind == kind] for part in (scores, first))
        kinds[kind] = by_structure(ours)
        for structure, row in kinds[kind].items() if scores is not first else ():
            before, after = ([s for s in part if structure in (s.structure, ALL)] for part in (theirs, ours))
            pairs = differences(before, after)
            row["dice_difference"] = round(sum(pairs) / len(pairs), 4)
            row["dice_difference_interval"] = [round(limit, 4) for limit in interval(pairs)]
    return kinds


def _table(adapters: dict[str, dict[str, dict[str, dict]]]) -> str:
    """Return one Markdown table; where adapters are compared, with a column for the difference to the first."""
    first, *others = adapters
    columns = [*COLUMNS, f"Dice against {first}"] if others else COLUMNS
    lines = []
    for name, kinds in adapters.items():
        for kind, rows in kinds.items():
            for structure, row in rows.items():
                figures = [with_interval(row, *figure) for figure in FIGURES.values()]
                cells = [name, kind, structure, *figures, str(row["cases"])]
                cells += [with_interval(row, "dice_difference", 3, sign="+")] if others else []
                lines.append(cells)
    return markdown_table(columns, lines)


def _checks_for_people(checks: dict[str, dict[str, float | int]]) -> str:
    lines = [
        f"- {name}: " + ", ".join(f"{check.replace('_', ' ')} {_number(value)}" for check, value in values.items())
        for name, values in checks.items()
        if values
    ]
    return "\n".join(lines)


def _number(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _draw_cases(
    path: Path, segmenter: Segmenter, data_set: DataSet, scores: Sequence[Score], plane: str | None
) -> None:
    """Draw the best, the median and the worst case in which the structure is present."""
    asked = scores[0].kind
    ranked = sorted((s for s in scores if s.kind == asked and s.truth_share), key=lambda s: -s.dice)
    if not ranked:
        return
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    exhibits = [
        exhibit(segmenter, data_set, score, f"{label}: {score.prompt[:40]}, Dice {score.dice:.2f}", plane)
        for label, score in chosen.items()
    ]
    write_gallery(path, exhibits, columns=len(chosen), legend=True)
