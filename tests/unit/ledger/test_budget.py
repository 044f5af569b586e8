"""The budget of a run: device hours of all attempts, summed once for all ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from batchgen.durable import write_json
from batchgen.ledger import budget
from batchgen.ledger.budget import Budget, budget_spent, spent_hours
from batchgen.paths import RunPaths
from batchgen.records import Attempt


def beat(
    run: RunPaths,
    task: int,
    seconds: float,
    devices: int = 1,
    submission: int = 1,
    spent: dict[str, float] | None = None,
) -> None:
    """The counters of an attempt that has run for so long, by the clock and as it measured."""
    path = run.counters(Attempt(submission, task, 0, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    process = {"host": "n", "pid": 1, "place": "", "start": 0}
    said = {"began": 100.0, "t": 100.0 + seconds, "devices": devices, "spent": spent or {}}
    write_json(path, {"offset": 0, "process": process, **said})


def test_all_attempts_count_with_their_devices(tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    assert spent_hours(run) == 0.0
    beat(run, 0, 1800)
    beat(run, 1, 900, devices=4)
    beat(run, 0, 360, submission=2)
    assert spent_hours(run) == pytest.approx(0.5 + 1.0 + 0.1)
    assert budget_spent(run, None) == budget_spent(run, 1.7) == ""
    assert "1.6 device hours are spent of system.max_gpu_hours=1.5;" in budget_spent(run, 1.5)


def test_ranks_share_one_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, now, sums = RunPaths(tmp_path), [1000.0], []
    real = spent_hours
    monkeypatch.setattr(budget, "spent_hours", lambda run: sums.append(1) or real(run))
    beat(run, 0, 3600)
    ranks = [Budget(run, 2.0, clock=lambda: now[0]) for _ in range(50)]
    assert not any(rank.reached for rank in ranks)
    assert len(sums) == 1, "the others read what the first has stored"
    beat(run, 1, 3600)
    assert not any(rank.reached for rank in ranks), "nobody looks again at once"
    now[0] += 2 * budget.LOOK_EVERY_S
    assert all(rank.reached for rank in ranks)
    assert len(sums) == 2
    (run.counters(Attempt(1, 1, 0, 0))).unlink()
    now[0] += 1000
    assert all(rank.reached for rank in ranks), "what is spent stays spent"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"t": "x", "device_hours": 3}', '{"t": 9e9}'])
def test_a_damaged_sum_is_made_anew(text: str, tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    beat(run, 0, 7200)
    run.spent.write_text(text)
    assert Budget(run, 1.0, clock=lambda: 1000.0).reached
    assert json.loads(run.spent.read_text())["device_hours"] == 2.0


def test_a_clock_that_is_set_back_holds_no_look_up(tmp_path: Path) -> None:
    run, now = RunPaths(tmp_path), [10_000.0]
    beat(run, 0, 3600)
    rank = Budget(run, 2.0, clock=lambda: now[0])
    assert not rank.reached
    beat(run, 1, 3600)
    now[0] -= 5000
    assert rank.reached


def test_a_sum_of_the_future_is_made_anew(tmp_path: Path) -> None:
    """Stored by a machine whose clock was ahead."""
    run = RunPaths(tmp_path)
    beat(run, 0, 7200)
    write_json(run.spent, {"t": 9000.0, "device_hours": 0.0})
    assert Budget(run, 1.0, clock=lambda: 1000.0).reached


def test_what_an_attempt_measured_counts_more_than_the_clock(tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    beat(run, 0, 3600, devices=2, spent={"load": 60.0, "denoise": 100.0, "tail": 20.0, "open": 9.0})
    assert spent_hours(run) == pytest.approx(2 * 180 / 3600)


def test_without_a_limit_nobody_looks(tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    beat(run, 0, 7200)
    assert not Budget(run, None).reached and not run.spent.exists()
