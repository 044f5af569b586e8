"""Shards of a submission: rows cut by predicted cost, not by number."""

from __future__ import annotations

import heapq

import numpy as np

GOOD_MULTIPLE = 20  # a shard should work this many start-ups long where the run is long enough
LEAST_MULTIPLE = 3  # and never less than this many
# A shard is this part of what is left for its slot, so that a slot at half speed, or a little less,
# has done its own before the others run out of shards.
_PART = 1 / 2.5
_ONE_BY_ONE = 100_000  # blocks of rows that are placed singly; more would take seconds
_STRETCHES = 32  # steps in which the others are dealt out


def cut_shards(
    costs: np.ndarray,
    *,
    shards: int | None,
    slots: int,
    start_up_s: float,
    ranks: int = 1,
    most_s: float | None = None,
) -> np.ndarray:
    """Shard number (0-based) of each row; shard 0 is the longest and starts first.

    `costs`: predicted seconds of each wanted row on a replica. `shards`: how many, or None to
    choose. `slots`: node groups that are at work at once, on a shard each; `ranks`: replicas of
    one that pull the shard's rows, longest first. `start_up_s`: wall seconds before the first row.
    `most_s`: wall seconds that a chosen shard may take, its start-up counted; this goes before the
    other rules, but a shard may work for one start-up, and no row is cut.

    With a number given, costs are balanced. Otherwise shards start large and shrink towards the
    end of the run, so that the tail is short: each takes its part of what is left, as long as
    GOOD_MULTIPLE start-ups allow, and then LEAST_MULTIPLE. `batchgen bench schedule` shows what
    comes of it.
    """
    costs = np.asarray(costs, float)
    if len(costs) == 0:
        return np.zeros(0, np.int64)
    if costs.sum() == 0:
        costs = np.ones(len(costs))  # nothing is known: count rows
    order = np.argsort(-costs, kind="stable")
    # Rows of about the same cost, one for each replica: they end together, so none waits. A given
    # number is balanced as closely as rows allow.
    block = ranks if shards is None else 1
    starts = np.arange(0, len(costs), block)
    if shards is None:
        budgets = ranks * _sizes(
            costs[order[starts]], costs.sum() / ranks, slots, start_up_s, most_s
        )
    else:
        budgets = np.full(min(max(1, shards), len(costs)), costs.sum() / max(1, shards))
    placed = np.empty(len(costs), np.int64)
    filled = _fill(np.add.reduceat(costs[order], starts), budgets)
    placed[order] = np.repeat(filled, block)[: len(costs)]
    return _longest_first(placed, costs)


def _sizes(
    longest: np.ndarray, left: float, slots: int, start_up_s: float, most_s: float | None
) -> np.ndarray:
    """Wall seconds of work of each shard, at most one for each block. `longest`: the longest row of
    each block, longest first; `left`: wall seconds of all of them on one slot."""
    most = np.inf if most_s is None else max(most_s - start_up_s, start_up_s)
    least, good = (min(most, start_up_s * n) for n in (LEAST_MULTIPLE, GOOD_MULTIPLE))
    sizes: list[float] = []
    while left > 0 and len(sizes) < len(longest):
        size = max(_PART * left / slots, good if left > good * slots else least)
        size = min(size, most)
        if len(sizes) < slots:  # it lasts as long as its longest row anyway
            size = max(size, float(longest[len(sizes)]))
        if left - size < least:
            size = left if left <= max(size, most) else left / 2
        sizes.append(size)
        left -= size
    return np.sort(np.array(sizes))[::-1]


def _fill(work: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """Shard of each block (`work`: seconds, longest first): the one with most of its budget left.
    Of very many blocks the long ones are dealt out in stretches, and the short ones then even out
    what is left, one by one."""
    shard = np.zeros(len(work), np.int64)
    left = budgets.copy()
    dealt = max(0, len(work) - max(_ONE_BY_ONE, 16 * len(budgets)))
    for stretch in np.array_split(np.arange(dealt), _STRETCHES) if dealt else ():
        shard[stretch] = _deal(len(stretch), _taken(left, work[stretch].sum()))
        left -= np.bincount(shard[stretch], weights=work[stretch], minlength=len(left))
    heap = [(-seconds, index) for index, seconds in enumerate(left.tolist())]
    heapq.heapify(heap)
    for block, cost in enumerate(work[dealt:].tolist(), dealt):
        seconds, index = heap[0]
        shard[block] = index
        heapq.heapreplace(heap, (seconds + cost, index))
    return shard


def _taken(left: np.ndarray, work: float) -> np.ndarray:
    """How much of `left` goes when `work` seconds are taken from where most is left, so that the
    rest is level there."""
    most_first = np.sort(left)[::-1]
    levels = (np.cumsum(most_first) - work) / np.arange(1, len(left) + 1)
    below = np.append(most_first[1:], -np.inf)
    level = float(levels[np.argmax(levels >= below)])
    taken = (left - level).clip(min=0.0)
    return taken if taken.any() else np.ones(len(left))  # rows that cost nothing go anywhere


def _deal(blocks: int, shares: np.ndarray) -> np.ndarray:
    """Shard of each of `blocks` sorted blocks, so that each shard's part of every stretch of them
    is its part of the shares."""
    ends = np.rint(np.cumsum(shares) / shares.sum() * blocks).astype(np.int64)
    counts = np.diff(ends, prepend=0)
    within = np.arange(blocks) - np.repeat(ends - counts, counts)
    position = (within + 0.5) / np.repeat(counts, counts)
    return np.repeat(np.arange(len(shares)), counts)[np.argsort(position, kind="stable")]


def _longest_first(placed: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Shards numbered anew by their work; one without a row is none."""
    work = np.bincount(placed, weights=costs)
    rows = np.bincount(placed)
    by_work = np.lexsort((-work, rows == 0))
    number = np.empty(len(work), np.int64)
    number[by_work] = np.arange(len(work))
    return np.asarray(number[placed])
