"""Image families: each row equals what its diffusers pipeline makes of it alone, to the bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from quick_cases import first_quick
from toy_engine import Case, Keeper, ListSource, draw, spy_on, system
from toy_images import ImageTwin
from toys import TOYS

from batchgen.engine.engine import Engine

COMPARED = tuple(TOYS)  # families

ROWS = 7


@pytest.fixture(scope="module", params=sorted(TOYS))
def case(
    request: pytest.FixtureRequest, one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    toy = TOYS[request.param]
    folder = toy.save(tmp_path_factory.mktemp(request.param), toy.spec())
    spec, kept = toy.spec(str(folder)), Keeper()
    pipeline, rows = ImageTwin(toy, spec), [toy.row(number) for number in range(ROWS)]
    for row in rows:
        kept.latents[row.row_id], kept.frames[row.row_id] = pipeline(row)
    return Case(spec, rows, kept)


@pytest.mark.slow
def test_rows_alone_equal_the_pipeline(case: Case) -> None:
    drawn = draw(case.engine(batch={"token_budget": 1, "max_rows_in_flight": 1}), case.rows)
    case.assert_equal(drawn)
    assert len(drawn.latents) == len(case.rows)
    assert {stats.batch_size_mean for stats in drawn.stats.values()} == {1.0}


@pytest.mark.parametrize("seed", first_quick(range(2), 1))
def test_packs_with_refill_equal_the_pipeline(case: Case, seed: int) -> None:
    """In any order, of any steps, texts and guidances."""
    chance, order = random.Random(seed), [*case.rows]
    chance.shuffle(order)
    batch = {"token_budget": 2000, "max_rows_in_flight": 2 + 3 * seed, "window": 5}
    mode = ("resident", "model")[seed]
    drawn = draw(case.engine(batch=batch, memory={"mode": mode}), order)
    assert len(drawn.latents) == len(order)
    case.assert_equal(drawn)
    drawn.assert_packed()


def test_rows_that_were_stopped_go_on_bit_equal(case: Case) -> None:
    first, again, asked = Keeper(), Keeper(), iter(range(10**6))
    engine = case.engine()
    spy_on(engine, first)
    engine.render(ListSource(case.rows), first, stop=lambda: next(asked) >= 3)
    left = [row for row in case.rows if row.row_id not in first.frames]
    assert first.states and left
    spy_on(engine, again)
    engine.render(ListSource(left, first.states), again)
    for keeper in (first, again):
        case.assert_equal(keeper)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TOYS))
def test_a_wide_model_packs_bit_equal(name: str, one_thread: None) -> None:
    """Width 512: products of other kernels than those of the small model. Alone, blocks stream."""
    toy = TOYS[name]
    streaming = Engine.load(toy.spec(heads=32), system(memory={"mode": "stream"}), "cpu")
    engine = Engine.load(toy.spec(heads=32), system(), "cpu")
    order = [row for row in map(toy.row, range(ROWS)) if row.width == 64]
    together = draw(engine, order)
    together.assert_packed()
    for row in order:
        single = draw(streaming, [row])
        assert torch.equal(together.latents[row.row_id], single.latents[row.row_id]), row
        assert np.array_equal(together.frames[row.row_id], single.frames[row.row_id]), row
