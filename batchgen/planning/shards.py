"""Shards of a submission: rows cut by predicted cost, not by number."""

from __future__ import annotations

import heapq

import numpy as np

GOOD_MULTIPLE = 20  # a shard should work this many start-ups long where the run is long enough
LEAST_MULTIPLE = 3  # and never less than this many
_ONE_BY_ONE = 100_000  # rows that are placed singly; more would take seconds


def cut_shards(
    costs: np.ndarray, *, shards: int | None, slots: int, start_up_s: float
) -> np.ndarray:
    """Shard number (0-based) of each row.

    `costs`: predicted seconds of the rows wanted. `shards`: how many, or None to choose. `slots`:
    ranks that work at once. `start_up_s`: what a shard costs before its first row.

    With a number given, costs are balanced. Otherwise shards start large and shrink towards the
    end of the run, so that the tail is short: each takes its share of what is left, between
    LEAST_MULTIPLE and as long as GOOD_MULTIPLE start-ups allow. Shard 0 starts first.
    """
    costs = np.asarray(costs, float)
    if len(costs) == 0:
        return np.zeros(0, np.int64)
    if costs.sum() == 0:
        costs = np.ones(len(costs))  # nothing is known: count rows
    order = np.argsort(-costs, kind="stable")
    budgets = _budgets(float(costs.sum()), shards, slots, start_up_s)
    filled = _fill(costs, order, budgets[: len(costs)])
    return np.unique(filled, return_inverse=True)[1]  # a shard that got no row is none


def _budgets(total: float, shards: int | None, slots: int, start_up_s: float) -> np.ndarray:
    """Seconds of work of each shard, largest first."""
    if shards is not None:
        return np.full(max(1, shards), total / max(1, shards))
    least = LEAST_MULTIPLE * start_up_s
    good = GOOD_MULTIPLE * start_up_s
    left, sizes = total, []
    while left > 0:
        share = left / (2 * slots)  # half of what is left, over all slots: guided self-scheduling
        size = max(share, good if left > good * slots else least)
        for _ in range(slots):
            if left <= 0:
                break
            take = left if left - size < least else min(size, left)
            sizes.append(take)
            left -= take
    return np.sort(np.array(sizes))[::-1]


def _fill(costs: np.ndarray, order: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """Rows into shards, longest first. Of very many rows the long ones are dealt out in
    proportion to the budgets, and the short ones then even out what is left, one by one."""
    shard = np.zeros(len(costs), np.int64)
    left = budgets.copy()
    dealt = max(0, len(order) - max(_ONE_BY_ONE, 16 * len(budgets)))
    if dealt:
        bulk = order[:dealt]
        shard[bulk] = _deal(dealt, budgets)
        left -= np.bincount(shard[bulk], weights=costs[bulk], minlength=len(budgets))
    heap = [(-seconds, index) for index, seconds in enumerate(left.tolist())]
    heapq.heapify(heap)
    for row in order[dealt:].tolist():
        seconds, index = heap[0]
        shard[row] = index
        heapq.heapreplace(heap, (seconds + costs[row], index))
    return shard


def _deal(rows: int, budgets: np.ndarray) -> np.ndarray:
    """Shard of each of `rows` sorted rows, so that each shard's share of every stretch of them is
    its share of the budget."""
    ends = np.rint(np.cumsum(budgets) / budgets.sum() * rows).astype(np.int64)
    counts = np.diff(ends, prepend=0)
    within = np.arange(rows) - np.repeat(ends - counts, counts)
    position = (within + 0.5) / np.repeat(counts, counts)
    return np.repeat(np.arange(len(budgets)), counts)[np.argsort(position, kind="stable")]
