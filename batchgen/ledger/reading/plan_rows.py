"""What the ledger needs to know of rows of the plan: all of them, or a band of them at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchgen.ledger.reading.keys import DIGITS, HEX, KEY_TYPE, key_number, numbers_of_digits
from batchgen.ledger.upkeep.pieces import numbers_of
from batchgen.planfile import own_parquet, reading

NOBODY = np.zeros(0, np.int32)
SALTS = 4  # as many times names are told apart by another hash


@dataclass(frozen=True, slots=True, eq=False)
class PlanRows:
    """Rows of the plan from `first` on, in the order of row_index; behind them the `guests`: rows
    of other bands that are rendered for some of these. A row is known by its place among these,
    which is its row_index where all rows of the plan are here."""

    key: np.ndarray  # KEY_TYPE (rows,)
    original: np.ndarray  # int32 (rows,): place of what is rendered for the row; its own, or not
    first: int = 0
    guests: np.ndarray = field(default_factory=NOBODY.copy)  # int32: row_index, ascending

    @property
    def own(self) -> int:
        """Number of rows without the guests."""
        return len(self.key) - len(self.guests)

    @property
    def alias(self) -> np.ndarray:
        """bool (rows,): another row is rendered for this one."""
        flags: np.ndarray = self.original != np.arange(len(self.original), dtype=np.int32)
        return flags

    @property
    def copies(self) -> np.ndarray:
        """int64 (rows,): number of manifest rows that a row stands for; 0 for an alias."""
        return np.bincount(self.original, minlength=len(self.original))

    def places(self, rows: np.ndarray, absent: int) -> np.ndarray:
        """int32: the place of each row_index (int32); `absent` for one that is not here."""
        places = np.full(len(rows), absent, np.int32)
        own = (rows >= self.first) & (rows < self.first + self.own)
        places[own] = rows[own] - self.first
        if len(self.guests):
            at = np.minimum(np.searchsorted(self.guests, rows), len(self.guests) - 1)
            here = self.guests[at] == rows
            places[here] = self.own + at[here]
        return places


@dataclass(frozen=True, slots=True, eq=False)
class Aliases:
    """The rows of a plan for which another one is rendered."""

    row: np.ndarray  # int32, row_index, ascending
    original: np.ndarray  # int32, row_index of the other one
    key: np.ndarray  # KEY_TYPE, of the other one

    def guests(self, begin: int, end: int) -> np.ndarray:
        """int32, ascending: what is rendered for rows from `begin` to `end` and is none of them."""
        original = self.original[self._among(begin, end)]
        return np.unique(original[(original < begin) | (original >= end)])

    def _among(self, begin: int, end: int) -> slice:
        return slice(*np.searchsorted(self.row, [begin, end]).tolist())

    def band(self, begin: int, key: np.ndarray) -> PlanRows:
        """The rows from `begin` on whose keys are these."""
        own, mine = len(key), self._among(begin, begin + len(key))
        guests = self.guests(begin, begin + own)
        by_original = np.argsort(self.original, kind="stable")
        at = np.searchsorted(self.original, guests, sorter=by_original)
        rows = PlanRows(
            key=np.concatenate([key, self.key[by_original[at]]]),
            original=np.arange(own + len(guests), dtype=np.int32),
            first=begin,
            guests=guests,
        )
        rows.original[self.row[mine] - begin] = rows.places(self.original[mine], -1)
        return rows


def read_plan_rows(plan: Path) -> PlanRows:
    """Keys and aliases of the plan; RunStateError if the file is missing or not a plan."""
    with reading(plan):
        return _plan_rows(own_parquet(plan))


def _plan_rows(file: pq.ParquetFile) -> PlanRows:
    return read_aliases(file).band(0, read_band(file, 0, file.metadata.num_rows))


def read_band(file: pq.ParquetFile, begin: int, end: int) -> np.ndarray:
    """KEY_TYPE: the keys of the rows of a plan from `begin` to `end`."""
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    groups = np.flatnonzero((starts[1:] > begin) & (starts[:-1] < end)).tolist()
    key = np.zeros(end - begin, KEY_TYPE)
    at = int(starts[groups[0]]) if groups else begin
    for batch in file.iter_batches(row_groups=groups, columns=["row_key"]):
        cut = slice(max(begin - at, 0), min(end - at, len(batch)))
        if cut.start < cut.stop:
            keys = batch["row_key"].slice(cut.start, cut.stop - cut.start)
            key[at + cut.start - begin : at + cut.stop - begin] = read_keys(keys)
        at += len(batch)
    if at < end:
        raise ValueError(f"no rows {at} to {end}")
    return key


def read_aliases(file: pq.ParquetFile) -> Aliases:
    """Those of a plan, 16 bytes each. ValueError if its rows are not counted from 0, or if an alias
    names no row."""
    for salt in range(SALTS):
        row, names = _named(file, salt)
        heads, place = np.unique(names, return_inverse=True)
        found = np.full(len(heads), -1, np.int32)
        key = np.zeros(len(heads), KEY_TYPE)
        if _find(file, salt, heads, found, key):
            if (found < 0).any():
                raise ValueError(f"{int((found < 0).sum())} aliases are of rows that are not there")
            return Aliases(row, found[place], key[place])
    raise ValueError("a row_id is there twice")


def _named(file: pq.ParquetFile, salt: int) -> tuple[np.ndarray, np.ndarray]:
    """row_index (int32) of aliases, and a number (int64) for the row_id that each names."""
    rows, numbers, first = [NOBODY], [np.zeros(0, np.int64)], 0
    for batch in file.iter_batches(columns=["row_index", "alias_of"]):
        index = numbers_of(batch["row_index"])
        if not np.array_equal(index, np.arange(first, first + len(batch))):
            raise ValueError(f"row_index does not count the rows from {first}")
        first += len(batch)
        if batch["alias_of"].null_count < len(batch):
            length = pc.fill_null(pc.binary_length(batch["alias_of"]), 0)
            named = np.flatnonzero(numbers_of(length))
            rows.append(index[named].astype(np.int32))
            numbers.append(_hashes(batch["alias_of"].take(pa.array(named)), salt))
    return np.concatenate(rows), np.concatenate(numbers)


def _find(
    file: pq.ParquetFile, salt: int, heads: np.ndarray, found: np.ndarray, key: np.ndarray
) -> bool:
    """Fill in row_index and key of the row of each of `heads` (int64, ascending). False if one is
    the number of several rows, so that these cannot be told apart."""
    for index, names, batch in _row_names(file, salt) if len(heads) else ():
        at = np.minimum(np.searchsorted(heads, names), len(heads) - 1)
        hits = np.flatnonzero(heads[at] == names)
        at = at[hits]
        if len(np.unique(at)) < len(at) or (found[at] >= 0).any():
            return False
        if len(at):
            found[at] = index[hits]
            key[at] = read_keys(batch["row_key"].take(pa.array(hits)))
    return True


def _row_names(
    file: pq.ParquetFile, salt: int
) -> Iterator[tuple[np.ndarray, np.ndarray, pa.RecordBatch]]:
    for batch in file.iter_batches(columns=["row_index", "row_id", "row_key"]):
        yield numbers_of(batch["row_index"]), _hashes(batch["row_id"], salt), batch


def _hashes(names: pa.Array, salt: int) -> np.ndarray:
    """int64; other ones for each salt."""
    pairs = ((salt, name) for name in names.to_pylist())
    return np.fromiter(map(hash, pairs), np.int64, len(names))


def read_keys(column: pa.Array) -> np.ndarray:
    """A column of keys in KEY_TYPE. Those that planning makes, hexadecimal and of one length, are
    taken from Arrow's memory as they lie there."""
    heads = pc.utf8_slice_codeunits(column, 0, DIGITS).cast(pa.large_string())
    lengths = pc.min_max(pc.binary_length(heads)).as_py()
    if not heads.null_count and lengths == {"min": DIGITS, "max": DIGITS}:
        _, _, data = heads.buffers()
        size = len(heads) * DIGITS
        digits = HEX[np.frombuffer(data, np.uint8, size, heads.offset * DIGITS)]
        if (digits < 16).all():
            return numbers_of_digits(digits.reshape(-1, DIGITS))
    keys = [(text or "").encode() for text in column.to_pylist()]
    return np.array([key_number(key) for key in keys], KEY_TYPE)
