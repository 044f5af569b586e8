"""The row ids and keys of a whole manifest: who is a duplicate, who is an alias of whom."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import SpooledTemporaryFile

import numpy as np
import pyarrow as pa

from batchgen.errors import ManifestError
from batchgen.planning.manifests.problems import Problems, row_place

_IN_MEMORY = 16 * 2**20  # bytes; what is longer is in a file
_STRETCH = 2**18  # rows whose hashes are read at a time
_ENDS = struct.Struct("<qq")
_FULL = 0.75  # of a table of keys: a key is found after two or three looks


class RowIds:
    """Ids of the rows read so far, and a hash of each, in temporary files. In memory are only the
    hashes, 8 bytes a row, while duplicates are looked for."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: for the files; None: where the system has temporary ones."""
        place = None if folder is None else str(folder)
        self._texts = SpooledTemporaryFile(_IN_MEMORY, dir=place)  # noqa: SIM115
        self._hashes = SpooledTemporaryFile(_IN_MEMORY, dir=place)  # noqa: SIM115
        self._batches: list[tuple[int, int]] = []  # its first row, and its place in the file
        self.rows = 0

    def add(self, ids: pa.Array) -> None:
        """Append the ids of the next rows: where each begins and ends in the file, then all."""
        if not len(ids):
            return
        ids = ids.cast(pa.large_string())
        _, offsets, data = ids.buffers()
        ends = np.frombuffer(offsets, np.int64)[ids.offset : ids.offset + len(ids) + 1]
        place = self._texts.seek(0, 2)
        self._texts.write((ends - ends[0] + place + ends.nbytes).tobytes())
        self._texts.write(memoryview(data or b"")[ends[0] : ends[-1]])
        hashes = np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids))
        self._hashes.write(hashes.tobytes())
        self._batches.append((self.rows, place))
        self.rows += len(ids)

    def of(self, row: int) -> str:
        """The id of a row."""
        first, place = self._batches[bisect_right(self._batches, (row, 2**63)) - 1]
        self._texts.seek(place + 8 * (row - first))
        begin, end = _ENDS.unpack(self._texts.read(_ENDS.size))
        self._texts.seek(begin)
        return self._texts.read(end - begin).decode()

    def report_duplicates(
        self, problems: Problems, place: Callable[[int], str] = row_place
    ) -> None:
        """Note every row whose id an earlier row has; `place` names that one."""
        ordered = np.empty(self.rows, np.int64)
        for begin, hashes in self._stretches():
            ordered[begin : begin + len(hashes)] = hashes
        ordered.sort()
        doubled = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if not len(doubled):
            return
        found = [begin + _are_in(hashes, doubled) for begin, hashes in self._stretches()]
        first: dict[str, int] = {}
        rows = np.concatenate(found).tolist()
        repeated = [row for row in rows if first.setdefault(self.of(row), row) != row]
        for row in repeated[: problems.keep]:
            name = self.of(row)
            problems.add(np.array([row]), "row_id", [name], f"{place(first[name])} has it already")
        problems.count += len(repeated[problems.keep :])

    def close(self) -> None:
        """Give the files up."""
        self._texts.close()
        self._hashes.close()

    def _stretches(self) -> Iterator[tuple[int, np.ndarray]]:
        """The hashes of all rows, some at a time, each time with the first row."""
        self._hashes.seek(0)
        for begin in range(0, self.rows, _STRETCH):
            yield begin, np.frombuffer(self._hashes.read(8 * _STRETCH), np.int64)


def _are_in(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Places of the values that are among others."""
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.flatnonzero(ordered[at] == values)


class Aliases:
    """Which rows have the key of an earlier row: those are not rendered again.

    A table of keys, each at the first free place from the one that its bits say: 22 bytes a row.
    96 bits of each key tell a hundred million rows apart with certainty enough (1e-13).
    """

    def __init__(self, rows: int) -> None:
        """`rows`: how many there will be at most. What no key needs of the table is never
        touched, so it takes no memory."""
        self._rows = rows
        self._size = int(rows / _FULL) + 1
        self._high = np.zeros(self._size, np.uint64)
        self._low = np.zeros(self._size, np.uint32)
        self._row = np.zeros(self._size, np.uint32)  # from 1; 0: the place is free
        self.unique = 0  # different keys so far

    def originals(self, first_row: int, digests: Sequence[bytes]) -> np.ndarray:
        """For rows `first_row`, `first_row + 1`, ...: the row that is rendered for each (int64).
        Raises ManifestError if there are more rows than there were to be."""
        if first_row + len(digests) > self._rows:
            raise ManifestError("the manifest has grown while it was read: plan again")
        halves = np.frombuffer(b"".join([digest[:16] for digest in digests]), np.uint64)
        high, low = halves[::2], halves[1::2].astype(np.uint32)
        originals = np.empty(len(high), np.int64)
        place = (high % np.uint64(self._size)).astype(np.int64)
        left = np.arange(len(high))  # rows whose keys are at no place yet
        while len(left):
            at = place[left]
            self._take(at, left, first_row, high, low)
            same = (self._high[at] == high[left]) & (self._low[at] == low[left])
            originals[left[same]] = self._row[at[same]].astype(np.int64) - 1
            left = left[~same]
            place[left] = (place[left] + 1) % self._size
        return originals

    def _take(
        self, at: np.ndarray, rows: np.ndarray, first_row: int, high: np.ndarray, low: np.ndarray
    ) -> None:
        """Give the free ones of places `at` to these rows; of several rows the first has it."""
        free = self._row[at] == 0
        at, rows = at[free], rows[free]
        self._row[at[::-1]] = first_row + 1 + rows[::-1]  # the one that is written last stays
        has = self._row[at] == first_row + 1 + rows
        self._high[at[has]], self._low[at[has]] = high[rows[has]], low[rows[has]]
        self.unique += int(has.sum())
