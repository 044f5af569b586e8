"""The planned tables that are shipped for the embedded model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from quick_cases import first_quick
from torch import Tensor

from batchgen.bench.cache.draw import draw
from batchgen.caches.settings import NAMES, Given, resolve
from batchgen.caches.strategies import planned
from batchgen.caches.strategy import Row, computed_count
from batchgen.caches.tables import Entry, row_key, shipped
from batchgen.config.schema import SystemConfig
from batchgen.engine.engine import Engine
from batchgen.engine.fitting.lockstep import Lockstep
from batchgen.numerics.solver import History, Schedule, leap, leaps, step
from batchgen.request import Request
from batchgen.tiny import calibration as made

EVERY = [(setting, ratio) for setting in made.settings() for ratio in made.RATIOS[setting.steps]]


def table(request: Request, ratio: float) -> Entry | None:
    count = computed_count(request.num_steps, ratio)
    return shipped().find(row_key(request, "planned", made.MODEL, count))


def as_row(schedule: Schedule, ratio: float) -> Row:
    sigmas = tuple(schedule.sigmas.tolist())
    return Row(ratio=ratio, warmup=0, cooldown=0, params={}, sigmas=sigmas)


@pytest.mark.parametrize(("setting", "ratio"), EVERY, ids=str)
def test_every_setting_has_a_table(setting: made.Setting, ratio: float) -> None:
    for guidance in [2.2, 4.0] if setting.guidance is None else [setting.guidance]:
        one = replace(setting.rows()[0], guidance_scale=guidance)
        found = table(one, ratio)
        assert found is not None
        assert (found.key.guidance_range is None) == (setting.guidance is not None)
        content = found.content
        assert len(content["steps"]) == len(content["leaps"]) == found.key.computed
        assert content["branches"] == (2 if (setting.guidance or 0) > 1 else 1)
        for states, ages in content["leaps"]:
            assert 0 < sum(states[:1]) < 2  # the newest latents go on as they are, or nearly
            assert all(len(age) == content["branches"] for age in ages)


def test_calibration_rows_are_told_from_others() -> None:
    rows = made.calibration_rows()
    assert len({row.prompt for row in rows}) >= 30
    assert [row.seed for row in rows] == [made.FIRST_SEED + i for i in range(made.MIXED_ROWS)]


def test_shipped_keys_leave_out_what_does_not_tell_rows_apart() -> None:
    """So that a fit serves the sizes that planning knows, and is found again when it is renewed."""
    row = replace(made.calibration_rows()[0], guidance_scale=1.0)
    key = replace(row_key(row, "planned", made.MODEL, 25), bucket=None, pixels=None, num_steps=50)
    fresh = Entry(key=replace(key, pixels_range=(4096.0, 4096.0)), content={})
    assert made.as_shipped(fresh).key in {entry.key for entry in shipped().entries}


def play(engine: Engine, requests: list[Request], thin: Schedule | None = None) -> list[Tensor]:
    """Denoise the rows through a schedule, else through their own."""
    rows = Lockstep(engine.replica, requests, guided=False)
    thin = thin or rows.schedule
    xs, histories = [rows.noise(i) for i in range(len(rows))], [History() for _ in requests]
    for number, time in enumerate(thin.timesteps.tolist()):
        answers = rows.velocities(range(len(rows)), xs, place := rows.times.index(time))
        for i, velocities in enumerate(answers):
            if thin.leaps:
                move = leap(thin.leaps[number], xs[i], velocities, histories[i])
            else:
                guided = rows.combine(i, place, velocities)
                move = step(thin.coefs[number], xs[i], guided, histories[i])
            xs[i], histories[i] = move
    return xs


@torch.no_grad()
def test_a_row_that_no_fit_has_seen_ends_nearer_than_with_fewer_steps(one_thread: None) -> None:
    """By 3 dB in the mean at half of 20 steps."""
    engine = Engine.load(made.preset(), SystemConfig(), "cpu")
    prompts = ("a red circle moving left on a black background", "on navy, the cyan ring grows")
    rows = [
        replace(made.calibration_rows()[0], prompt=prompt, seed=seed)
        for seed, prompt in enumerate(prompts)
    ]
    found = table(rows[0], 0.5)
    assert found is not None
    whole = engine.family.schedule(rows[0])
    path = planned.path(as_row(whole, 0.5), found.content)
    exact = play(engine, rows)
    ours = play(engine, rows, leaps(whole, path.steps, path.leaps))
    fewer = play(engine, [replace(row, num_steps=10) for row in rows])

    def decibels(ends: list[Tensor]) -> float:
        squares = [(a - b).square().mean() for a, b in zip(ends, exact, strict=True)]
        return sum(-10 * math.log10(float(square)) for square in squares) / len(squares)

    assert decibels(ours) > decibels(fewer) + 3


@pytest.mark.parametrize(
    "name", first_quick(["easycache", "teacache", "seacache", "first_block"], 1)
)
def test_what_looks_at_a_row_computes_about_what_its_ratio_asks(
    one_thread: None, name: str
) -> None:
    """At the model's usual number of steps; never more for a larger ratio. How many steps at both
    ends are computed anyway is the strategy's, so that no more than half is asked for."""
    engine, ratios = Engine.load(made.preset(), SystemConfig(), "cpu"), (0.2, 0.35, 0.5)
    shares = []
    for ratio in ratios:
        found = resolve(Given(name, ratio), Given(), 20)
        own = {f"cache_{field}": getattr(found, field) for field in NAMES}
        rows = [replace(row, num_steps=20, **own) for row in made.calibration_rows()[:2]]
        key = row_key(rows[0], name, made.MODEL, branches=2)
        table = shipped().find(key)
        assert table is not None
        rows = [
            replace(row, row_key=row.row_id, cache_table=table.digest, guidance_scale=3.0)
            for row in rows
        ]
        shares.append(draw(engine, rows).share)
    assert shares == sorted(shares, reverse=True)
    for ratio, share in zip(ratios, shares, strict=True):
        assert share == pytest.approx(1 - ratio, abs=0.1), ratio
