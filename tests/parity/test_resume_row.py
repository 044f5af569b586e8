"""A row that is stopped in the middle and goes on elsewhere ends as if nobody had stopped it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from quick_cases import first_quick
from toy_engine import Keeper, ListSource, request, spy_on, system, tiny_wan_spec

from batchgen.engine.contract import Snapshot
from batchgen.engine.engine import Engine
from batchgen.engine.rows.lane import DEPTH
from batchgen.paths import RunPaths
from batchgen.records import Rendered
from batchgen.request import Request
from batchgen.worker.states import RowStates

STEPS = 7
SOLVERS = ("unipc", "euler", "dpm++")


def rows() -> list[Request]:
    """Every solver with and without guidance."""
    return [
        request(
            i,
            num_steps=STEPS,
            solver=SOLVERS[i % 3],
            guidance_scale=3.0 if i < 3 else 1.0,
            row_key=f"key {i}",
            prompt=f"a red circle {i}",
        )
        for i in range(6)
    ]


def mates(count: int) -> list[Request]:
    """Others that share forwards with them for a while."""
    return [request(100 + i, num_steps=1 + i, prompt=f"a blue ring {i}") for i in range(count)]


@pytest.fixture(scope="module")
def load(one_thread: None) -> Callable[[], Engine]:
    return lambda: Engine.load(tiny_wan_spec(), system(), "cpu")


def draw(
    engine: Engine,
    requests: Iterable[Request],
    states: dict[str, Snapshot] | None = None,
    ticks: int | None = None,
    keeper: Keeper | None = None,
) -> Keeper:
    """Render until the rows or the ticks are used up."""
    keeper, asked = keeper or Keeper(), iter(range(10**6))
    spy_on(engine, keeper)
    stop = (lambda: False) if ticks is None else (lambda: next(asked) >= ticks)
    keeper.report = engine.render(ListSource(requests, states), keeper, stop=stop)
    return keeper


@pytest.fixture(scope="module")
def undisturbed(load: Callable[[], Engine]) -> Keeper:
    return draw(load(), rows())


def on_disk(folder: Path, states: dict[str, Snapshot]) -> dict[str, Snapshot]:
    """The states as the next attempt reads them from the run folder."""
    by_id = {row.row_id: row for row in rows()}
    files, later = (RowStates(RunPaths(folder), 6, "strict", "cpu float32") for _ in range(2))
    for name, state in states.items():
        if name in by_id:
            files.save(by_id[name], state)
    found = {name: later.load(by_id[name]) for name in by_id}
    return {name: state for name, state in found.items() if state is not None}


def assert_equal(drawn: Keeper, undisturbed: Keeper) -> None:
    for row in rows():
        name = row.row_id
        assert torch.equal(drawn.latents[name], undisturbed.latents[name]), name
        assert np.array_equal(drawn.frames[name], undisturbed.frames[name]), name


@pytest.mark.parametrize(
    "step", [pytest.param(i, marks=[pytest.mark.slow] * (i not in (1, 4))) for i in range(1, STEPS)]
)
def test_rows_stopped_at_any_step_go_on_bit_equal_with_other_mates(
    load: Callable[[], Engine], undisturbed: Keeper, tmp_path: Path, step: int
) -> None:
    first = draw(load(), [*mates(2), *rows()], ticks=step)
    saved = on_disk(tmp_path, first.states)
    assert {name: state.step for name, state in saved.items()} == {
        row.row_id: step for row in rows()
    }
    assert first.report.rows_saved == len(first.states)
    second = draw(load(), [*reversed(rows()), *mates(2)], saved)
    assert_equal(second, undisturbed)
    for row in rows():
        stats, branches = second.stats[row.row_id], 2 if row.guidance_scale > 1 else 1
        assert (stats.steps_restored, stats.steps_total) == (step, STEPS * branches)
        assert stats.steps_computed == (STEPS - step) * branches


def test_a_row_may_be_stopped_again_and_again(
    load: Callable[[], Engine], undisturbed: Keeper, tmp_path: Path
) -> None:
    states: dict[str, Snapshot] = {}
    for ticks in (2, 1, 2):
        stopped = draw(load(), [*rows(), *mates(ticks)], states, ticks)
        states = on_disk(tmp_path, stopped.states)
    assert {state.step for state in states.values()} == {5}
    drawn = draw(load(), rows(), states)
    assert_equal(drawn, undisturbed)
    assert {drawn.stats[row.row_id].steps_restored for row in rows()} == {5}


def test_the_seconds_of_a_saved_row_are_this_attempts_own(load: Callable[[], Engine]) -> None:
    first = draw(load(), rows(), ticks=3)
    second = draw(load(), rows(), first.states, ticks=1)
    assert {state.step for state in second.states.values()} == {4}
    for keeper in (first, second):
        spent = sum(state.seconds for state in keeper.states.values())
        busy = keeper.report.denoise_s + keeper.report.encode_s
        assert 0 < spent <= busy * 1.01
        assert spent >= keeper.report.denoise_s * 0.99


def test_rows_before_their_first_step_are_not_saved(load: Callable[[], Engine]) -> None:
    keeper = draw(load(), rows(), ticks=0)
    assert (keeper.states, keeper.report.rows_saved) == ({}, 0)


def test_a_state_that_does_not_fit_costs_its_steps_and_nothing_else(
    load: Callable[[], Engine], undisturbed: Keeper, caplog: pytest.LogCaptureFixture
) -> None:
    states = draw(load(), rows(), ticks=2).states
    states["row-0"] = replace(states["row-0"], arrays={})
    small = {"latents": states["row-1"].arrays["latents"][:, :, :1]}
    states["row-1"] = replace(states["row-1"], arrays=small)
    drawn = draw(load(), rows(), states)
    assert_equal(drawn, undisturbed)
    restored = [drawn.stats[row.row_id].steps_restored for row in rows()]
    assert restored == [0, 0, 2, 2, 2, 2]
    assert caplog.text.count("starts anew") == 2


# -------------------------------------------------------------------- one component at a time
@pytest.fixture(scope="module")
def load_by_parts(one_thread: None) -> Callable[[], Engine]:
    return lambda: Engine.load(tiny_wan_spec(), system(memory={"mode": "model"}), "cpu")


class Killed(Keeper):
    """A sink that comes no further than its first rows."""

    most = 0

    def finished(self, rendered: Rendered) -> None:
        if len(self.frames) == self.most:
            raise ConnectionError("killed")
        super().finished(rendered)


@pytest.mark.parametrize("ticks", first_quick([3, STEPS, STEPS + 1], 1))
def test_rows_that_wait_to_be_decoded_are_saved_before_and_then_only_decoded(
    load_by_parts: Callable[[], Engine], undisturbed: Keeper, tmp_path: Path, ticks: int
) -> None:
    """The process is killed while it decodes, told to end at a tick or after the last one. Of the
    rows, those of one step wait from the first tick on."""
    keeper = Killed()
    with pytest.raises(ConnectionError):
        draw(load_by_parts(), [*rows(), *mates(2)], ticks=ticks, keeper=keeper)
    assert {name: state.step for name, state in keeper.states.items()} == {
        **{row.row_id: min(ticks, STEPS) for row in rows()},
        "row-100": 1,
        "row-101": 2,
    }
    second = draw(load_by_parts(), [*mates(1), *rows()], on_disk(tmp_path, keeper.states))
    assert_equal(second, undisturbed)
    for row in rows():
        stats, branches = second.stats[row.row_id], 2 if row.guidance_scale > 1 else 1
        assert stats.steps_restored == min(ticks, STEPS)
        assert stats.steps_computed == (STEPS - min(ticks, STEPS)) * branches


def test_a_signal_while_a_window_is_decoded_saves_the_rest_of_it(
    load_by_parts: Callable[[], Engine], undisturbed: Keeper, tmp_path: Path
) -> None:
    """Rows that are on their way to the decoder may be lost; the others are not, and those that
    it delivers in time are delivered once."""
    many = [request(100 + i, num_steps=1, prompt="a blue ring") for i in range(12)]
    keeper = Keeper()
    spy_on(engine := load_by_parts(), keeper)
    report = engine.render(ListSource([*many, *rows()]), keeper, stop=lambda: bool(keeper.frames))
    assert len(keeper.frames) == report.rows_finished == 18
    late = [f"row-{i}" for i in range(100 + DEPTH + 2, 112)] + [row.row_id for row in rows()]
    assert keeper.states.keys() >= set(late) and len(keeper.states) < 18
    second = draw(load_by_parts(), rows(), on_disk(tmp_path, keeper.states))
    assert_equal(second, undisturbed)
    assert {stats.steps_computed for stats in second.stats.values()} == {0}
