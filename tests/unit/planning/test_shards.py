"""Shards are cut by predicted cost, longest first, and never too small to be worth a start-up."""

from __future__ import annotations

import heapq
import time

import numpy as np
import pytest

from batchgen.planning.shards import GOOD_MULTIPLE, LEAST_MULTIPLE, cut_shards


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
    started = time.monotonic()
    load = loads(costs, cut_shards(costs, shards=count, slots=16, start_up_s=60))
    assert time.monotonic() - started < 5
    if count is not None:
        assert load.max() / load.mean() <= 1.001
    else:
        assert np.all(np.diff(load[: len(load) // 2]) <= 1.0)
        assert load.min() >= LEAST_MULTIPLE * 60 - costs.max()


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


@pytest.mark.parametrize("seed", range(3))
def test_the_simulated_run_ends_close_to_the_ideal_with_one_slow_node(seed: int) -> None:
    costs = np.random.default_rng(seed).uniform(10, 100, 20_000)
    slots, start_up = 16, 20.0
    load = loads(costs, cut_shards(costs, shards=None, slots=slots, start_up_s=start_up))
    speed = np.ones(slots)
    speed[0] = 0.5
    free = [(0.0, node) for node in range(slots)]
    heapq.heapify(free)
    for seconds in load:
        at, node = heapq.heappop(free)
        heapq.heappush(free, (at + start_up + seconds / speed[node], node))
    makespan = max(at for at, _ in free)
    ideal = costs.sum() / speed.sum()
    assert makespan <= 1.10 * ideal


def test_few_rows_make_few_shards() -> None:
    assert cut_shards(np.array([1e6]), shards=8, slots=8, start_up_s=1).tolist() == [0]
    assert cut_shards(np.array([]), shards=8, slots=8, start_up_s=1).tolist() == []
    assert set(cut_shards(np.zeros(5), shards=2, slots=2, start_up_s=1).tolist()) == {0, 1}
    assert cut_shards(np.zeros(5), shards=None, slots=2, start_up_s=9).tolist() == [0] * 5
