"""The drain signal in the middle of real rows: saved, gone on elsewhere, nothing computed twice."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from planned_run import BEATING, PlannedRun, plan_run

from batchgen.ledger.counts import read_counters
from batchgen.ledger.events import End, Saved, Start, Tried
from batchgen.records import Attempt, Commit
from batchgen.worker.judging import seed_of_retry

STEPS = [60, 45, 3, 60]
SMALL = ("row_defaults.width=32", "row_defaults.height=32", "row_defaults.num_frames=5")


def drain(planned_run: PlannedRun, restart: int, busy_s: float) -> None:
    """Start a rank, let it work for a while, and tell it to drain."""
    rank = planned_run.start(1, BEATING, restart=restart)
    planned_run.wait_for_steps(1, restart, busy_s)
    rank.send_signal(signal.SIGUSR2)
    _, err = rank.communicate(timeout=120)
    assert rank.returncode == 0, err
    assert [end.reason for end in planned_run.of(End, 1, restart)] == ["drained"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rows_in_flight_go_on_after_each_of_two_signals(tmp_path: Path) -> None:
    whole = plan_run(tmp_path / "whole", STEPS, *SMALL, model="tiny-wan")
    assert whole.work(whole.begin(range(4))) == 0
    planned_run = plan_run(tmp_path / "cut", STEPS, *SMALL, model="tiny-wan")
    planned_run.begin(range(4))
    for restart in (0, 1):
        drain(planned_run, restart, 0.25)
    assert planned_run.work(1, restart=2) == 0
    frames: dict[int, str] = {}
    for restart in (0, 1, 2):
        frames |= planned_run.frames(1, restart)
    assert frames == whole.frames(1)
    assert_nothing_twice(planned_run)
    assert not [path for path in planned_run.run.state.rglob("*") if path.is_file()]


def test_a_row_that_a_judge_wants_anew_goes_on_with_the_seed_it_was_at(tmp_path: Path) -> None:
    """Else one that takes longer than a job may is drawn from its first seed for ever."""
    judge = "{call: judge_by_seed:refused, params: {seeds: [0]}, at_most: {refused: 0}, %s}"
    again = f"output.judges=[{judge % 'policy: retry, retries: 2'}]"
    planned_run = plan_run(tmp_path, [60], *SMALL, again, model="tiny-wan")
    planned_run.begin([0])
    rank = planned_run.start(1, BEATING)
    planned_run.wait_for(lambda: is_drawn_anew(planned_run))
    rank.send_signal(signal.SIGUSR2)
    _, err = rank.communicate(timeout=120)
    assert rank.returncode == 0, err
    (saved,) = planned_run.of(Saved, 1)
    assert planned_run.work(1, restart=1) == 0
    assert not planned_run.of(Tried, 1, 1), "the first seed was refused before"
    (commit,) = planned_run.of(Commit, 1, 1)
    assert (commit.status, commit.seed, commit.tries) == ("ok", seed_of_retry(0, 1), 2)
    assert commit.stats.steps_restored == saved.step > 0
    assert not [path for path in planned_run.run.state.rglob("*") if path.is_file()]


def is_drawn_anew(planned_run: PlannedRun) -> bool:
    """Whether the first attempt is some steps into the second drawing of its row."""
    starts = planned_run.of(Start, 1)
    counters = read_counters(planned_run.run.counters(Attempt(1, 0, 0, 0)))
    if len(starts) < 2 or counters is None:
        return False
    return counters.t > starts[1].t and counters.spent.open > 0.1


def assert_nothing_twice(planned_run: PlannedRun) -> None:
    """Steps computed by all attempts add up to the steps of the rows, branches apart."""
    saved = {s.row_index: s.step for r in (0, 1) for s in planned_run.of(Saved, 1, r)}
    assert saved, "the signals came too late to find a row in flight"
    commits = {c.row_index: c.stats for r in (0, 1, 2) for c in planned_run.of(Commit, 1, r)}
    assert set(commits) == set(range(4))
    for row, stats in commits.items():
        assert stats.steps_restored == saved.get(row, 0)
        assert stats.steps_computed == 2 * (STEPS[row] - stats.steps_restored)
    items = sum(end.items for r in (0, 1, 2) for end in planned_run.of(End, 1, r))
    assert items == 2 * sum(STEPS)
