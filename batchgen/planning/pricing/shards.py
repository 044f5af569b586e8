"""Shards of a submission: rows cut by predicted cost, not by number."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import numpy as np

GOOD_MULTIPLE = 20  # a shard should work this many start-ups long where the run is long enough
LEAST_MULTIPLE = 3  # and never less than this many
# A shard is this part of what is left for its slot, so that a slot at half speed, or a little less,
# has done its own before the others run out of shards.
_PART = 1 / 2.5
_ONE_BY_ONE = 100_000  # blocks of rows that are placed singly; more would take seconds
_PARTS = 32  # in which the others are dealt out
_STRETCH = 2**18  # rows that are looked at at once
_HALF, _PLACE = np.uint64(32), np.uint64(2**32 - 1)


def cut_shards(
    costs: np.ndarray,
    *,
    shards: int | None,
    slots: int,
    start_up_s: float,
    ranks: int = 1,
    most_s: float | None = None,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """Shard number (0-based, int32) of each row; shard 0 is the longest and starts first.

    `costs`: predicted seconds of each wanted row on a replica. `shards`: how many, or None to
    choose. `slots`: node groups that are at work at once, on a shard each; `ranks`: replicas of
    one that pull the shard's rows, longest first. `start_up_s`: wall seconds before the first row.
    `most_s`: wall seconds that a chosen shard may take, its start-up counted; this goes before the
    other rules, but a shard may work for one start-up, and no row is cut. `order`: the rows as
    `longest_first` has them, if they are sorted already.

    With a number given, costs are balanced. Otherwise shards start large and shrink towards the
    end of the run, so that the tail is short: each takes its part of what is left, as long as
    GOOD_MULTIPLE start-ups allow, and then LEAST_MULTIPLE. `batchgen bench schedule` shows what
    comes of it.
    """
    costs = np.asarray(costs, float)
    if len(costs) == 0:
        return np.zeros(0, np.int32)
    if costs.sum() == 0:
        costs = np.ones(len(costs))  # nothing is known: count rows
    order = longest_first(costs) if order is None else order
    # Rows of about the same cost, one for each replica: they end together, so none waits. A given
    # number is balanced as closely as rows allow.
    block = ranks if shards is None else 1
    if shards is None:
        blocks = -(-len(costs) // block)
        longest = costs[order[: slots * block : block]]
        left = costs.sum() / ranks
        budgets = ranks * _sizes(longest, blocks, left, slots, start_up_s, most_s)
    else:
        budgets = np.full(min(max(1, shards), len(costs)), costs.sum() / max(1, shards))
    placed = _fill(costs, order, block, budgets)
    _number_by_work(placed, costs, len(budgets))
    return placed


def longest_first(costs: np.ndarray, ties: np.ndarray | None = None) -> np.ndarray:
    """Places of `costs` (seconds, none negative) from the highest to the lowest, uint32. Of equal
    ones the lower of `ties` (int32) comes first, then the place.

    The same as a stable argsort of -costs, in half of its memory: the bits of a cost are sorted by
    as whole numbers, the lower half first, each with its place behind it in one uint64.
    """
    order: np.ndarray | None = None
    if ties is not None:
        order = _sorted_by(lambda rows: ties[rows].astype(np.uint64), len(ties), order)
    for shift in (_HALF, np.uint64(0)):  # that brings a half to the upper end
        order = _sorted_by(partial(_falling, costs, shift), len(costs), order)
    assert order is not None
    return order


def places(order: np.ndarray) -> np.ndarray:
    """Of each row its place (int32) in an order of rows."""
    found = np.empty(len(order), np.int32)
    for part in _stretches(len(order)):
        found[order[part]] = np.arange(part.start, part.stop)
    return found


def _falling(costs: np.ndarray, shift: np.uint64, rows: slice | np.ndarray) -> np.ndarray:
    """Half of the bits of some costs, so that a lower number is a higher cost."""
    bits = (costs[rows] + 0.0).view(np.uint64)  # of -0.0 those of 0.0
    return (~bits << shift) >> _HALF


def _sorted_by(
    number: Callable[[slice | np.ndarray], np.ndarray], rows: int, order: np.ndarray | None
) -> np.ndarray:
    """`order` (None: as they stand) sorted by a 32-bit number of each row; of equal ones it
    stays."""
    packed = np.empty(rows, np.uint64)
    for part in _stretches(rows):
        place = np.arange(part.start, part.stop, dtype=np.uint64)
        packed[part] = number(part if order is None else order[part]) << _HALF | place
    packed.sort()
    found = np.empty(rows, np.uint32)
    for part in _stretches(rows):
        place = packed[part] & _PLACE
        found[part] = place if order is None else order[place]
    return found


def _stretches(rows: int) -> Iterator[slice]:
    """All rows in stretches, so that what is only in between takes no memory."""
    for begin in range(0, rows, _STRETCH):
        yield slice(begin, min(rows, begin + _STRETCH))


def _sizes(
    longest: np.ndarray,
    blocks: int,
    left: float,
    slots: int,
    start_up_s: float,
    most_s: float | None,
) -> np.ndarray:
    """Wall seconds of work of each shard, at most one for each block. `longest`: the longest row of
    each of the first blocks, one a slot; `left`: wall seconds of all blocks on one slot."""
    most = np.inf if most_s is None else max(most_s - start_up_s, start_up_s)
    least, good = (min(most, start_up_s * n) for n in (LEAST_MULTIPLE, GOOD_MULTIPLE))
    sizes: list[float] = []
    while left > 0 and len(sizes) < blocks:
        size = max(_PART * left / slots, good if left > good * slots else least)
        size = min(size, most)
        if len(sizes) < slots:  # it lasts as long as its longest row anyway
            size = max(size, float(longest[len(sizes)]))
        if left - size < least:
            size = left if left <= max(size, most) else left / 2
        sizes.append(size)
        left -= size
    return np.sort(np.array(sizes))[::-1]


def _fill(costs: np.ndarray, order: np.ndarray, block: int, budgets: np.ndarray) -> np.ndarray:
    """Shard of each row (int32). Blocks of rows go, longest first, to the one with most of its
    budget left. Of very many blocks the long ones are dealt out in parts, and the short ones then
    even out what is left, one by one."""
    placed = np.empty(len(costs), np.int32)
    left, blocks = budgets.copy(), -(-len(costs) // block)
    dealt = max(0, blocks - max(_ONE_BY_ONE, 16 * len(budgets)))
    for begin, end in pairwise(_edges(dealt, _PARTS)):
        rows = order[begin * block : end * block]
        work = _work(costs[rows], block)
        shard = _deal(len(work), _taken(left, work.sum()))
        left -= np.bincount(shard, weights=work, minlength=len(left))
        placed[rows] = np.repeat(shard, block)[: len(rows)]
    rows = order[dealt * block :]
    heap = [(-seconds, index) for index, seconds in enumerate(left.tolist())]
    heapq.heapify(heap)
    singly = np.empty(blocks - dealt, np.int32)
    for at, cost in enumerate(_work(costs[rows], block).tolist()):
        seconds, index = heap[0]
        singly[at] = index
        heapq.heapreplace(heap, (seconds + cost, index))
    placed[rows] = np.repeat(singly, block)[: len(rows)]
    return placed


def _edges(blocks: int, parts: int) -> list[int]:
    """Where parts of the same length, or one more for the first ones, begin and end."""
    each, more = divmod(blocks, parts)
    edges = [part * each + min(part, more) for part in range(parts + 1)]
    return sorted({*edges}) if blocks else []


def _work(costs: np.ndarray, block: int) -> np.ndarray:
    """Seconds of each block of so many rows; the last may be shorter."""
    sums: np.ndarray = np.add.reduceat(costs, np.arange(0, len(costs), block))
    return sums


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


def _number_by_work(placed: np.ndarray, costs: np.ndarray, shards: int) -> None:
    """Number shards anew, in place, by their work; one without a row is none."""
    work, empty = np.zeros(shards), np.ones(shards, bool)
    for part in _stretches(len(placed)):
        np.add.at(work, placed[part], costs[part])
        empty[placed[part]] = False
    by_work = np.lexsort((-work, empty))
    number = np.empty(shards, np.int32)
    number[by_work] = np.arange(shards)
    for part in _stretches(len(placed)):
        placed[part] = number[placed[part]]
