"""The ledger of device seconds closes: in real processes that measure what they do, are killed in
the middle of rows, save them, and are followed by others.

`python test_closing.py RUN SUBMISSION RESTART FATE STEP ROW...` is such a process. It meets its
fate (kill, drain) at that step of its last row.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from lab import Lab, make_request
from shift import make_shift

from batchgen import catalog
from batchgen.ledger.attempts import accept_restart
from batchgen.ledger.catalog import collect
from batchgen.ledger.events import End
from batchgen.ledger.journal import COUNTERS_EVERY_S, JournalWriter
from batchgen.paths import RunPaths, parse_journal
from batchgen.records import Attempt, RowStats, StageSeconds

STEPS, STEP_S, LOAD_S, IDLE_S = 20, 0.06, 0.6, 0.4
ROW_S = STEPS * STEP_S
SLACK_S = 0.25  # promised are 1 % and 2 s; here hardly anything goes on beside what is measured
UNTOLD_S = SLACK_S + COUNTERS_EVERY_S  # of a killed attempt: what it did since its heartbeat


class Rank:
    """One attempt, with a clock on all it does."""

    def __init__(self, lab: Lab, journal: JournalWriter) -> None:
        self.lab, self.journal = lab, journal
        self.busy = self.idle = 0.0

    def sleep(self, seconds: float) -> float:
        """Do nothing, and measure how long it took."""
        began = time.perf_counter()
        time.sleep(seconds)
        return time.perf_counter() - began

    def work(self, rows: list[int], fate: str, at: int) -> None:
        self.journal.phase("load", self.sleep(LOAD_S))
        for row in rows:
            self.idle += self.sleep(IDLE_S)
            done = row != rows[-1] or not fate
            seconds = self.draw(row, STEPS if done else at)
            if not done:
                self.end(row, fate, seconds, at)
                return
            self.commit(row, seconds)
        self.journal.end(End(reason="done", busy_s=self.busy, idle_s=self.idle))

    def draw(self, row: int, until: int) -> float:
        """Busy seconds."""
        state = self.lab.run.row_state(row, len(self.lab.requests))
        step = int(state.read_text()) if state.exists() else 0
        self.journal.start(row, f"row{row:04d}")
        spent = 0.0
        for _ in range(step, until):
            seconds = self.sleep(STEP_S)
            spent, self.busy = spent + seconds, self.busy + seconds
            self.journal.beat()
        return spent

    def commit(self, row: int, seconds: float) -> None:
        commit = self.lab.commit_of(row, parse_journal(self.journal.path), None)
        stats = RowStats(stages=StageSeconds(denoise=seconds))
        self.journal.commit(replace(commit, stats=stats))

    def end(self, row: int, fate: str, seconds: float, step: int) -> None:
        if fate == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        state = self.lab.run.row_state(row, len(self.lab.requests))
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_text(str(step))
        self.journal.saved(row, step, seconds)
        self.journal.end(End(reason="drained", busy_s=self.busy, idle_s=self.idle))


def main(root: str, submission: str, restart: str, fate: str, at: str, *rows: str) -> None:
    lab = Lab(RunPaths(Path(root)), [make_request(row) for row in range(4)])
    with lab.journal(int(submission), restart=int(restart)) as journal:
        Rank(lab, journal).work([int(row) for row in rows], fate, int(at))


def start(lab: Lab, submission: int, restart: int, fate: str, at: int, *rows: int) -> int:
    values = [lab.run.root, submission, restart, fate, at, *rows]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, __file__, *map(str, values)],
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    return done.returncode


def near(seconds: float, slack: float = SLACK_S) -> float:
    """To compare with."""
    close: float = pytest.approx(seconds, abs=0.01 * seconds + slack)
    return close


def closes(run: pd.Series) -> None:
    parts = run[["load_s", "compile_s", "warmup_s", "other_s", "busy_s", "idle_s"]].sum()
    assert parts == near(run["wall_s"])
    spent = run[["useful_s", "retried_s", "saved_s", "lost_s"]].sum()
    assert spent == near(run["busy_s"])


def test_a_run_with_kills_and_a_drain_closes(make_lab: Callable[..., Lab]) -> None:
    """Killed in row 1; its restart is drained in row 2; the next submission is killed in row 3, the
    last one ends."""
    lab = make_lab(4)
    first = lab.submit()
    assert start(lab, first, 0, "kill", 15, 0, 1) == -signal.SIGKILL
    accept_restart(lab.run, Attempt(first, 0, 1, 0))
    assert start(lab, first, 1, "drain", 12, 1, 2) == 0
    assert start(lab, lab.submit([2, 3]), 0, "kill", 18, 2, 3) == -signal.SIGKILL
    assert start(lab, lab.submit([3]), 0, "", 0, 3) == 0
    assert collect(lab.run).ok == 4
    runs = pd.read_parquet(lab.run.catalog_runs)
    assert runs["exit_reason"].tolist() == ["killed", "drained", "killed", "done"]

    for _, run in runs.iterrows():
        closes(run)

    steps = {
        "useful_s": [20, 20, 8, 20],
        "saved_s": [0, 12, 0, 0],
        "retried_s": [0, 0, 0, 0],
    }
    for column, numbers in steps.items():
        assert runs[column].tolist() == [near(n * STEP_S) for n in numbers], column
    assert runs["load_s"].tolist() == [near(LOAD_S)] * 4
    assert runs["idle_s"].tolist() == [0.0, near(2 * IDLE_S), 0.0, near(IDLE_S)]
    least = [15 * STEP_S - UNTOLD_S, 0.0, 18 * STEP_S - UNTOLD_S, 0.0]
    assert (runs["lost_s"] >= least).all(), "with the idle time, which the killed cannot tell"
    assert runs["lost_s"].tolist()[1::2] == [0.0, 0.0]
    assert catalog.waste(lab.run.root)["total"] == pytest.approx(runs["lost_s"].sum())


def test_an_attempt_that_ends_by_an_error_closes_too(tmp_path: Path) -> None:
    """The render never comes back with its figures; what its rows took is known all the same."""
    shift = make_shift(tmp_path, [20] * 6)  # 0.2 s each
    assert shift.begin(range(6)) == 1
    assert shift.work(1, {"BATCHGEN_FAILPOINT": "journal.before_append:4:raise"}) == 1
    assert collect(shift.run).ok == 3
    (run,) = (row for _, row in pd.read_parquet(shift.run.catalog_runs).iterrows())
    assert (run["exit_reason"], run["rows_ok"]) == ("RuntimeError", 3)
    assert run["useful_s"] == near(0.6)
    assert run["lost_s"] >= 0.2, "the row that could not be committed"
    closes(run)


if __name__ == "__main__":
    main(*sys.argv[1:])
