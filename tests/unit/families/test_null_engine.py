"""The engine without a model: seconds as predicted, the same contract as the real one, no torch."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from planned_run import plan_run, row

from batchgen.config.schema import SystemConfig
from batchgen.engine.contract import Snapshot
from batchgen.errors import ConfigError
from batchgen.families.null.model import NullEngine, pace_of
from batchgen.ledger.events import End
from batchgen.records import Commit, Rendered, RowStats
from batchgen.request import Request


class Rows:
    """A source and a sink over lists."""

    def __init__(self, rows: list[Request], states: dict[int, Snapshot] | None = None) -> None:
        self.rows, self.states = rows, states or {}
        self.done: dict[int, Rendered] = {}
        self.kept: dict[int, Snapshot] = {}
        self.errors: dict[int, Exception] = {}

    def take(self, room: int) -> list[Request]:
        taken, self.rows = self.rows[:room], self.rows[room:]
        return taken

    def restore(self, request: Request) -> Snapshot | None:
        if request.prompt == "bad":
            raise RuntimeError("no")
        return self.states.get(request.row_index)

    def started(self, request: Request) -> None: ...

    def finished(self, rendered: Rendered) -> None:
        self.done[rendered.request.row_index] = rendered

    def failed(self, request: Request, error: Exception, stats: RowStats) -> None:
        self.errors[request.row_index] = error

    def saved(self, request: Request, snapshot: Snapshot) -> None:
        self.kept[request.row_index] = snapshot


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> NullEngine:
    monkeypatch.delenv("BATCHGEN_NULL_SLOW", raising=False)
    return NullEngine(SystemConfig(determinism="strict"), "node1")


def test_rows_take_their_predicted_seconds_and_frames_come_from_the_seed(
    engine: NullEngine,
) -> None:
    rows = Rows([row(0, 5), row(1, 20, num_frames=3), row(2, 20, seed=0)])
    begin = time.perf_counter()
    report = engine.render(rows, rows)
    assert time.perf_counter() - begin == pytest.approx(0.45, abs=0.25)
    assert (report.rows_finished, report.ticks) == (3, 45)
    assert rows.done[1].frames.shape == (3, 16, 16, 3)
    assert rows.done[1].frames.dtype == np.uint8
    stats = rows.done[1].stats
    assert stats.stages.denoise == pytest.approx(0.2, abs=0.1)
    assert stats.steps_total == stats.steps_computed == 20
    again = Rows([row(1, 20, num_frames=3)])
    engine.render(again, again)
    assert np.array_equal(again.done[1].frames, rows.done[1].frames)
    assert not np.array_equal(rows.done[0].frames, rows.done[2].frames)  # other steps, other noise


def test_a_stopped_row_goes_on_where_it_was(engine: NullEngine) -> None:
    whole = Rows([row(0)])
    engine.render(whole, whole)
    asked = iter(range(100))
    first = Rows([row(0), row(1)])
    report = engine.render(first, first, stop=lambda: next(asked) >= 5)
    assert (report.rows_saved, report.rows_abandoned, first.done) == (1, 1, {})
    assert first.kept[0].step == 4
    second = Rows([row(0)], first.kept)
    engine.render(second, second)
    stats = second.done[0].stats
    assert (stats.steps_restored, stats.steps_computed) == (4, 6)
    assert np.array_equal(second.done[0].frames, whole.done[0].frames)
    lost = Rows([row(0)], {0: Snapshot(4, 0.0, {"digest": np.zeros(32, np.uint8)})})
    engine.render(lost, lost)
    assert not np.array_equal(lost.done[0].frames, whole.done[0].frames)  # the state is used


def test_a_row_that_cannot_begin_fails_alone(engine: NullEngine) -> None:
    rows = Rows([row(0, 1, prompt="bad"), row(1, 1)])
    report = engine.render(rows, rows)
    assert (report.rows_failed, report.rows_finished) == (1, 1)
    assert str(rows.errors[0]) == "no"


def test_hosts_can_be_slow() -> None:
    text = "node2=2.0, node3=1.5,*=0"
    assert [pace_of(f"node{n}", text) for n in (1, 2, 3)] == [0.0, 2.0, 1.5]
    assert pace_of("node1", "") == pace_of("node1", "node2=3") == 1.0
    for bad in ("node2", "node2=fast", "node2=-1", "node2=nan"):
        with pytest.raises(ConfigError, match=r"BATCHGEN_NULL_SLOW.*HOST=FACTOR"):
            pace_of("node1", bad)


def test_a_rank_without_a_model_loads_no_torch_and_starts_at_once(tmp_path: Path) -> None:
    planned_run = plan_run(tmp_path, [1, 1, 1])
    process = planned_run.start(planned_run.begin([0, 1, 2]))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    cpu_s, *heavy = out.split()
    assert heavy == []
    assert float(cpu_s) < 3.0  # about half a second on an idle machine
    assert len(planned_run.of(Commit, 1)) == 3
    assert planned_run.of(End, 1)[-1].reason == "done"
