"""Which rows a pilot draws, what a plan makes of the others, and what a run keeps of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchgen.caches import tables
from batchgen.caches.pilots import DRAWN, FITTED, PSNR, ROWS, Choice, Judged
from batchgen.caches.tables import Entry, Key, Tables, store, user_folder
from batchgen.config.schema import JobConfig
from batchgen.errors import ConfigError, ManifestError
from batchgen.planning.caching import Earlier
from batchgen.planning.plan import Plan, make_plan, read_plan, read_requests
from batchgen.planning.store import drawn_rows, read_pilots
from batchgen.worker.pilot import FITS

MANY = 40
CALIBRATE = {"system__cache__calibrate": True, "row_defaults__num_steps": 11}
FLOOR = {"system__cache__min_psnr_db": 30.0, "row_defaults__num_steps": 11}


@pytest.fixture
def plan_of(
    write_rows: Callable[..., Path], job_over: Callable[..., JobConfig], tmp_path: Path
) -> Callable[..., Plan]:
    """A plan of MANY rows that ask for half of 11 steps, for which nothing is shipped."""

    def plan(
        columns: dict[str, Any] | None = None, earlier: Earlier | None = None, **changes: object
    ) -> Plan:
        columns = {
            "prompt": [f"circle {row}" for row in range(MANY)],
            "cache_ratio": [0.5] * MANY,
            **(columns or {}),
        }
        columns = {name: values for name, values in columns.items() if values is not None}
        job = job_over(write_rows(columns), **(CALIBRATE | changes))
        return make_plan(job, tmp_path / "plan", earlier=earlier or Earlier())

    return plan


def fit(computed: int = 6, **more: Any) -> Entry:
    """A fit for the rows of `plan_of`, whose leaps stay where they are."""
    key = Key(strategy="planned", model="tiny-wan", num_steps=11, computed=computed)
    leap = [[1.0], [[0.0], [0.0]]]
    content = {"steps": list(range(computed)), "starts": [0], "leaps": [leap] * computed}
    return Entry(key=key, content={**content, **more})


# -------------------------------------------------------------------------------------------- rows
def test_a_pilot_takes_some_rows_and_the_same_ones_again(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of()
    (pilot,) = plan.pilots
    assert (pilot.strategy, pilot.ratios, pilot.num_steps, pilot.branches) == (
        "planned", (0.5,), 11, 2,
    )  # fmt: skip
    assert len({*pilot.rows}) == ROWS and pilot.audited == 0 and not pilot.sized
    assert max(pilot.rows) > MANY // 2, "they are from the whole manifest"
    assert (pilot.drawn, pilot.fits) == (ROWS * 22, ROWS * 2 * 6) and pilot.cost_s > 0
    assert drawn_rows(plan.path) == tuple(sorted(pilot.rows))
    assert read_plan(plan.path) == plan and read_pilots(plan.path) == plan.pilots
    assert plan_of().pilots == plan.pilots
    few = plan_of({"cache_ratio": [0.5] * 8 + [None] * 32}).pilots[0].rows
    assert len(few) == 4 and max(few) < 8, "a cache is for the other half"
    assert plan_of(system__cache__calibrate=False).pilots == ()


def test_a_pilots_rows_are_rows_without_a_cache(plan_of: Callable[..., Plan]) -> None:
    rows = read_requests(plan_of().path)
    bare = read_requests(plan_of({"cache_ratio": None}).path)
    for row, plain in zip(rows, bare, strict=True):
        drawn = row.cache_refused == DRAWN
        assert (row.row_key == plain.row_key) == drawn
        assert row.cache_strategy == ("none" if drawn else "planned")
        assert row.steps_expected == (22 if drawn else 12)


def test_where_a_row_is_there_without_a_cache_that_one_is_drawn(
    plan_of: Callable[..., Plan],
) -> None:
    """A manifest that compares: every prompt and seed without a cache and with one."""
    half = MANY // 2
    columns = {
        "prompt": [f"circle {row % half}" for row in range(MANY)],
        "seed": [row % half for row in range(MANY)],
        "cache_ratio": [None] * half + [0.5] * half,
    }
    plan = plan_of(columns)
    (pilot,) = plan.pilots
    assert len({*pilot.rows}) == half // 2 and max(pilot.rows) < half
    rows = read_requests(plan.path)
    drawn = [row.row_index for row in rows if row.cache_refused]
    assert drawn == [row + half for row in sorted(pilot.rows)]
    assert plan.unique_rows == MANY - len(drawn)


def test_a_fit_is_for_rows_of_one_kind(plan_of: Callable[..., Plan]) -> None:
    """Guidances are mixed; numbers of steps and of branches are not. Both ends are drawn."""
    columns = {
        "guidance_scale": [1.0, 2.0, 3.0, 7.5] * (MANY // 4),
        "num_steps": [11] * 24 + [13] * 16,
        "width": [64, 32] * (MANY // 2),
    }
    plan = plan_of(columns, row_defaults__num_steps=None)
    found = {(p.num_steps, p.branches): p for p in plan.pilots}
    assert found.keys() == {(11, 1), (11, 2), (13, 1), (13, 2)}
    mixed = found[11, 2]
    assert mixed.guidance == (2.0, 7.5) and found[11, 1].guidance == (1.0, 1.0)
    scales = [columns["guidance_scale"][row] for row in mixed.rows]
    assert {*scales} == {2.0, 3.0, 7.5}
    assert {columns["width"][row] for row in mixed.rows} == {64, 32}


def test_each_prompt_once_as_long_as_there_are_others(plan_of: Callable[..., Plan]) -> None:
    prompts = ["the same"] * 30 + [f"circle {row}" for row in range(10)]
    (pilot,) = plan_of({"prompt": prompts}).pilots
    assert {prompts[row] for row in pilot.rows} == {*prompts}
    seeds = [1] * 30 + [*range(10)]
    (pilot,) = plan_of({"prompt": prompts, "seed": seeds}).pilots
    assert len(pilot.rows) == 11, "an equal row is drawn once"


def test_rows_that_say_which_steps_they_compute_need_no_fit(plan_of: Callable[..., Plan]) -> None:
    assert plan_of({"cache_warmup": [1] * MANY}).pilots == ()
    assert plan_of({"cache_strategy": ["uniform"] * MANY}).pilots == ()
    assert plan_of({"cache_ratio": [0.0] * MANY}).pilots == ()


@pytest.mark.parametrize("asking", [1, 3])
def test_too_few_rows_are_refused(plan_of: Callable[..., Plan], asking: int) -> None:
    columns = {"cache_ratio": [0.5] * asking + [None] * (MANY - asking)}
    with pytest.raises(ConfigError, match=rf"calibrate: {asking} rows ask for planned 0\.5, 11 st"):
        plan_of(columns)
    with pytest.raises(ManifestError, match="row 1, cache_ratio = 3"):
        plan_of({"cache_ratio": [0.5, 3.0] + [None] * (MANY - 2)})


def test_a_few_rows_that_no_fit_is_made_for_go_on_without(plan_of: Callable[..., Plan]) -> None:
    """Beside others that get one, or have one already."""
    few = {"num_steps": [12] * 3 + [11] * (MANY - 3)}
    (pilot,) = plan_of(few, row_defaults__num_steps=None).pilots
    assert pilot.num_steps == 11 and min(pilot.rows) >= 3
    store(user_folder(), [fit()])
    again = plan_of(few, row_defaults__num_steps=None)
    assert again.pilots == () and [c.fitted for c in again.caches] == [MANY - 3, 0]


@pytest.mark.parametrize("name", ["teacache", "seacache"])
def test_what_a_model_shows_is_measured_for_rows_that_ask(
    plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """Once for all ratios, and for guided and other rows apart; nobody judges it."""
    monkeypatch.setattr(tables, "SHIPPED", tmp_path / "nothing")
    columns = {
        "cache_strategy": [name] * MANY,
        "cache_ratio": [0.3, 0.5] * (MANY // 2),
        "guidance_scale": [1.0] * 10 + [3.0] * 30,
    }
    both = plan_of(columns, **FLOOR).pilots
    assert [(p.strategy, p.branches, len(p.rows), p.audited) for p in both] == [
        (name, 1, 5, 0), (name, 2, 15, 0),
    ]  # fmt: skip
    assert {p.ratios for p in both} == {(0.3, 0.5)} and {p.fits for p in both} == {0}
    own = {"cache_params": ['{"threshold": 0.1}'] * MANY}
    assert len(plan_of(columns | own).pilots) == 2 * (name == "teacache"), "its own threshold"
    key = Key(strategy=name, model="tiny-wan", num_steps=11, branches=2)
    store(user_folder(), [Entry(key=key, content={})])
    (pilot,) = plan_of(columns).pilots
    assert pilot.branches == 1


def test_every_strategy_that_a_pilot_may_fit_is_fitted_by_a_worker() -> None:
    assert {*FITTED} == {*FITS}


# ----------------------------------------------------------------------------------- a run's tables
def test_where_there_is_a_fit_there_is_no_pilot(plan_of: Callable[..., Plan]) -> None:
    entry = fit()
    store(user_folder(), [entry])
    plan = plan_of()
    assert plan.pilots == () and plan.cache_tables == (entry.digest,)
    assert {row.cache_table for row in read_requests(plan.path)} == {entry.digest}


def test_a_run_keeps_its_own_tables_and_its_pilots_rows(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    mine, later = fit(), fit(latents_db=[50.0, 40.0])
    store(tmp_path / "run", [mine])
    near = replace(later, key=replace(later.key, guidance_scale=3.0, solver="unipc"))
    store(user_folder(), [near])
    earlier = Earlier(Tables(tmp_path / "run"), (1, 5), fitted=True)
    rows = read_requests(plan_of(earlier=earlier).path)
    assert [row.row_index for row in rows if row.cache_refused] == [1, 5]
    assert {row.cache_table for row in rows} == {mine.digest, ""}
    assert {row.cache_table for row in read_requests(plan_of().path)} == {near.digest}


def test_after_its_pilot_a_run_goes_on_without_what_could_not_be_fitted(
    plan_of: Callable[..., Plan],
) -> None:
    plan = plan_of(earlier=Earlier(None, (0,), fitted=True))
    rows = read_requests(plan.path)
    assert plan.pilots == () and {row.cache_table for row in rows} == {""}
    assert [row.cache_strategy for row in rows] == ["none"] + ["planned"] * (MANY - 1)


# ----------------------------------------------------------------------------------------- min_psnr
def judged(p5: float, computed: int) -> Entry:
    return fit(computed, **{PSNR: {"rows": 8, "p5": p5, "mean": p5 + 5, "worst": p5 - 1}})


def test_the_largest_ratio_above_the_floor_is_taken(plan_of: Callable[..., Plan]) -> None:
    """11 steps: 0.2 and 0.8 compute 9 and 2. A worse fit of a smaller ratio changes nothing."""
    plain = fit(6)  # what nobody has judged does not count
    by_p5 = [judged(45.0, 9), judged(29.9, 8), judged(31.0, 7), judged(29.9, 6), plain]
    store(user_folder(), by_p5)
    columns = {"cache_ratio": [None] * 39 + [0.5], "cache_strategy": ["planned"] * MANY}
    plan = plan_of(columns, **FLOOR, system__cache__calibrate=False)
    assert plan.pilots == ()
    (choice,) = plan.choices
    assert choice.ratio == 0.4 and [j.ratio for j in choice.judged] == [0.2, 0.3, 0.4, 0.5]
    assert choice.judged[2] == Judged(0.4, 8, 31.0, 36.0, 30.0)
    *chosen, own = read_requests(plan.path)
    assert {row.cache_ratio for row in chosen} == {0.4} and own.cache_ratio == 0.5
    assert {row.cache_table for row in chosen} == {by_p5[2].digest}
    assert read_plan(plan.path) == plan


def test_no_ratio_is_good_enough(plan_of: Callable[..., Plan]) -> None:
    store(user_folder(), [judged(29.0, 9)])
    columns = {"cache_ratio": None, "cache_strategy": ["planned"] * MANY}
    plan = plan_of(columns, **FLOOR)
    rows = read_requests(plan.path)
    assert {(row.cache_strategy, row.cache_refused) for row in rows} == {("none", "planned")}
    assert plan.choices[0].ratio == 0 and plan.cache_refused == {"planned": MANY}
    bare = read_requests(plan_of({"cache_ratio": None}, row_defaults__num_steps=11).path)
    assert [row.row_key for row in rows] == [row.row_key for row in bare]


def test_a_pilot_that_judges_draws_further_rows(plan_of: Callable[..., Plan]) -> None:
    columns = {"cache_ratio": None, "cache_strategy": ["planned"] * MANY}
    (pilot,) = plan_of(columns, **FLOOR).pilots
    assert (len(pilot.rows), pilot.audited) == (20, 6), "half of them, a third to judge by"
    assert pilot.ratios == (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    uniform = {"cache_ratio": None, "cache_strategy": ["uniform"] * MANY}
    with pytest.raises(ManifestError, match="min_psnr_db chooses the ratio of planned alone"):
        plan_of(uniform, **FLOOR)
    assert plan_of({"cache_strategy": ["uniform"] * MANY}, **FLOOR).pilots == ()


def test_a_floor_that_has_no_ratio_to_choose_is_refused(plan_of: Callable[..., Plan]) -> None:
    """It would be no floor at all; one that is given with it would go unused."""
    nobody = {"cache_ratio": None, "cache_strategy": [None, "off"] * (MANY // 2)}
    told = r"^system\.cache\.min_psnr_db: 30: no row .*; row_defaults\.cache=planned asks for all"
    with pytest.raises(ConfigError, match=told):
        plan_of(nobody, **FLOOR)
    everyone = {"cache_strategy": ["planned"] * MANY, "cache_ratio": None}
    with pytest.raises(ConfigError, match=r"^row_defaults\.cache_ratio: 0\.4: .*min_psnr_db=30 ch"):
        plan_of(everyone, **FLOOR, row_defaults__cache_ratio=0.4)
    ignoring = {"system__cache__enabled": False, "system__cache__on_refused": "ignore"}
    assert plan_of(everyone, **FLOOR, **ignoring).cache_refused == {"planned": MANY}


def test_a_choice_is_by_p5() -> None:
    by = [Judged(0.2, 8, 35.0, 40.0, 20.0), Judged(0.5, 8, 29.0, 60.0, 28.0)]
    assert Choice.among(20, 3.0, 30.0, by).ratio == 0.2
    assert Choice.among(20, 3.0, 36.0, by).ratio == 0.0
    assert Choice.among(20, 3.0, 36.0, ()).ratio == 0.0
