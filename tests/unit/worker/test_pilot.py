"""The renderer of a pilot: tables first, then its rows, each once and as without a pilot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_engine import Keeper, ListSource, request, small_spec, system

from batchgen.caches.pilots import PSNR, Pilot
from batchgen.caches.tables import read
from batchgen.engine.clock import Clock
from batchgen.engine.contract import EngineReport
from batchgen.engine.engine import Engine
from batchgen.engine.fitting.calibrate import calibrate
from batchgen.errors import ConfigError
from batchgen.request import Request
from batchgen.worker.pilot import PilotRenderer

STEPS = 5
PILOT = Pilot(
    strategy="planned",
    rows=(0, 1, 2, 3, 4, 5),
    audited=2,
    ratios=(0.4, 0.6),
    sized=False,
    num_steps=STEPS,
    branches=2,
    guidance=(4.0, 4.0),
)


@pytest.fixture(scope="module")
def engine(one_thread: None) -> Engine:
    spec = small_spec("random", prompt_overflow="error")
    return Engine.load(spec, system(), "cpu")


def rows(*others: Request) -> list[Request]:
    changed = {row.row_index: row for row in others}
    return [changed.get(i, request(i, num_steps=STEPS)) for i in PILOT.rows]


def too_long(index: int) -> Request:
    return request(index, num_steps=STEPS, prompt="far too long " * 40)


def draw(
    renderer: PilotRenderer | Engine, asked: list[Request], stop_at: int = 10**6
) -> tuple[Keeper, EngineReport, Clock]:
    keeper, clock, calls = Keeper(), Clock(), iter(range(10**6))
    report = renderer.render(
        ListSource(asked), keeper, stop=lambda: next(calls) >= stop_at, moved=lambda: None,
        clock=clock,
    )  # fmt: skip
    return keeper, report, clock


def pilot(engine: Engine, tmp_path: Path) -> PilotRenderer:
    return PilotRenderer(engine, (PILOT,), "mine", tmp_path / "caches" / "pilot.json")


def test_rows_are_those_of_the_engine_and_tables_are_left(engine: Engine, tmp_path: Path) -> None:
    renderer = pilot(engine, tmp_path)
    keeper, report, clock = draw(renderer, rows())
    bare, _, _ = draw(engine, rows())
    assert keeper.frames.keys() == bare.frames.keys() and report.rows_finished == 6
    for name, frames in keeper.frames.items():
        assert np.array_equal(frames, bare.frames[name]), name
        ours, theirs = keeper.stats[name], bare.stats[name]
        for figure in ("steps_total", "steps_computed", "steps_computed_uncond", "steps_restored"):
            assert getattr(ours, figure) == getattr(theirs, figure)
        assert ours.audit is not None and ours.audit.psnr is None and ours.audit.steps > 0
    entries = read(renderer.out)
    assert [entry.key.computed for entry in entries] == [2, 3]
    for entry in entries:
        assert entry.key.model == "mine" and entry.content["rows"] == 4
        figures = entry.content[PSNR]
        assert figures["rows"] == 2 and figures["worst"] <= figures["p5"] <= figures["mean"]
    told = [clock.close(index) for index in PILOT.rows]
    assert told == pytest.approx([keeper.stats[f"row-{i}"].busy for i in PILOT.rows])
    assert clock.read().open == pytest.approx(0.0, abs=1e-9)
    again, _, _ = draw(renderer, rows()[:1])  # a row that is tried once more
    assert np.array_equal(again.frames["row-0"], bare.frames["row-0"])


def test_rows_to_judge_by_enter_no_fit(engine: Engine, tmp_path: Path) -> None:
    renderer = pilot(engine, tmp_path)
    draw(renderer, rows())
    others = calibrate(engine.replica, rows()[:4], PILOT.ratios, model="mine").entries
    for ours, alone in zip(read(renderer.out), others, strict=True):
        content = {name: value for name, value in ours.content.items() if name != PSNR}
        assert content == json.loads(json.dumps(alone.content))


def test_a_stop_leaves_neither_rows_nor_tables(engine: Engine, tmp_path: Path) -> None:
    renderer = pilot(engine, tmp_path)
    keeper, report, _ = draw(renderer, rows(), stop_at=STEPS)
    assert report.rows_abandoned == 6 and report.rows_finished == 0
    assert keeper.frames == keeper.states == keeper.errors == {} and keeper.started_ids == []
    assert not renderer.out.exists()
    assert draw(renderer, rows())[1].rows_finished == 6


def test_a_pilot_that_left_its_tables_is_not_drawn_again(engine: Engine, tmp_path: Path) -> None:
    renderer = pilot(engine, tmp_path)
    renderer.out.parent.mkdir()
    renderer.out.write_text("[]")
    keeper, _, _ = draw(renderer, rows()[:2])
    assert keeper.frames.keys() == {"row-0", "row-1"} and renderer.out.read_text() == "[]"
    assert keeper.stats["row-0"].audit is None


def test_a_row_that_cannot_be_encoded_fails_alone(engine: Engine, tmp_path: Path) -> None:
    renderer = pilot(engine, tmp_path)
    keeper, _, _ = draw(renderer, rows(too_long(1)))
    assert keeper.errors.keys() == {"row-1"} and len(keeper.frames) == 5
    assert [entry.content["rows"] for entry in read(renderer.out)] == [4, 4]


def test_too_few_rows_are_an_error_and_leave_nothing(engine: Engine, tmp_path: Path) -> None:
    renderer = pilot(engine, tmp_path)
    with pytest.raises(ConfigError, match="needs 4 rows; 3 can be drawn"):
        draw(renderer, rows(*map(too_long, range(3))))
    assert not renderer.out.exists()
    assert draw(renderer, [])[1] == EngineReport()


def test_rows_that_are_measured_are_those_of_the_engine(engine: Engine, tmp_path: Path) -> None:
    first = replace(PILOT, strategy="first_block", rows=PILOT.rows[:4], audited=0, layers=2)
    others = replace(first, strategy="magcache", rows=PILOT.rows[2:])
    renderer = PilotRenderer(engine, (first, others), "mine", tmp_path / "caches" / "pilot.json")
    keeper, _, clock = draw(renderer, rows())
    bare, _, _ = draw(engine, rows())
    for name, frames in keeper.frames.items():
        assert np.array_equal(frames, bare.frames[name]), name
        assert keeper.stats[name].steps_computed == bare.stats[name].steps_computed
    probed, not_probed = (keeper.stats[name].audit for name in ("row-0", "row-5"))
    assert probed is not None and probed.steps == first.fits / 4 == STEPS
    assert not_probed is not None and not_probed.steps == others.fits == 0
    entries = read(renderer.out)
    assert [entry.key.strategy for entry in entries] == ["first_block", "magcache"]
    told = rows()[0]
    for key in (entry.key for entry in entries):
        assert (key.model, key.solver, key.num_steps) == ("mine", told.solver, STEPS)
        assert (key.sigma_shift, key.branches, key.bucket) == (told.sigma_shift, 2, None)
    took = [clock.close(index) for index in PILOT.rows]
    assert took == pytest.approx([keeper.stats[f"row-{i}"].busy for i in PILOT.rows])
