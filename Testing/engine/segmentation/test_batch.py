"""Many studies with faulty ones among them, killed in the middle; `Testing/batch.py` takes more of them."""

import re
import sys

import pytest
from batch import FAULTS, command, kill_after, make_studies, results, summary
from conftest import run_command

from engine import segment

COUNT = 48


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_good_studies_are_done_faulty_ones_listed_and_a_killed_run_goes_on_to_the_same_end(
    tmp_path, tiny_adapter, monkeypatch, capsys
):
    faulty = make_studies(tmp_path / "studies", COUNT)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()

    def run(output):
        words = command(tmp_path / "studies", tiny_adapter, output)[3:]
        return run_command(monkeypatch, capsys, segment.main, *words)

    code, _, errors = run(whole)
    assert code == 2 and f"{len(faulty)} of {COUNT} studies failed" in errors and "Traceback" not in errors
    kill_after(command(tmp_path / "studies", tiny_adapter, killed), COUNT // 3)
    assert not (killed / "summary.csv").exists()
    code, printed, _ = run(killed)
    assert code == 2 and printed.count("done before") >= COUNT // 3
    assert results(killed) == results(whole) and len(results(whole)) == COUNT - len(faulty)
    assert summary(killed) == summary(whole)
    reasons = {row["study"]: row["reason"] for row in summary(whole) if row["state"] == "failed"}
    assert reasons.keys() == faulty.keys() and set(faulty.values()) == FAULTS.keys()
    for name, reason in reasons.items():
        assert re.search(FAULTS[faulty[name]], reason) and "unexpected" not in reason, (faulty[name], reason)
