"""Fits of the planned strategy on real, small models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_engine import draw, request, small_spec, system, tiny_wan_spec, two_experts

from batchgen.caches.strategies import planned
from batchgen.caches.strategy import Row
from batchgen.caches.tables import Entry, Tables, store
from batchgen.engine.calibrate import calibrate, products
from batchgen.engine.engine import Engine
from batchgen.engine.lockstep import Lockstep
from batchgen.errors import ConfigError, PromptTooLong
from batchgen.numerics.solver import History, Schedule, leap, leaps, over, step
from batchgen.request import Request

STEPS = 12


@pytest.fixture(scope="module")
def engine(small_folder: Path) -> Engine:
    return Engine.load(small_spec(str(small_folder)), system(), "cpu")


@pytest.fixture(scope="module")
def pair(two_expert_folder: Path) -> Engine:
    """Of two experts."""
    spec = two_experts(tiny_wan_spec(), weights=str(two_expert_folder))
    return Engine.load(spec, system(), "cpu")


def spread(count: int, first: int = 0, **changes: object) -> list[Request]:
    values = {"num_steps": STEPS} | changes
    return [request(first + i, **values) for i in range(count)]


def play(engine: Engine, requests: Sequence[Request], thin: Schedule) -> list[Tensor]:
    """Denoise the rows through a schedule."""
    rows = Lockstep(engine.replica, requests, guided=False)
    found = []
    for row in range(len(rows)):
        x, history = rows.noise(row), History()
        for number in range(len(thin)):
            time = float(thin.timesteps[number])
            place = rows.times.index(time)
            (velocities,) = rows.velocities([row], [x], place)
            guided = rows.combine(row, place, velocities)
            if not thin.leaps:
                x, history = step(thin.coefs[number], x, guided, history)
                continue
            coefs = thin.leaps[number]
            given = velocities if coefs.branches == len(velocities) else [guided]
            x, history = leap(coefs, x, given, history)
        found.append(x)
    return found


def fitted(engine: Engine, one: Request, entry: Entry, ratio: float) -> Schedule:
    whole = engine.family.schedule(one)
    row = Row(
        ratio=ratio,
        warmup=0,
        cooldown=0,
        params={},
        sigmas=tuple(whole.sigmas.tolist()),
        starts=tuple(entry.content["starts"]),
    )
    path = planned.path(row, entry.content)
    assert path.leaps
    return leaps(whole, path.steps, path.leaps)


def far(these: Sequence[Tensor], those: Sequence[Tensor]) -> float:
    return float(np.mean([(a - b).square().mean() for a, b in zip(these, those, strict=True)]))


@torch.no_grad()
def test_other_rows_end_nearer_than_with_fewer_steps(engine: Engine, tmp_path: Path) -> None:
    made = calibrate(engine.replica, spread(6), [0.0, 0.5, 0.5], model="small")
    (entry,) = made.entries
    assert entry.key.computed == STEPS // 2 == len(entry.content["steps"])
    store(tmp_path, made.entries)
    (stored,) = Tables(tmp_path).entries
    assert stored.digest == entry.digest
    others = spread(3, first=50)
    exact = play(engine, others, engine.family.schedule(others[0]))
    ours = play(engine, others, fitted(engine, others[0], stored, 0.5))
    whole = engine.family.schedule(others[0])
    unfitted = play(engine, others, over(whole, tuple(stored.content["steps"])))
    fewer = [replace(row, num_steps=STEPS // 2) for row in others]
    twin = play(engine, fewer, engine.family.schedule(fewer[0]))
    assert far(ours, exact) < 0.8 * far(unfitted, exact)
    assert far(ours, exact) < 0.2 * far(twin, exact)


def test_the_rows_of_a_pilot_are_drawn_as_any_others(engine: Engine) -> None:
    rows = spread(3)
    made = calibrate(engine.replica, rows, [0.5], model="small")
    drawn = draw(engine, rows)
    for row, latents in zip(rows, made.latents, strict=True):
        assert torch.equal(latents, drawn.latents[row.row_id])


def test_rows_of_one_guidance_are_fitted_for_it_by_branch(engine: Engine) -> None:
    (entry,) = calibrate(engine.replica, spread(3), [0.5], model="small").entries
    assert (entry.key.guidance_scale, entry.key.guidance_scale_2) == (4.0, 4.0)
    assert entry.key.guidance_range is None and entry.key.bucket is None
    assert entry.content["branches"] == 2
    depths = [(len(states), len(ages), len(ages[0])) for states, ages in entry.content["leaps"]]
    assert depths == [(1, 1, 2), (2, 2, 2), *4 * [(3, 3, 2)]]


def test_rows_of_many_guidances_are_fitted_for_all_between(engine: Engine) -> None:
    rows = [replace(row, guidance_scale=2.0 + i) for i, row in enumerate(spread(4))]
    (entry,) = calibrate(engine.replica, rows, [0.5], model="small", sized=True).entries
    assert (entry.key.guidance_scale, entry.key.guidance_range) == (None, (2.0, 5.0))
    assert entry.content["branches"] == 1 and entry.key.bucket == "32x32x5"


def test_rows_without_guidance_have_one_branch(engine: Engine) -> None:
    rows = spread(2, guidance_scale=1.0)
    (entry,) = calibrate(engine.replica, rows, [0.5], model="small").entries
    assert entry.key.guidance_scale == 1.0 and entry.content["branches"] == 1


def test_a_fit_begins_anew_with_each_expert(pair: Engine) -> None:
    rows = spread(2, sigma_shift=5.0, width=64, height=32)
    experts = [
        pair.family.expert(rows[0], float(t)) for t in pair.family.schedule(rows[0]).timesteps
    ]
    start = experts.index("transformer_2")
    assert 0 < start < STEPS
    (entry,) = calibrate(pair.replica, rows, [0.5], model="pair").entries
    assert entry.content["starts"] == [0, start] and start in entry.content["steps"]
    place = entry.content["steps"].index(start)
    depths = [len(states) for states, _ in entry.content["leaps"]]
    assert depths[0] == depths[place] == 1
    assert max(depths[place + 1 : place + 2], default=2) == 2


def test_rows_that_differ_in_their_schedule_are_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="calibrated together share solver, sigma_shift"):
        calibrate(engine.replica, [*spread(1), *spread(1, num_steps=8)], [0.5], model="small")


def test_a_row_that_cannot_be_drawn_says_why(small_folder: Path) -> None:
    spec = small_spec(str(small_folder), prompt_overflow="error")
    engine = Engine.load(spec, system(), "cpu")
    with pytest.raises(PromptTooLong):
        calibrate(engine.replica, spread(2, prompt="long " * 50), [0.5], model="small")


def test_products_do_not_depend_on_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = list(torch.randn(4, 1, 3, 50, generator=torch.Generator().manual_seed(0)))
    whole = products(tensors)
    monkeypatch.setattr("batchgen.engine.calibrate.CHUNK", 64)
    assert np.allclose(products(tensors), whole, rtol=1e-12)
    assert np.isclose(whole[1, 2], float((tensors[1] * tensors[2]).double().mean()))
