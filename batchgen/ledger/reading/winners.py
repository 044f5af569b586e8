"""Which commit counts for each row of the plan, and which rows are left to render."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from batchgen.ledger.reading.kept_scan import index_quickly
from batchgen.ledger.reading.keys import DIGITS, HEX, KEY_TYPE, key_number, numbers_of_digits
from batchgen.ledger.reading.scan import STATUS_CODES, CommitIndex
from batchgen.ledger.upkeep.pieces import numbers_of
from batchgen.paths import RunPaths
from batchgen.planfile import own_parquet, reading

_STRETCH = 1_000_000  # lines or rows at a time


@dataclass(frozen=True, slots=True, eq=False)
class PlanRows:
    """What the ledger needs to know of every row of the plan, in the order of row_index."""

    key: np.ndarray  # KEY_TYPE (rows,)
    original: np.ndarray  # int32 (rows,): row_index rendered for the row; itself unless an alias

    @property
    def alias(self) -> np.ndarray:
        """bool (rows,): another row is rendered for this one."""
        flags: np.ndarray = self.original != np.arange(len(self.original), dtype=np.int32)
        return flags

    @property
    def copies(self) -> np.ndarray:
        """int64 (rows,): number of manifest rows that a row stands for; 0 for an alias."""
        return np.bincount(self.original, minlength=len(self.original))


@dataclass(frozen=True, slots=True, eq=False)
class Winners:
    """For each row of the plan, by row_index: its status, and the line of the index that says
    so."""

    index: CommitIndex
    plan: PlanRows
    status: np.ndarray  # int8 (rows,), STATUS_CODES; pending where no commit counts
    line: np.ndarray  # int32 (rows,), place in the index; -1 where pending


@dataclass(frozen=True, slots=True, eq=False)
class MissingRows:
    """Rows of the plan (without aliases) that have no ok media, as sorted arrays of row_index."""

    pending: np.ndarray  # never finished
    failed: np.ndarray  # rendered again by a resume
    quarantined: np.ndarray  # rendered again only when asked for

    @property
    def all(self) -> np.ndarray:
        """What a resume renders: pending and failed ones, sorted."""
        return np.sort(np.concatenate([self.pending, self.failed]))


def winners(run: RunPaths, index: CommitIndex | None = None) -> Winners:
    """The commit that counts for every row of the plan (aliases have none of their own).

    Only commits before the fence and with the plan's row_key count, and none that a later
    submission took back. The `ok` commit of the highest (submission, restart) wins; without one,
    the last commit. So an ok row that is rendered again and fails keeps its earlier media.
    RunStateError if the plan cannot be read.
    """
    index = index_quickly(run) if index is None else index
    return choose(index, read_plan_rows(run.plan))


def missing_rows(run: RunPaths, plan: Path | None = None) -> MissingRows:
    """What is left to render, from the journals and the plan (or `plan`, one not installed yet)."""
    return missing_of(choose(index_quickly(run), read_plan_rows(plan or run.plan)))


def missing_of(found: Winners) -> MissingRows:
    """What is left to render, given the winners."""
    own = ~found.plan.alias
    pending = own & (found.status == STATUS_CODES["pending"])
    failed = own & (found.status == STATUS_CODES["failed"])
    quarantined = own & (found.status == STATUS_CODES["quarantined"])
    return MissingRows(*map(np.flatnonzero, (pending, failed, quarantined)))


def choose(index: CommitIndex, plan: PlanRows) -> Winners:
    """The rule of `winners`, applied to arrays: in stretches, so that what is only in between takes
    no memory."""
    rows = len(plan.key)
    line = np.full(rows, -1, np.int32)
    voided = _voided(index, rows)
    for ok in (False, True):  # in order of attempts, so the last one stays
        for begin in range(0, len(index.row_index), _STRETCH):
            places = _counting(index, plan, voided, begin, ok)
            line[index.row_index[places]] = places
    status = np.zeros(rows, np.int8)
    for begin in range(0, rows, _STRETCH):
        part = line[begin : begin + _STRETCH]
        if len(index.status):
            status[begin : begin + _STRETCH] = np.where(part >= 0, index.status[part], 0)
    return Winners(index, plan, status, line)


def _voided(index: CommitIndex, rows: int) -> np.ndarray | None:
    """int64 (rows,): the last submission that took the row's earlier commits back, or 0; None if
    none ever did."""
    void = np.flatnonzero(index.status == STATUS_CODES["void"])
    void = void[index.accepted[void] & (index.row_index[void] < rows)]
    if not len(void):
        return None
    voided = np.zeros(rows, np.int64)
    np.maximum.at(voided, index.row_index[void], index.submission_of(void))
    return voided


def _counting(
    index: CommitIndex, plan: PlanRows, voided: np.ndarray | None, begin: int, ok: bool
) -> np.ndarray:
    """Places of the ok lines (or of the others) in a stretch of the index that count."""
    part = slice(begin, begin + _STRETCH)
    status, inside = index.status[part], index.row_index[part] < len(plan.key)
    known = index.accepted[part] & inside & (status != STATUS_CODES["void"])
    places = begin + np.flatnonzero(known & ((status == STATUS_CODES["ok"]) == ok))
    row = index.row_index[places]
    counts = index.key[places] == plan.key[row]
    if voided is not None:
        counts &= index.submission_of(places) > voided[row]
    counted: np.ndarray = places[counts]
    return counted


def read_plan_rows(plan: Path) -> PlanRows:
    """Keys and aliases of the plan; RunStateError if the file is missing or not a plan."""
    with reading(plan):
        return _plan_rows(own_parquet(plan))


def _plan_rows(file: pq.ParquetFile) -> PlanRows:
    rows = file.metadata.num_rows
    key = np.zeros(rows, KEY_TYPE)
    original = np.arange(rows, dtype=np.int32)
    alias_rows: list[int] = []
    alias_of: list[str] = []
    first = 0
    for batch in file.iter_batches(columns=["row_index", "row_key", "alias_of"]):
        index = numbers_of(batch["row_index"])
        if not np.array_equal(index, np.arange(first, first + len(batch))):
            raise ValueError(f"row_index does not count the rows from {first}")
        first += len(batch)
        key[index] = read_keys(batch["row_key"])
        if batch["alias_of"].null_count < len(batch):
            names = batch["alias_of"].to_pylist()
            pairs = zip(index.tolist(), names, strict=True)
            aliases = [(row, name) for row, name in pairs if name]
            alias_rows += [row for row, _ in aliases]
            alias_of += [name for _, name in aliases]
    if alias_of:
        found = _find_rows(file, alias_of)
        original[alias_rows] = [found[name] for name in alias_of]
    return PlanRows(key, original)


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


def _find_rows(file: pq.ParquetFile, row_ids: Sequence[str]) -> dict[str, int]:
    """row_id -> row_index for the given row_ids."""
    wanted = set(row_ids)
    found: dict[str, int] = {}
    for batch in file.iter_batches(columns=["row_index", "row_id"]):
        pairs = zip(batch["row_id"].to_pylist(), batch["row_index"].to_pylist(), strict=True)
        found |= {name: row for name, row in pairs if name in wanted}
    return found
