"""Serve segmentation for a department: several servers on a Ray cluster behind one address.

Each is the server of engine.serve; all requests of a client go to the same one, so that it finds its volumes again.
Prints one line of JSON on standard output once all are ready: url, token and version.
"""

import argparse

from engine.cli import called, run, whole_number


def main() -> None:
    options = _parser().parse_args()
    from engine.commands import department  # takes seconds: Ray

    department.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=called("department"), description=__doc__)
    add = parser.add_argument
    add("--cluster", default="local", metavar="ADDRESS", help="HOST:PORT, auto, or local for this machine alone")
    add("--replicas", type=whole_number, default=2, help="how many servers (default: 2)")
    add("--gpus", type=int, default=0, help="of each (default: 0)")
    add("--cpus", type=whole_number, default=1, help="of each (default: 1)")
    add("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    add("--port", type=whole_number, default=8000)
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--precision", default="auto", help="auto, fp32, bf16 or fp16")
    add("--memory-mb", type=whole_number, default=4096, help="of each for volumes and results (default: 4096)")
    add("--volumes", type=whole_number, default=16, help="how many each holds (default: 16)")
    return parser


if __name__ == "__main__":
    run(main)
