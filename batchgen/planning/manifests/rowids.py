"""The row ids and keys of a whole manifest: who is a duplicate, who is an alias of whom."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from batchgen.planning.manifests.problems import Problems, row_place

_PARTS = 16  # of all keys, by their first bits: to merge those of a part takes little memory
_EDGES = np.arange(1, _PARTS, dtype=np.uint64) * np.uint64(2**64 // _PARTS)


class RowIds:
    """Ids of the rows read so far, kept as Arrow arrays: about 20 bytes a row, and 8 for a hash."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []
        self._hashes: list[np.ndarray] = []  # int64
        self._starts: list[int] = []
        self.rows = 0

    def add(self, ids: pa.Array) -> None:
        """Append the ids of the next rows."""
        self._chunks.append(ids)
        self._hashes.append(np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids)))
        self._starts.append(self.rows)
        self.rows += len(ids)

    def of(self, row: int) -> str:
        """The id of a row."""
        chunk = bisect_right(self._starts, row) - 1
        return str(self._chunks[chunk][row - self._starts[chunk]].as_py())

    def report_duplicates(
        self, problems: Problems, place: Callable[[int], str] = row_place
    ) -> None:
        """Note every row whose id an earlier row has; `place` names that one."""
        ordered = np.concatenate([*self._hashes, np.zeros(0, np.int64)])
        ordered.sort()
        doubled = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(doubled):
            return
        found = [_are_in(part, doubled) for part in self._hashes]
        rows = np.flatnonzero(np.concatenate(found))
        first: dict[str, int] = {}
        repeated = [row for row in rows.tolist() if first.setdefault(self.of(row), row) != row]
        for row in repeated[: problems.keep]:
            name = self.of(row)
            problems.add(np.array([row]), "row_id", [name], f"{place(first[name])} has it already")
        problems.count += len(repeated[problems.keep :])


def _are_in(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """As np.isin, which would sort the second again for each part of the first."""
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    found: np.ndarray = ordered[at] == values
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Keys, sorted by their first half, each with the first row that has it."""

    high: np.ndarray  # uint64
    low: np.ndarray  # uint64
    row: np.ndarray  # int64

    def find(self, high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of some keys, and whether they are there."""
        at = np.minimum(np.searchsorted(self.high, high), len(self.high) - 1)
        return at, (self.high[at] == high) & (self.low[at] == low)

    def at(self, chosen: slice | np.ndarray) -> _Run:
        """Some of them."""
        return _Run(self.high[chosen], self.low[chosen], self.row[chosen])

    def merged(self, other: _Run) -> _Run:
        """Both as one."""
        high = np.concatenate([self.high, other.high])
        order = np.argsort(high, kind="stable")
        low = np.concatenate([self.low, other.low])[order]
        return _Run(high[order], low, np.concatenate([self.row, other.row])[order])


class Aliases:
    """Which rows have the key of an earlier row: those are not rendered again.

    24 bytes a row. 128 bits of each key tell a hundred million rows apart with certainty enough
    (1e-22). Two keys that share their first 64 (of so many rows with a chance of 3e-4) might hide
    each other: then a row may be rendered twice.
    """

    def __init__(self) -> None:
        self._parts: list[list[_Run]] = [[] for _ in range(_PARTS)]

    @property
    def unique(self) -> int:
        """Number of different keys so far."""
        return sum(len(run.row) for runs in self._parts for run in runs)

    def originals(self, first_row: int, digests: Sequence[bytes]) -> np.ndarray:
        """For rows `first_row`, `first_row + 1`, ...: the row that is rendered for each (int64)."""
        halves = np.frombuffer(b"".join([digest[:16] for digest in digests]), np.uint64)
        high, low = halves[::2], halves[1::2]
        order = np.lexsort((low, high))  # of equal keys the first row comes first
        high, low = high[order], low[order]
        differs = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        is_first = np.concatenate([np.ones(len(order[:1]), bool), differs])
        originals = np.empty(len(order), np.int64)
        firsts = _Run(high[is_first], low[is_first], first_row + order[is_first])
        edges = [0, *np.searchsorted(firsts.high, _EDGES).tolist(), len(firsts.row)]
        known = [
            _known_or(firsts.at(slice(*ends)), runs)
            for ends, runs in zip(pairwise(edges), self._parts, strict=True)
        ]
        originals[order] = np.concatenate(known)[np.cumsum(is_first) - 1]
        return originals


def _known_or(new: _Run, runs: list[_Run]) -> np.ndarray:
    """The first row with each of these different keys, by now theirs if there was none. `runs`: the
    keys so far, each run at least twice as long as the next."""
    rows, is_new = new.row.copy(), np.ones(len(new.row), bool)
    for run in runs:
        at, found = run.find(new.high, new.low)
        rows[found], is_new[found] = run.row[at[found]], False
    new = new.at(is_new)
    while runs and len(runs[-1].row) < 2 * len(new.row):
        new = runs.pop().merged(new)
    if len(new.row):
        runs.append(new)
    return rows
