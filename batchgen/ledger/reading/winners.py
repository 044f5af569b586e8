"""Which commit counts for each row of the plan, and which rows are left to render."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from batchgen.ledger.reading.kept_scan import index_quickly
from batchgen.ledger.reading.plan_rows import PlanRows, read_plan_rows
from batchgen.ledger.reading.scan import STATUS_CODES, CommitIndex
from batchgen.paths import RunPaths

_STRETCH = 1_000_000  # lines or rows at a time


@dataclass(frozen=True, slots=True, eq=False)
class Winners:
    """For each row of the plan, or of a band of them, by its place: its status, and the line of the
    index that says so."""

    index: CommitIndex
    plan: PlanRows
    status: np.ndarray  # int8 (rows,), STATUS_CODES; pending where no commit counts
    line: np.ndarray  # int32 (rows,), place in the index; -1 where pending

    @property
    def home(self) -> np.ndarray:
        """bool, one a line of the index: it is not of a guest."""
        row: np.ndarray = self.index.row_index
        return (row < self.plan.own) | (row >= len(self.plan.key))


def winners(run: RunPaths, index: CommitIndex | None = None) -> Winners:
    """The commit that counts for every row of the plan (aliases have none of their own).

    Only commits before the fence and with the plan's row_key count, and none that a later
    submission took back. The `ok` commit of the highest (submission, restart) wins; without one,
    the last commit. So an ok row that is rendered again and fails keeps its earlier media.
    RunStateError if the plan cannot be read.
    """
    index = index_quickly(run) if index is None else index
    return choose(index, read_plan_rows(run.plan))


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
