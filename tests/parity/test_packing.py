"""Nothing of a row depends on who shares its forwards."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from quick_cases import first_quick
from toy_engine import Keeper, draw, request, small_spec, system

from batchgen.engine.engine import Engine
from batchgen.families.family import Item
from batchgen.request import Request

SOLVERS = ("unipc", "euler", "dpm++")
GUIDANCES = (4.0, 1.0, 7.5, 2.0)
SHAPES = ((64, 32, 5), (64, 48, 5), (64, 64, 1))  # 16 tokens, 24, 16: kernels agree from there on


def rows() -> list[Request]:
    """18 rows of mixed steps, guidances, solvers and buckets."""
    return [
        request(
            i,
            num_steps=2 + i * 5 % 7,
            guidance_scale=GUIDANCES[i % 4],
            solver=SOLVERS[i % 3],
            width=SHAPES[i // 3 % 3][0],
            height=SHAPES[i // 3 % 3][1],
            num_frames=SHAPES[i // 3 % 3][2],
            prompt=f"text {i % 5}",
        )
        for i in range(18)
    ]


def assert_same(drawn: Keeper, alone: Keeper, names: list[str]) -> None:
    for name in names:
        assert torch.equal(drawn.latents[name], alone.latents[name]), name
        assert np.array_equal(drawn.frames[name], alone.frames[name]), name


@pytest.fixture(scope="module")
def alone(small_folder: Path) -> Keeper:
    """Every row with the engine to itself, one item per forward."""
    engine = Engine.load(
        small_spec(str(small_folder)),
        system(batch={"token_budget": 1, "max_rows_in_flight": 1}),
        "cpu",
    )
    kept = Keeper()
    for row in rows():
        single = draw(engine, [row])
        kept.frames |= single.frames
        kept.latents |= single.latents
        assert single.stats[row.row_id].batch_size_mean == 1.0
    return kept


@pytest.mark.parametrize("seed", first_quick(range(6), 2))
def test_random_packs_and_orders_equal_each_row_alone(
    small_folder: Path, alone: Keeper, seed: int
) -> None:
    """Rows join as others finish, in any order, in packs of any size."""
    chance = random.Random(seed)
    order = rows()
    chance.shuffle(order)
    batch = {
        "token_budget": chance.choice([16, 48, 100, 400]),
        "max_rows_in_flight": chance.randint(2, 9),
        "window": chance.randint(1, 18),
    }
    engine = Engine.load(small_spec(str(small_folder)), system(batch=batch), "cpu")
    drawn = draw(engine, order)
    assert len(drawn.frames) == 18
    assert_same(drawn, alone, [row.row_id for row in order])
    drawn.assert_packed()


def test_where_a_forward_depends_on_its_items_rows_go_one_by_one(
    small_folder: Path, alone: Keeper
) -> None:
    """As on a device whose kernels differ by the size of the pack: the self-test sees it."""
    engine = Engine.load(small_spec(str(small_folder)), system(), "cpu")
    forward = engine.family.forward

    def depending(items: list[Item]) -> list[torch.Tensor]:
        return [velocity * (1 + 1e-6 * (len(items) - 1)) for velocity in forward(items)]

    engine.family.forward = depending  # type: ignore[method-assign]
    drawn = draw(engine, rows())
    assert drawn.report.self_test == "failed"
    assert {stats.batch_size_mean for stats in drawn.stats.values()} == {1.0}
    assert_same(drawn, alone, list(alone.latents))


def test_throughput_mode_stays_within_tolerance(small_folder: Path, alone: Keeper) -> None:
    engine = Engine.load(small_spec(str(small_folder)), system(determinism="throughput"), "cpu")
    drawn = draw(engine, rows())
    for name, latents in alone.latents.items():
        assert (drawn.latents[name] - latents).abs().max() <= 1e-5
        assert drawn.stats[name].determinism == "throughput"


def test_failed_rows_leave_no_trace_in_their_mates(small_folder: Path, alone: Keeper) -> None:
    """A row of NaN and one that raises in the transformer fail; rows with them and after them
    are what they are alone."""
    bad = [
        request(90, guidance_scale=1e38, num_steps=4),
        # 65 patches in a row: beyond the transformer's 64 positions
        request(91, width=16 * 65, height=16, num_frames=1),
    ]
    good = rows()[:6]
    engine = Engine.load(small_spec(str(small_folder)), system(), "cpu")
    drawn = draw(engine, [good[0], *bad, *good[1:5]])
    assert set(drawn.errors) == {"row-90", "row-91"}
    assert_same(drawn, alone, [row.row_id for row in good[:5]])
    again = draw(engine, [good[5], replace(good[0], row_id="twin")])
    assert_same(again, alone, [good[5].row_id])
    assert torch.equal(again.latents["twin"], alone.latents[good[0].row_id])


def test_the_serial_twin_gives_equal_frames(small_folder: Path, alone: Keeper) -> None:
    engine = Engine.load(small_spec(str(small_folder)), system(), "cpu", overlap=False)
    drawn = draw(engine, rows())
    assert_same(drawn, alone, list(alone.latents))
    assert drawn.threads == {"MainThread"}


def test_one_component_at_a_time_gives_equal_frames(small_folder: Path, alone: Keeper) -> None:
    """Memory mode `model` works window by window; each component moves in once per window."""
    config = system(memory={"mode": "model"}, batch={"window": 6})
    engine = Engine.load(small_spec(str(small_folder)), config, "cpu")
    drawn = draw(engine, rows())
    assert_same(drawn, alone, list(alone.latents))
