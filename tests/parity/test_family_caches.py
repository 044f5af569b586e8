"""Rows of every family under its step caches: packs, stops and blocks that stream change nothing;
and pilots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_families import FAMILIES, Small, alike, fixture_of
from toy_caches import knobs
from toy_engine import Keeper, ListSource, draw, spy_on

from batchgen.caches.pilots import Pilot
from batchgen.caches.strategy import strategy
from batchgen.caches.tables import Tables, read, store
from batchgen.request import Request
from batchgen.worker.pilot import PilotRenderer, _frames

STEPS = 9
ALONE = {"token_budget": 1, "max_rows_in_flight": 1}
PASSABLE = (
    "euler",
    "unipc",
    "ddim",
)  # of the small models' solvers; others draw noise at each step
FAR = '{"threshold":9.0}'  # that no change of a small model reaches


pytestmark = pytest.mark.slow  # of Wan, FLUX.1 and texts of any length others are quick


family = fixture_of(FAMILIES)


def rows(family: Small) -> list[Request]:
    """One of each strategy that takes no fit, of mixed texts, images, guidances and adapters; and
    one without."""
    names = [name for name in family.served.cache_strategies if name not in ("none", "planned")]
    made = []
    for i, name in enumerate((*names, "none")):
        own = knobs(name)
        if i < len(names) and "threshold" in strategy(name).FACTS.params:
            own["cache_params"] = FAR
        saved = {"cache_ratio": 0.5, "cache_warmup": 2} if i < len(names) else {}
        row = alike(family.row(i), num_steps=STEPS, row_key=f"{i}", cache_strategy=name)
        made.append(replace(row, lora=family.loras[i // 2 % len(family.loras)], **saved, **own))
    return made


@pytest.fixture(scope="module")
def alone(family: Small) -> Keeper:
    drawn = draw(family.engine(batch=ALONE), rows(family))
    assert not drawn.errors
    return drawn


def assert_same(drawn: Keeper, alone: Keeper) -> None:
    assert not drawn.errors
    assert drawn.latents
    for name, latents in drawn.latents.items():
        assert torch.equal(latents, alone.latents[name]), name
        assert np.array_equal(drawn.frames[name], alone.frames[name]), name


def test_every_strategy_saves_something_in_packs_as_alone(family: Small, alone: Keeper) -> None:
    drawn = draw(family.engine(), rows(family)[::-1])
    assert len(drawn.latents) == len(alone.latents)
    assert_same(drawn, alone)
    drawn.assert_packed()
    for row in rows(family):
        ours, theirs = (keeper.stats[row.row_id] for keeper in (drawn, alone))
        assert ours.steps_computed == theirs.steps_computed, row.cache_strategy
        saves = row.cache_strategy != "none"
        assert (ours.steps_computed < ours.steps_total) == saves, row.cache_strategy


def test_rows_that_were_stopped_go_on_where_there_is_no_room(family: Small, alone: Keeper) -> None:
    """With what their caches had kept, by blocks that stream."""
    first, again, asked = Keeper(), Keeper(), iter(range(10**6))
    made = family.engine()
    spy_on(made, first)
    made.render(ListSource(rows(family)), first, stop=lambda: next(asked) >= 4)
    assert first.states and not first.frames
    other = family.engine(memory={"vram_limit": 0})
    spy_on(other, again)
    other.render(ListSource(rows(family)[::-1], first.states), again)
    assert len(again.latents) == len(rows(family))
    assert_same(again, alone)
    assert {stats.cache_restarts for stats in again.stats.values()} == {0}


@pytest.mark.parametrize("name", ["planned", "first_block"])
def test_a_pilot_draws_its_rows_as_any_and_its_table_serves_others(
    family: Small, name: str, tmp_path: Path
) -> None:
    if name not in family.served.cache_strategies:
        pytest.skip("not served")
    if name == "planned" and family.row(0).solver not in PASSABLE:
        family = replace(family, row=lambda i, row=family.row: replace(row(i), solver="ddim"))
    asked = [_of_a_pilot(family, i) for i in range(6)]
    engine = family.engine()
    bare = draw(engine, asked)
    branches = int(bare.stats["row-0"].steps_total) // STEPS
    planned = name == "planned"
    pilot = Pilot(
        strategy=name,
        rows=tuple(range(6)),
        audited=2 * planned,
        ratios=(0.5,),
        sized=not family.served.sigma_shift,
        num_steps=STEPS,
        branches=branches,
        guidance=(asked[0].guidance_scale,) * 2,
        layers=1 if planned else 2,
    )
    renderer = PilotRenderer(engine, (pilot,), "mine", tmp_path / "pilot.json")
    keeper = Keeper()
    spy_on(engine, keeper)
    renderer.render(ListSource(asked), keeper, stop=lambda: False, moved=lambda: None, clock=None)
    assert not keeper.errors
    assert keeper.frames.keys() == bare.frames.keys()
    for row, frames in keeper.frames.items():
        assert np.array_equal(frames, bare.frames[row]), row
    judged = _frames(engine.replica, asked[0], bare.latents["row-0"])
    assert np.array_equal(judged, bare.frames["row-0"])
    (entry,) = read(renderer.out)
    assert entry.key.strategy == name
    store(tmp_path / "tables", [entry])
    others = [
        replace(
            _of_a_pilot(family, i),
            cache_strategy=name,
            cache_ratio=0.5,
            cache_warmup=1,
            cache_table=entry.digest,
            row_key=f"{i}",
        )
        for i in range(10, 13)
    ]
    tables = Tables(tmp_path / "tables")
    together = draw(family.engine(tables=tables), others)
    single = draw(family.engine(tables=tables, batch=ALONE), others)
    assert_same(together, single)
    for stats in together.stats.values():
        assert stats.steps_computed < stats.steps_total


def _of_a_pilot(family: Small, number: int) -> Request:
    """Rows of equal settings, with and without adapters."""
    row = alike(family.row(0), num_steps=STEPS, seed=number, row_index=number)
    return replace(row, row_id=f"row-{number}", lora=family.loras[number % len(family.loras)])
