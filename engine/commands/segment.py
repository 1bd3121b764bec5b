"""Segment one scan into one file, or many into a folder."""

import argparse
import sys
from contextlib import ExitStack, closing
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.cli import progress_bar
from engine.errors import UserError
from engine.files import check_output, make_folder, read_json, write_csv, write_table
from engine.imaging.dicom import web
from engine.imaging.formats import output_suffix
from engine.segmentation.batch import (
    ALL_FRAMES,
    End,
    Order,
    Settings,
    Study,
    end_of,
    named_series,
    named_studies,
    reports_of,
    to_store,
    work_on,
)
from engine.segmentation.cluster import segment_on_cluster
from engine.segmentation.request import BESIDE, Outputs, Request, check_apart, check_outputs
from engine.segmentation.studies import size, table_columns, table_row
from engine.segmentation.worker import segment_one_by_one

SUMMARY, SEGMENTS = "summary.csv", "segments.csv"  # in an output folder: how each study ended, what was found in it
MEASUREMENTS_SUFFIX = ".sr.dcm"  # beside a DICOM segmentation


def run(options: argparse.Namespace, request: Request) -> None:
    with ExitStack() as stack:
        inputs = [
            stack.enter_context(web.fetched(place)) if isinstance(place, str) else place for place in options.input
        ]
        if options.cluster:  # its workers may have another current folder
            inputs, options.output = [path.absolute() for path in inputs], options.output.absolute()
        work = _segment_many if options.many else _segment_one
        work(options, request, inputs)


def _segment_one(options: argparse.Namespace, request: Request, inputs: list[Path]) -> None:
    stem = options.output.name[: -len(output_suffix(options.output))]
    report = BESIDE if options.resume and options.report is None else options.report
    outputs = Outputs(
        options.output,
        report=_named(report, options.output.with_name(f"{stem}.json")),
        preview=_named(options.preview, options.output.with_name(f"{stem}.png")),
        measurements=options.output.with_name(f"{stem}{MEASUREMENTS_SUFFIX}") if options.measurements else None,
        masks=_named(options.masks, options.output.with_name(f"{stem}.nii.gz")),
        probability=_named(options.probability, options.output.with_name(f"{stem}_probability.nii.gz")),
    )
    if options.frame != ALL_FRAMES and not options.resume:
        check_outputs(request, outputs, options.overwrite, inputs)
    study, order, shown = Study(stem, inputs[0], outputs), _order(options, request, inputs), _Shown()
    with closing(shown):
        work_on(_settings(options).new_segmenter(), study, order, shown.progress, shown.report)
    shown.say_if_nothing()
    _store(study, order)


def _segment_many(options: argparse.Namespace, request: Request, inputs: list[Path]) -> None:
    output = options.output.resolve()
    if any(folder == output or folder in output.parents for folder in (p.resolve() for p in inputs)):
        raise UserError(f"{options.output} lies among the scans; choose another folder, or results become scans")
    found = (
        named_series(inputs)
        if options.each_series
        else {name: (path, None) for name, path in named_studies(inputs).items()}
    )
    studies = [Study(name, path, _outputs_in(options, name), uid) for name, (path, uid) in found.items()]
    check_apart(request, [study.outputs for study in studies])
    summary, segments = options.output / SUMMARY, options.output / SEGMENTS
    for table in (summary, segments):
        check_output(table, options.overwrite or options.resume)
    order = _order(options, request, [study.path for study in studies])
    if options.cluster:
        ends = _on_cluster(options, studies, order)
    else:
        ends = _one_after_another(_settings(options), studies, order)
    make_folder(summary.parent)
    write_csv(summary, ends)
    done = [study for study, end in zip(studies, ends, strict=True) if not end.reason]
    write_table(segments, table_columns(), [row for study in done for row in _table_rows(study, order)])
    failed = sum(end.state == "failed" for end in ends)
    if failed:
        raise UserError(f"{failed} of {len(studies)} studies failed, as {summary} lists; the others are done")


def _one_after_another(settings: Settings, studies: list[Study], order: Order) -> list[End]:
    ends, shown = [], _Shown()
    with closing(shown):
        for end in segment_one_by_one(settings, studies, order, shown.begin, shown.progress, shown.report):
            shown.close()
            if not end.reason:
                shown.say_if_nothing()
                study = studies[len(ends)]
                end = end_of(study, lambda study=study: _store(study, order))
            if end.reason:
                print(f"failed: {end.reason}", file=sys.stderr)
            ends.append(end)
    return ends


def _on_cluster(options: argparse.Namespace, studies: list[Study], order: Order) -> list[End]:
    settings = _settings(options, adapter=_anywhere(options.adapter), base=_anywhere(options.base))
    with progress_bar("segmenting", len(studies)) as update:
        ends = segment_on_cluster(
            options.cluster,
            options.workers,
            settings,
            studies,
            order,
            lambda done, working: update(done, note=f"{working} at work"),
        )
    ends = [
        end if end.reason else end_of(study, lambda study=study: _store(study, order))
        for study, end in zip(studies, ends, strict=True)
    ]
    for end in ends:
        if end.reason:
            print(f"{end.study} failed: {end.reason}", file=sys.stderr)
    return ends


class _Shown:
    """Shows how far a study is, and what was found in it."""

    def __init__(self):
        self._bar, self._update, self._reports = ExitStack(), None, 0

    def begin(self, number: int, count: int, study: Study) -> None:
        self._reports = 0
        print(f"{number} / {count} {study.name}")

    def progress(self, step: str, done: int, total: int) -> None:
        if self._update is None:
            self._update = self._bar.enter_context(progress_bar(step, total))
        self._update(done, description=step, total=total)

    def report(self, report: dict, path: Path) -> None:
        self.close()
        self._reports += 1
        _print_report(report)
        print(f"wrote {path}")

    def close(self) -> None:
        """Take away the bar."""
        self._bar.close()
        self._update = None

    def say_if_nothing(self) -> None:
        if not self._reports:
            print("done before")


def _store(study: Study, order: Order) -> None:
    """Send a study's DICOM objects to a server, also those that were done before: it may not have got them."""
    for path in to_store(study, order) if order.store else ():
        web.store(path, order.store)
        print(f"stored {path.name} at {order.store}")


def _table_rows(study: Study, order: Order) -> list[dict]:
    """Return a row for each segment of a study, also where it was done before, as its reports have them."""
    rows = []
    for path in reports_of(study, order):
        try:
            results = read_json(path)["results"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} cannot be read any more; run this again with --resume") from error
        rows += [table_row({"study": study.name, "report": path.name, **result}) for result in results]
    return rows


def _print_report(report: dict) -> None:
    table = Table("prompt", "size", "presence", "seconds")
    for row in report["results"]:
        table.add_row(escape(row["prompt"]), size(row), f"{row['presence']:.2f}", f"{row['seconds']:.1f}")
    Console().print(table)
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{report['seconds_encoding']:.1f} s to encode the scan on {report['device']} in {report['precision']}")


def _order(options: argparse.Namespace, request: Request, scans: list[Path]) -> Order:
    chosen = {
        name: getattr(options, name) for name in ("series", "frame", "resample", "resume", "overwrite", "store")
    }
    return Order(request, **chosen, scans=tuple(scans))


def _outputs_in(options: argparse.Namespace, name: str) -> Outputs:
    folder = options.output
    return Outputs(
        folder / f"{name}{options.format}",
        report=folder / f"{name}.json",
        preview=folder / f"{name}.png" if options.preview else None,
        measurements=folder / f"{name}{MEASUREMENTS_SUFFIX}" if options.measurements else None,
        masks=folder / f"{name}.nii.gz" if options.masks else None,
        probability=folder / f"{name}_probability.nii.gz" if options.probability else None,
    )


def _named(chosen: Path | None, beside: Path) -> Path | None:
    return beside if chosen is BESIDE else chosen


def _settings(options: argparse.Namespace, **models: str | None) -> Settings:
    chosen = {field.name: getattr(options, field.name) for field in fields(Settings)}
    return Settings(**(chosen | models))


def _anywhere(model: str | None) -> str | None:
    """Return the name of a model, or the folder of one as other processes find it."""
    return str(Path(model).absolute()) if model and Path(model).is_dir() else model
