"""Measure the adapters whose data sets are there, and write the table, the gallery and their cards."""

import argparse
import json
import shutil
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from engine.cli import progress_bar
from engine.errors import UserError
from engine.evaluation.measuring import Score
from engine.evaluation.shipped import Trial, measure, open_trial, shipped_adapters, summarise, table, with_metrics
from engine.evaluation.showcase import Section, draw_row, draw_together, write_page
from engine.files import make_folder, replacing, write_csv, write_text
from engine.models.bundle import PICTURE, find_adapter, write_card
from engine.segmentation.segmenter import Segmenter
from engine.tables import INTERVALS, RULE

TOGETHER, PAGE = "three-prompts.jpg", "README.md"
AGREEMENT = """A card agrees where its Dice differs by at most 0.005. Where only a part of the cases was measured,
it should lie within the interval; by chance, one in twenty does not."""


def run(options: argparse.Namespace) -> None:
    trials = _open_trials(options)
    for folder in filter(None, (options.output, options.gallery)):
        make_folder(folder)
    summaries: dict[str, dict] = {}
    sections: list[Section] = []
    steps = accumulate(trial.slices_per_case for trial in trials for _ in trial.data_set.paths)
    with progress_bar("measuring", sum(trial.slices for trial in trials)) as update:
        for trial in trials:
            name = trial.card.name
            segmenter = Segmenter(str(trial.folder), None, options.device, options.precision)
            scores = measure(
                trial, segmenter, options.seed, lambda name=name: update(next(steps), description=name)
            )
            write_csv(options.output / f"{name}.csv", scores)
            summaries[name] = summarise(trial, scores)
            if options.gallery:
                sections += _draw(options.gallery, trial, segmenter, scores)
            if options.write_cards:
                _complete_bundle(trial, summaries[name], options.gallery)
    text = _report(summaries, options)
    write_text(options.output / "results.md", text)
    write_text(options.output / "results.json", json.dumps(summaries, indent=1) + "\n")
    if options.gallery:
        sections.sort(key=lambda section: section.picture is None or section.picture.name != TOGETHER)
        write_page(options.gallery / PAGE, sections)
    Console().print(Markdown(text))
    print(f"wrote {', '.join(map(str, filter(None, (options.output, options.gallery))))}")


def _open_trials(options: argparse.Namespace) -> list[Trial]:
    folders = [find_adapter(name) for name in options.adapters] if options.adapters else shipped_adapters()
    missing = [folder for folder in options.data if not folder.is_dir()]
    if missing:
        print(f"there is no folder {', '.join(map(str, missing))}")
    trials = []
    for folder in folders:
        data = [data for data in options.data if data not in missing]
        trial = open_trial(folder, data, options.subset, options.plane)
        if trial is None:
            print(f"{folder.name}: left out, as no test split of its data set was found")
        else:
            trials.append(trial)
    if not trials:
        raise UserError("nothing can be measured; name folders that hold the adapters' data sets with --data")
    return trials


def _draw(folder: Path, trial: Trial, segmenter: Segmenter, scores: Sequence[Score]) -> list[Section]:
    together = draw_together(folder / TOGETHER, trial, segmenter, scores)
    row = draw_row(folder / f"{trial.card.name}.jpg", trial, segmenter, scores)
    return [section for section in (together, row) if section]


def _complete_bundle(trial: Trial, summary: dict, gallery: Path | None) -> None:
    """Write figures, and the picture where one was drawn, into the adapter's own folder."""
    picture = gallery / f"{trial.card.name}.jpg" if gallery else None
    if picture and picture.is_file():
        with replacing(trial.folder / PICTURE) as temporary:
            shutil.copyfile(picture, temporary)
    write_card(trial.folder, with_metrics(trial.card, summary))


def _report(summaries: dict[str, dict], options: argparse.Namespace) -> str:
    part = f"At most {options.subset} test cases of each set, spread evenly." if options.subset else ""
    cases = part or "All cases of the test splits, without those whose images are in another split too."
    return f"# Results\n\n{cases}\n\n{table(summaries)}\n\n{INTERVALS} {RULE} {AGREEMENT}\n"
