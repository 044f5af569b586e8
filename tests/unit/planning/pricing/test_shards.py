"""Shards are cut by predicted cost, longest first, and never too small to be worth a start-up."""

from __future__ import annotations

import time

import numpy as np
import pytest

from batchgen.planning.pricing import shards
from batchgen.planning.pricing.shards import GOOD_MULTIPLE, LEAST_MULTIPLE, cut_shards


def loads(costs: np.ndarray, shard: np.ndarray) -> np.ndarray:
    return np.bincount(shard, weights=costs)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_a_given_number_of_shards_is_balanced_by_cost(seed: int, count: int) -> None:
    """Imbalance at most 2 % with a tenfold spread of costs."""
    costs = np.random.default_rng(seed).uniform(1, 10, 5000)
    shard = cut_shards(costs, shards=count, slots=count, start_up_s=20)
    load = loads(costs, shard)
    assert len(load) == count
    assert load.max() / load.mean() <= 1.02


def test_long_rows_are_placed_before_short_ones() -> None:
    """Placed last, the long row would land on a shard that is half full already."""
    costs = np.array([1.0] * 10 + [10.0])
    load = loads(costs, cut_shards(costs, shards=2, slots=2, start_up_s=0))
    assert load.tolist() == [10.0, 10.0]


@pytest.mark.parametrize("count", [64, None])
def test_a_million_rows_are_cut_at_once_and_stay_balanced(count: int | None) -> None:
    costs = np.random.default_rng(1).lognormal(2, 1, 1_000_000)
    started = time.process_time()
    load = loads(costs, cut_shards(costs, shards=count, slots=16, start_up_s=60))
    assert time.process_time() - started < 5
    if count is not None:
        assert load.max() / load.mean() <= 1.001
    else:
        assert np.all(np.diff(load[: len(load) // 2]) <= 1.0)
        assert load.min() >= LEAST_MULTIPLE * 60 - costs.max()


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_sorted_as_a_stable_sort_of_whole_costs_does(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also costs that differ in the last bit alone, equal ones, and none; in several stretches."""
    monkeypatch.setattr(shards, "_STRETCH", 100)
    rng = np.random.default_rng(seed)
    costs = rng.choice(
        [0.0, -0.0, 1.0, np.nextafter(1.0, 2), 2.0**32, *rng.lognormal(2, 1, 90)], 999
    )
    ties = rng.integers(0, 4, 999).astype(np.int32)
    order = shards.longest_first(costs)
    assert order.tolist() == np.argsort(-costs, kind="stable").tolist()
    assert shards.longest_first(costs, ties).tolist() == np.lexsort((ties, -costs)).tolist()
    assert shards.places(order)[order].tolist() == [*range(999)]
    given = cut_shards(costs, shards=None, slots=3, start_up_s=2, order=order)
    assert given.tolist() == cut_shards(costs, shards=None, slots=3, start_up_s=2).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_in_one_shard_and_no_shard_is_empty(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.lognormal(3, 2, rng.integers(1, 3000))
    shard = cut_shards(costs, shards=None, slots=int(rng.integers(1, 20)), start_up_s=10)
    assert shard.shape == costs.shape
    assert sorted(set(shard.tolist())) == list(range(shard.max() + 1))


def test_chosen_shards_are_long_and_shrink_towards_the_end() -> None:
    costs = np.full(20_000, 30.0)
    shard = cut_shards(costs, shards=None, slots=16, start_up_s=60)
    load = loads(costs, shard)
    assert np.all(np.diff(load) <= 30.0 + 1e-9)
    assert load[0] > GOOD_MULTIPLE * 60
    assert load.min() >= LEAST_MULTIPLE * 60 - 30.0


def test_a_short_run_is_not_cut_below_three_start_ups() -> None:
    costs = np.full(10, 6.0)
    assert cut_shards(costs, shards=None, slots=8, start_up_s=30).tolist() == [0] * 10


@pytest.mark.parametrize("shards", [None, 30])
def test_shards_are_numbered_longest_first(shards: int | None) -> None:
    costs = np.random.default_rng(3).lognormal(3, 1.5, 4000)
    load = loads(costs, cut_shards(costs, shards=shards, slots=6, start_up_s=9, ranks=4))
    assert np.all(np.diff(load) <= 0)


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_neighbours_in_cost_go_together_so_that_no_replica_waits(ranks: int) -> None:
    """In every shard as many rows of a kind as replicas, or a multiple."""
    costs = np.random.default_rng(2).permutation(np.repeat([70.0, 40.0, 25.0], 1200))
    shard = cut_shards(costs, shards=None, slots=5, start_up_s=20, ranks=ranks)
    for kind in (70.0, 40.0, 25.0):
        assert np.all(np.bincount(shard[costs == kind]) % ranks == 0)


def test_start_up_and_ranks_scale_together() -> None:
    """Four replicas do in a wall second what one does in four."""
    load = loads(*cut_with_ranks(4)) / 4
    assert load[0] > GOOD_MULTIPLE * 30
    assert load.min() >= LEAST_MULTIPLE * 30 - 20.0


def cut_with_ranks(ranks: int) -> tuple[np.ndarray, np.ndarray]:
    costs = np.full(20_000, 20.0)
    return costs, cut_shards(costs, shards=None, slots=5, start_up_s=30, ranks=ranks)


@pytest.mark.parametrize("most_s", [150.0, 600.0, 3600.0])
def test_no_chosen_shard_takes_longer_than_it_may(most_s: float) -> None:
    """Rows of a block differ little, so a shard is over its share by one row at most."""
    costs = np.random.default_rng(4).uniform(5, 15, 30_000)
    cut = cut_shards(costs, shards=None, slots=4, start_up_s=30, ranks=2, most_s=most_s)
    wall = 30 + loads(costs, cut) / 2
    assert wall.max() <= most_s + 15
    assert wall.max() > 0.8 * most_s
    free = cut_shards(costs, shards=None, slots=4, start_up_s=30, ranks=2)
    assert 30 + loads(costs, free).max() / 2 > 3600


def test_a_bound_below_the_least_shard_goes_first_but_leaves_a_start_up_of_work() -> None:
    costs = np.full(1000, 1.0)
    load = loads(costs, cut_shards(costs, shards=None, slots=2, start_up_s=10, most_s=1))
    assert load.tolist() == [10.0] * 100
    load = loads(costs, cut_shards(costs, shards=None, slots=2, start_up_s=10, most_s=35))
    assert load.max() <= 26


def test_a_row_longer_than_the_bound_has_company_for_as_long_as_it_takes() -> None:
    """Its shard lasts that long anyway: the other replicas work meanwhile."""
    costs = np.append(np.full(4000, 10.0), 2000.0)
    cut = cut_shards(costs, shards=None, slots=4, start_up_s=10, ranks=4, most_s=500)
    wall = loads(costs, cut) / 4
    assert cut[-1] == 0
    assert 1900 < wall[0] < 2100
    assert wall[1:].max() <= 500


def test_very_many_rows_that_cost_nothing_are_cut_too() -> None:
    costs = np.zeros(300_000)
    costs[:9] = 100.0
    shard = cut_shards(costs, shards=3, slots=3, start_up_s=1)
    assert loads(costs, shard).tolist() == [300.0] * 3
    assert np.bincount(shard).min() > 0


def test_the_long_ones_of_very_many_rows_are_in_the_large_shards() -> None:
    """So that the small shards at the end are made of short rows and end together."""
    costs = np.random.default_rng(0).uniform(1, 10, 400_000)
    shard = cut_shards(costs, shards=None, slots=16, start_up_s=60)
    small = shard > 0.8 * shard.max()
    assert costs[small].max() < 6 < 9.9 < costs[shard < 16].max()


def test_few_rows_make_few_shards() -> None:
    assert cut_shards(np.array([1e6]), shards=8, slots=8, start_up_s=1).tolist() == [0]
    assert cut_shards(np.array([]), shards=8, slots=8, start_up_s=1).tolist() == []
    assert set(cut_shards(np.zeros(5), shards=2, slots=2, start_up_s=1).tolist()) == {0, 1}
    assert cut_shards(np.zeros(5), shards=None, slots=2, start_up_s=9).tolist() == [0] * 5
