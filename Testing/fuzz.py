"""Give the engine damaged and hostile inputs, and see that each is taken or refused in one line.

Every input must be read, or refused by a UserError: no other exception, no end of the process, no more than ten
seconds of computing, no more memory than stated, and nothing written but in the folder for it. Inputs are made from
real files by a seed and a number, so that any can be made again: --only NUMBER --keep FOLDER. Linux only.
"""

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil

TESTING = Path(__file__).resolve().parent
INPUT_SECONDS = 10.0  # of computing
POLL_SECONDS = 1.0
STUCK_SECONDS = 600.0  # without computing so much; a busy machine takes long to load all libraries
GOOD = ("taken", "refused")
SHOWN = 40


def meet_all(place: Path, seed: int, start: int, stop: int) -> Iterator[dict]:
    """Yield what came of each input, also of those at which a process hung or died."""
    attempt = 0
    while start < stop:
        for answer in _one_process(place / f"worker-{attempt}", seed, start, stop):
            yield answer
            start = answer["number"] + 1
        attempt += 1


def _one_process(place: Path, seed: int, start: int, stop: int) -> Iterator[dict]:
    """Yield answers until a process is through, or until the first input that it does not survive."""
    place.mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "fuzzing.worker", str(place), str(seed), str(start), str(stop)],
        cwd=TESTING,
        env={**os.environ, "PYTHONPATH": f"{TESTING.parent}{os.pathsep}{TESTING}", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=(place / "stderr.txt").open("wb"),
        text=True,
    )
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [*map(lines.put, process.stdout), lines.put("")], daemon=True).start()
    number, kinds = start, []
    try:
        while number < stop:
            line = _next(lines, process.pid, INPUT_SECONDS if kinds else STUCK_SECONDS)
            if not line:
                break
            answer = json.loads(line)
            if "kinds" in answer:
                kinds = answer["kinds"]
            else:
                yield answer
                number = answer["number"] + 1
        outcome = "died"
    except queue.Empty:
        outcome = "hung"
    process.kill()
    code = process.wait()
    words = (place / "stderr.txt").read_text(errors="replace")[-300:]
    if not kinds:
        raise SystemExit(f"no process could be started:\n{words}")
    if number < stop:
        kept = place / "input"
        detail = f"exit code {code}; {' '.join(words.split())[-200:]}; the input is in {kept}"
        yield {
            "number": number,
            "kind": kinds[number % len(kinds)],
            "outcome": outcome,
            "detail": detail,
            "seconds": 0,
            "mib": 0,
        }
    else:
        shutil.rmtree(place)


def _next(lines: queue.Queue[str], pid: int, seconds: float) -> str:
    """Return the next line of a process; "" when there is none any more.

    Raises:
        queue.Empty: it computed for so many seconds and said nothing, or is stuck.
    """
    process, end = psutil.Process(pid), time.monotonic() + STUCK_SECONDS
    limit = sum(process.cpu_times()[:2]) + seconds
    while True:
        try:
            return lines.get(timeout=POLL_SECONDS)
        except queue.Empty:
            if time.monotonic() > end or sum(process.cpu_times()[:2]) > limit:
                raise


def main() -> None:
    options = _parser().parse_args()
    start, stop = (options.first, options.first + options.count)
    if options.only is not None:
        start, stop = options.only, options.only + 1
    counts: dict[str, Counter] = defaultdict(Counter)
    times: Counter[str] = Counter()
    slowest, largest, bad, started = 0.0, 0.0, [], time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        place = options.keep or Path(temporary)
        for answer in meet_all(place, options.seed, start, stop):
            counts[answer["kind"]][answer["outcome"]] += 1
            times[answer["kind"]] += answer["seconds"]
            slowest, largest = max(slowest, answer["seconds"]), max(largest, answer["mib"])
            if answer["outcome"] not in GOOD:
                bad.append(answer)
                print("{number} {kind}: {outcome}: {detail}".format(**answer), flush=True)
            elif (answer["number"] + 1) % 1000 == 0:
                print(f"{answer['number'] + 1 - start} in {time.monotonic() - started:.0f} s", flush=True)
            elif options.only is not None:
                print("{number} {kind}: {outcome}: {detail}".format(**answer), flush=True)
    seconds, total = time.monotonic() - started, stop - start
    for kind, outcomes in sorted(counts.items()):
        told = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        print(f"{kind:15} {outcomes.total():6} {times[kind]:6.0f} s  {told}")
    print(f"{total} inputs of seed {options.seed} in {seconds:.0f} s, {total / seconds:.0f} a second")
    print(f"the slowest took {slowest:.2f} s, the largest {largest:.0f} MiB; {len(bad)} failed")
    sys.exit(1 if bad else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="how many inputs (default: 20000)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="the number of one input")
    parser.add_argument("--keep", type=Path, help="a folder for the files, which stay there with --only")
    return parser


if __name__ == "__main__":
    main()
