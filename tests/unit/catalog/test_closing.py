"""The ledger of device seconds closes: in real processes that measure what they do, are killed in
the middle of rows, save them, and are followed by others.

`python test_closing.py RUN SUBMISSION RESTART FATE STEP ROW...` is such a process. It meets its
fate (kill, drain) at that step of its last row. Time passes there when it says so, so that every
second is known.
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
from planned_run import plan_run
from run_folder import RunFolder, make_request

from batchgen import catalog
from batchgen.catalog.accounts import BUSY_PARTS, WALL_PARTS
from batchgen.catalog.collect import collect
from batchgen.engine import clock as clock_module
from batchgen.engine.clock import Clock
from batchgen.ledger import journal as journal_module
from batchgen.ledger.counts import read_counters
from batchgen.ledger.events import AttemptHeader, End, Start
from batchgen.ledger.journal import JournalWriter
from batchgen.ledger.restarts import fence_restart
from batchgen.paths import RunPaths, parse_journal
from batchgen.records import Attempt, Commit, RowStats, StageSeconds

SMALL = ("row_defaults.width=32", "row_defaults.height=32", "row_defaults.num_frames=1")
STEPS, STEP_S, LOAD_S, IDLE_S, DECODE_S = 20, 0.06, 0.6, 0.4, 0.3
EXACT_S = 1e-5
SLACK_S = 0.25  # promised are 1 % and 2 s; here hardly anything goes on beside what is measured


class Hands:
    """Both clocks of a process: the time of day and the one that measures. They go together."""

    def __init__(self) -> None:
        self.began, self.passed = time.time(), 0.0
        journal_module.time = self  # type: ignore[assignment]
        clock_module.perf_counter = lambda: self.passed

    def time(self) -> float:
        return self.began + self.passed

    def monotonic(self) -> float:
        return self.began + self.passed


class Rank:
    """One attempt, with a clock on all it does."""

    def __init__(
        self, run_folder: RunFolder, journal: JournalWriter, clock: Clock, hands: Hands
    ) -> None:
        self.run_folder, self.journal, self.clock, self.hands = run_folder, journal, clock, hands

    def work(self, rows: list[int], fate: str, at: int) -> None:
        with self.clock.on("load"):
            self.hands.passed += LOAD_S
        self.journal.phase("load", self.clock.read().load)
        for row in rows:
            self.hands.passed += IDLE_S
            done = row != rows[-1] or not fate
            seconds = self.draw(row, STEPS if done else at)
            if not done:
                self.end(row, fate, seconds, at)
                return
            with self.clock.on("shared_decode"):  # with other ranks
                self.hands.passed += DECODE_S
            self.commit(row, seconds)
        self.last_line("done")

    def draw(self, row: int, until: int) -> float:
        """Busy seconds."""
        state = self.run_folder.run.row_state(row, len(self.run_folder.requests))
        step = int(state.read_text()) if state.exists() else 0
        self.journal.start(row, f"row{row:04d}")
        before = self.clock.read().busy
        for _ in range(step, until):
            with self.clock.on("denoise"):
                self.hands.passed += STEP_S
            self.clock.share({row: self.clock.read().busy - before})
            self.journal.beat()
        return self.clock.read().busy - before

    def commit(self, row: int, seconds: float) -> None:
        commit = self.run_folder.commit_of(row, parse_journal(self.journal.path), None)
        stats = RowStats(stages=StageSeconds(denoise=seconds))
        self.journal.commit(replace(commit, stats=stats))

    def end(self, row: int, fate: str, seconds: float, step: int) -> None:
        if fate == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        state = self.run_folder.run.row_state(row, len(self.run_folder.requests))
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_text(str(step))
        self.journal.saved(row, step, seconds)
        self.last_line("drained")

    def last_line(self, reason: str) -> None:
        spent = self.clock.read()
        seconds = {"idle_s": spent.idle, "tail_s": spent.tail, "denoise_s": spent.denoise}
        seconds |= {"busy_s": spent.busy, "load_s": spent.load, "lost_s": spent.open}
        seconds["shared_decode_s"] = spent.shared_decode
        self.journal.end(End(reason=reason, t=self.hands.time(), **seconds))


def main(root: str, submission: str, restart: str, fate: str, at: str, *rows: str) -> None:
    journal_module.COUNTERS_EVERY_S = 0.0  # a heartbeat at every step
    run_folder = RunFolder(RunPaths(Path(root)), [make_request(row) for row in range(4)])
    hands = Hands()
    clock = Clock()
    header = AttemptHeader(attempt=Attempt(int(submission), 0, int(restart), 0), t=hands.time())
    with JournalWriter.open(run_folder.run, header, clock) as journal:
        Rank(run_folder, journal, clock, hands).work([int(row) for row in rows], fate, int(at))


def start(
    run_folder: RunFolder, submission: int, restart: int, fate: str, at: int, *rows: int
) -> int:
    values = [run_folder.run.root, submission, restart, fate, at, *rows]
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


def exactly(seconds: float) -> float:
    """To compare with, where nothing but rounding comes between."""
    close: float = pytest.approx(seconds, abs=EXACT_S)
    return close


def closes(run: pd.Series, equal: Callable[[float], float] = near) -> None:
    assert run[[*WALL_PARTS]].sum() == equal(run["wall_s"]) == equal(run["ended"] - run["started"])
    assert run[[*BUSY_PARTS]].sum() == equal(run["busy_s"])


def runs_of(run: RunPaths) -> list[pd.Series]:
    collect(run)
    return [row for _, row in pd.read_parquet(run.catalog_runs).iterrows()]


def test_a_run_with_kills_and_a_drain_closes(make_run_folder: Callable[..., RunFolder]) -> None:
    """Killed in row 1; its restart is drained in row 2; the next submission is killed in row 3, the
    last one ends."""
    run_folder = make_run_folder(4)
    first = run_folder.submit()
    assert start(run_folder, first, 0, "kill", 15, 0, 1) == -signal.SIGKILL
    fence_restart(run_folder.run, Attempt(first, 0, 1, 0))
    assert start(run_folder, first, 1, "drain", 12, 1, 2) == 0
    assert start(run_folder, run_folder.submit([2, 3]), 0, "kill", 18, 2, 3) == -signal.SIGKILL
    assert start(run_folder, run_folder.submit([3]), 0, "", 0, 3) == 0
    assert collect(run_folder.run).ok == 4
    runs = pd.read_parquet(run_folder.run.catalog_runs)
    assert runs["exit_reason"].tolist() == ["killed", "drained", "killed", "done"]

    for _, run in runs.iterrows():
        closes(run, exactly)

    steps = {
        "useful_s": [20, 20, 8, 20],
        "saved_s": [0, 12, 0, 0],
        "retried_s": [0, 0, 0, 0],
        "lost_s": [15, 0, 18, 0],
    }
    for column, numbers in steps.items():
        assert runs[column].tolist() == [exactly(n * STEP_S) for n in numbers], column
    assert runs["load_s"].tolist() == [exactly(LOAD_S)] * 4
    assert runs["idle_s"].tolist() == [exactly(n * IDLE_S) for n in (2, 2, 2, 1)]
    assert runs["shared_decode_s"].tolist() == [exactly(DECODE_S)] * 4
    assert runs["tail_s"].tolist() == [exactly(0.0)] * 4
    assert catalog.waste(run_folder.run.root)["total"] == pytest.approx(runs["lost_s"].sum())


def test_an_attempt_that_ends_by_an_error_closes_too(tmp_path: Path) -> None:
    """The render never comes back with its figures; the clock has them all the same."""
    planned_run = plan_run(tmp_path, [20] * 6)  # 0.2 s each
    assert planned_run.begin(range(6)) == 1
    assert planned_run.work(1, {"BATCHGEN_FAILPOINT": "journal.before_append:4:raise"}) == 1
    (run,) = runs_of(planned_run.run)
    assert (run["exit_reason"], run["rows_ok"]) == ("RuntimeError", 3)
    assert run["useful_s"] == near(0.6)
    assert run["lost_s"] >= 0.2, "the row that could not be committed"
    assert run["tail_s"] == near(0.0)
    closes(run)


def test_a_rank_that_is_killed_in_a_row_closes(tmp_path: Path) -> None:
    """In its second row; the first one was committed in it, behind its back."""
    planned_run = plan_run(tmp_path, [50, 500])
    assert planned_run.begin([0, 1]) == 1
    with planned_run.start(1, {"BATCHGEN_FAILPOINT": "journal.after_append:1:sleep1"}) as process:
        planned_run.wait_for(lambda: len(planned_run.of(Start, 1)) == 2)
        planned_run.wait_for(lambda: planned_run.of(Commit, 1))
        process.kill()
        process.communicate()
    (run,) = runs_of(planned_run.run)
    assert (run["exit_reason"], run["rows_ok"], run["rows_lost"]) == ("killed", 1, 1)
    assert run["lost_s"] > 0, "what it was busy with between start and commit"
    closes(run)


def test_waiting_for_others_is_on_the_clock(tmp_path: Path) -> None:
    """Rank 1 waits for the queue, which comes late, and both wait for each other's suspects: at the
    end too, rank 0 since it serves the queue, or as a rank that had no row at all."""
    planned_run = plan_run(tmp_path, [150, 150])
    planned_run.begin([], alone=[0, 1])
    late = {"BATCHGEN_FAILPOINT": "queue.before_address:1:sleep2"}
    second = planned_run.start(1, rank=1, world_size=2)
    planned_run.wait_for(lambda: planned_run.events(1, replica=1))
    for rank in (planned_run.start(1, late, rank=0, world_size=2), second):
        _, err = rank.communicate(timeout=60)
        assert rank.returncode == 0, err
    runs = runs_of(planned_run.run)
    assert sum(run["rows_ok"] for run in runs) == 2
    for run in runs:
        closes(run)
        assert run["lost_s"] == pytest.approx(0.0, abs=0.01)
        assert run["idle_s"] + run["tail_s"] >= 1.9
        assert run["busy_s"] >= 1.5 * run["rows_ok"]
        assert run["rows_ok"] or run["tail_s"] >= 1.5  # all of a row: it may have come late itself


def test_an_attempt_that_dies_or_errs_as_it_loads_has_spent_it_on_that(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    slow.joinpath("torch.py").write_text("import time\ntime.sleep(2)\nraise ImportError('no')\n")
    planned_run = plan_run(tmp_path / "run", [1], *SMALL, model="tiny-wan")
    planned_run.begin([0])
    assert planned_run.work(1, {"PYTHONPATH": os.pathsep.join([str(slow), *sys.path])}) == 1
    slow.joinpath("torch.py").write_text("import signal\nsignal.pause()\n")
    with planned_run.start(
        1, {"PYTHONPATH": os.pathsep.join([str(slow), *sys.path])}, restart=1
    ) as hung:
        counters = planned_run.run.counters(Attempt(1, 0, 1, 0))
        planned_run.wait_for(lambda: (c := read_counters(counters)) and c.t - c.began > 2)
        hung.kill()
        hung.communicate()
    erred, died = runs_of(planned_run.run)
    assert (erred["exit_reason"], died["exit_reason"]) == ("ImportError", "killed")
    assert erred["load_s"] >= 2.0 and died["load_s"] >= 2.0
    for run in (erred, died):
        assert run["load_s"] == near(run["wall_s"], 1.0)
        closes(run)
    assert "load" not in planned_run.run.time_stats.read_text(), "nothing was loaded"


if __name__ == "__main__":
    main(*sys.argv[1:])
