"""Measure adapters on labelled images: Dice, IoU and HD95 at the original resolution, and what the prompt does."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from engine.cli import progress_bar, run
from engine.data import SPLITS, DataSet, open_data_set
from engine.errors import UserError
from engine.evaluation import (
    Ask,
    Score,
    by_structure,
    differences,
    evaluate,
    every,
    interval,
    means,
    plain,
    prompt_checks,
    random,
    wrong,
)
from engine.files import write_csv, write_text
from engine.gallery import compared, write_gallery
from engine.segmenter import Segmenter

BASE_ALONE = "none"
PROMPTS = ("p1", "random", "all")
RULE = """Dice and IoU are 1 where both masks are empty and 0 where one is; HD95, in mm (in pixels for pictures),
is the mean over the cases where neither is."""
FIGURES = ("prompts", "structure", "Dice", "95 % interval", "IoU", "HD95", "cases")
DIFFERENCES = ("adapter", "mean", "95 % interval", "pairs")


def main() -> None:
    options = _parser().parse_args()
    names = options.compare or [options.adapter]
    options.output.mkdir(parents=True, exist_ok=True)
    data_set = open_data_set(options.data, options.split)
    if not data_set.case_count:
        raise UserError(f"{options.data} has no case in its split '{options.split}'")
    scores = {}
    for name in names:
        segmenter = Segmenter(None if name == BASE_ALONE else name, options.base, options.device, options.precision)
        with progress_bar(name, data_set.case_count) as update:
            scores[name] = evaluate(segmenter, data_set, _asks(options), update)
        folder = options.output / Path(name).name if len(names) > 1 else options.output
        folder.mkdir(exist_ok=True)
        write_csv(folder / "scores.csv", scores[name])
        _draw_cases(folder / "cases.png", segmenter, data_set, scores[name])
    title = f"{data_set.name}, {options.split} split"
    text = "\n\n".join(_table(title, name, rows) for name, rows in scores.items())
    if len(names) > 1:
        text += "\n\n" + _comparison(scores)
    write_text(options.output / "summary.md", f"{text}\n\n{RULE}\n")
    write_text(options.output / "summary.json", json.dumps(_summary(title, scores), indent=1) + "\n")
    Console().print(Markdown(text))
    print(f"wrote {options.output}")


def _asks(options: argparse.Namespace) -> list[Ask]:
    known = {"p1": plain, "random": random(options.seed), "all": every}
    asks = [known[name] for name in dict.fromkeys(options.prompts)]
    return [*asks, wrong(options.wrong_prompt)] if options.wrong_prompt else asks


def _summary(title: str, scores: dict[str, list[Score]]) -> dict:
    return {
        "data": title,
        "adapters": {
            name: {
                "prompts": {kind: by_structure(part) for kind, part in _by_kind(rows).items()},
                "prompt_checks": prompt_checks(rows),
            }
            for name, rows in scores.items()
        },
    }


def _by_kind(scores: Sequence[Score]) -> dict[str, list[Score]]:
    return {kind: [s for s in scores if s.kind == kind] for kind in dict.fromkeys(s.kind for s in scores)}


def _table(title: str, name: str, scores: list[Score]) -> str:
    """Return a Markdown table of one adapter, and its prompt checks."""
    lines = [f"## {name}: {title}", "", *_head(FIGURES)]
    for kind, part in _by_kind(scores).items():
        if kind != "wrong":
            rows = by_structure(part)
            if len(rows) > 1:
                rows["all"] = means(part)
            lines += [f"| {kind} | {structure} | {_figures(row)} |" for structure, row in rows.items()]
    checks = prompt_checks(scores)
    lines += ["", *(f"- {key.replace('_', ' ')}: {value:.3f}" for key, value in checks.items())]
    return "\n".join(lines).strip()


def _head(columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def _figures(row: dict) -> str:
    distance = "" if row["hd95"] is None else f"{row['hd95']:.1f}"
    low, high = row["dice_interval"]
    return f"{row['dice']:.3f} | {low:.3f} – {high:.3f} | {row['iou']:.3f} | {distance} | {row['cases']}"


def _comparison(scores: dict[str, list[Score]]) -> str:
    """Return a Markdown table of the paired differences in Dice against the first adapter."""
    first, *others = scores
    lines = [f"## Difference in Dice against {first}", "", *_head(DIFFERENCES)]
    for name in others:
        pairs = differences(scores[first], scores[name])
        low, high = interval(pairs)
        lines.append(f"| {name} | {sum(pairs) / len(pairs):+.3f} | {low:+.3f} – {high:+.3f} | {len(pairs)} |")
    return "\n".join(lines)


def _draw_cases(path: Path, segmenter: Segmenter, data_set: DataSet, scores: Sequence[Score]) -> None:
    """Draw the best, the median and the worst case in which the structure is present."""
    asked = scores[0].kind
    ranked = sorted((s for s in scores if s.kind == asked and s.truth_share), key=lambda s: -s.dice)
    if not ranked:
        return
    chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
    exhibits = {}
    for case in data_set.cases():
        for label, score in chosen.items():
            if score.case == case.name:
                truth = next(t.mask for t in case.truths if t.plain_prompt == score.structure)
                segmenter.set_volume(case.volume)
                result = segmenter.segment(score.prompt).mask()
                title = f"{label}: {score.prompt[:40]}, Dice {score.dice:.2f}"
                exhibits[label] = compared(title, case.volume, truth, result)
    write_gallery(path, [exhibits[label] for label in chosen], columns=len(chosen), legend=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine.evaluate", description=f"{__doc__} {RULE}")
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with anns/, dataset.json or .seg.nrrd files")
    add("--split", choices=SPLITS, default="test")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("-a", "--adapter", help=f"name or folder; '{BASE_ALONE}' for the base alone")
    which.add_argument("--compare", nargs="+", metavar="ADAPTER", help="several, with paired differences")
    add("--base", help="name or folder of a base (default: the adapter's own, or mini)")
    add(
        "--prompts",
        nargs="+",
        choices=PROMPTS,
        default=["p1"],
        help="plain class prompt, a random one, all wordings",
    )
    add("--wrong-prompt", metavar="PROMPT", help="also ask for this, which no case shows, and count what is found")
    add("--seed", type=int, default=0, help="of the random prompts")
    add("--device", default="auto")
    add("--precision", default="auto")
    add(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="folder for scores.csv, summary.md, summary.json, cases.png",
    )
    return parser


if __name__ == "__main__":
    run(main)
