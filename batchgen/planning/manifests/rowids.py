"""The row ids and keys of a whole manifest: who is a duplicate, who is an alias of whom."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.planning.manifests.problems import Problems, row_place


class RowIds:
    """Ids of the rows read so far, kept as Arrow arrays: about 20 bytes a row."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []
        self._starts: list[int] = []
        self.rows = 0

    def add(self, ids: pa.Array) -> None:
        """Append the ids of the next rows."""
        self._chunks.append(ids)
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
        ids = pa.chunked_array(self._chunks)
        if pc.count_distinct(ids).as_py() == len(ids):
            return
        counts = pc.value_counts(ids)
        doubled = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        rows = np.flatnonzero(pc.is_in(ids, value_set=doubled).to_numpy())
        first: dict[str, int] = {}
        repeated = [row for row in rows.tolist() if first.setdefault(self.of(row), row) != row]
        for row in repeated[: problems.keep]:
            name = self.of(row)
            problems.add(np.array([row]), "row_id", [name], f"{place(first[name])} has it already")
        problems.count += len(repeated[problems.keep :])


class Aliases:
    """Which rows have the key of an earlier row: those are not rendered again."""

    def __init__(self) -> None:
        self._first: dict[bytes, int] = {}

    @property
    def unique(self) -> int:
        """Number of different keys so far."""
        return len(self._first)

    def originals(self, first_row: int, digests: Sequence[bytes]) -> np.ndarray:
        """For rows `first_row`, `first_row + 1`, ...: the row that is rendered for each (int64)."""
        seen = self._first.setdefault
        # Half of a sha256 tells ten million rows apart with certainty enough (1e-24) in half the
        # memory.
        rows = range(first_row, first_row + len(digests))
        originals = [seen(digest[:16], row) for digest, row in zip(digests, rows, strict=True)]
        return np.array(originals, np.int64)
