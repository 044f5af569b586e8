"""Submissions that render nothing: `verify --repair` takes damaged rows back, and the steward
quarantines rows that kill their process."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from batchgen.durable import remove
from batchgen.errors import RunStateError, StorageError
from batchgen.ledger.blame.rows import Verdict
from batchgen.ledger.events import AttemptHeader, End, Void
from batchgen.ledger.intent import damaged_records, last_intent
from batchgen.ledger.journal import JournalWriter
from batchgen.ledger.reading.commits import commit_column, parse_commits
from batchgen.ledger.reading.left import survey
from batchgen.ledger.reading.scan import STATUS_CODES
from batchgen.ledger.reading.winners import Winners
from batchgen.ledger.submissions import SubmissionInfo, SubmissionRows, begin_submission
from batchgen.ledger.upkeep.losses import catalog_column
from batchgen.paths import RunPaths
from batchgen.planfile import read_table, reading
from batchgen.records import Attempt, Commit

QUARANTINED = "KilledItsProcess"  # error_type of a quarantined row


def void_rows(
    run: RunPaths, damaged: Sequence[tuple[int, str, str]], last: int | None = None
) -> int:
    """Take back all commits of the rows in `damaged`: (row_index, path of the media, reason).
    `last`: the highest submission number when they were looked at (default: look now). Returns the
    number of the new submission. RunStateError if another one has begun since."""
    rows = np.array(sorted({row for row, _, _ in damaged}), np.int64)
    chosen = SubmissionRows(rows, np.zeros(len(rows), np.int32), np.arange(len(rows)))
    number = begin_submission(run, chosen, _info(run, "repair"), last=last)
    header = AttemptHeader(attempt=Attempt(number, 0, 0, 0), devices=0)
    with JournalWriter.open(run, header) as journal:
        for row, path, reason in damaged:
            journal.void(Void(row, path, reason, time.time()))
        journal.end(End(reason="repaired"))
    return number


def quarantine_rows(
    run: RunPaths,
    verdicts: Sequence[Verdict],
    *,
    last: int | None = None,
    tell: Callable[[Commit], object] = lambda commit: None,
) -> int:
    """Commit convicted rows as quarantined, with the reason. They are rendered again only when a
    person asks for them; an ok commit then clears them.

    Call it when no attempt is at work, since it fences off all of them. `last` is as in
    `begin_submission`. Returns the number of the new submission. RunStateError if another one
    begins at this moment, or if a row is not in the plan. `tell` is given each commit.
    """
    rows = np.array(sorted(verdict.row_index for verdict in verdicts), np.int64)
    names = _names(run, rows)
    chosen = SubmissionRows(rows, np.zeros(len(rows), np.int32), np.arange(len(rows)))
    number = begin_submission(run, chosen, _info(run, "quarantine"), last=last)
    attempt = Attempt(number, 0, 0, 0)
    with JournalWriter.open(run, AttemptHeader(attempt=attempt, devices=0)) as journal:
        for verdict in verdicts:
            now = time.time()
            row_id, row_key = names[verdict.row_index]
            commit = Commit(
                row_index=verdict.row_index,
                row_id=row_id,
                row_key=row_key,
                status="quarantined",
                attempt=attempt.tag,
                shard=0,
                host=verdict.host,
                started=now,
                ended=now,
                error_type=QUARANTINED,
                error=verdict.reason,
            )
            journal.commit(commit)
            tell(commit)
        journal.end(End(reason="quarantined"))
    return number


@dataclass(frozen=True, slots=True)
class QuarantinedRows:
    """The first quarantined rows of a run."""

    rows: list[tuple[str, str]]  # row_id, reason
    more: int


def first_quarantined(run: RunPaths, most: int) -> QuarantinedRows:
    """Up to `most` quarantined rows with their reasons, from the journals alone."""
    found = survey(run)
    rows = np.flatnonzero((found.status == STATUS_CODES["quarantined"]) & ~found.plan.alias)
    names = _names(run, rows[:most])
    reasons = parse_commits(found.index, found.line[rows[:most]])["error"].to_pylist()
    row_ids = [names[row][0] for row in rows[:most].tolist()]
    return QuarantinedRows(list(zip(row_ids, reasons, strict=True)), more=max(0, len(rows) - most))


def _info(run: RunPaths, kind: str) -> SubmissionInfo:
    """Record of a submission without tasks; keeps attempt and excluded hosts of the one before."""
    before = last_intent(run)
    if before is None:
        return SubmissionInfo(kind=kind)
    return SubmissionInfo(kind=kind, attempt=before.attempt, excluded=before.excluded)


def _names(run: RunPaths, rows: np.ndarray) -> dict[int, tuple[str, str]]:
    """row_index -> (row_id, row_key)."""
    columns = ["row_index", "row_id", "row_key"]
    chosen = [("row_index", "in", rows.tolist())]
    with reading(run.plan):
        table = read_table(run.plan, columns, chosen)
        index, ids, keys = (table[name].to_pylist() for name in columns)
    names = dict(zip(index, zip(ids, keys, strict=True), strict=True))
    if unknown := [row for row in rows.tolist() if row not in names]:
        raise RunStateError(f"{run.plan} has no row with row_index {unknown[0]}")
    return names


def claimed_media(run: RunPaths, found: Winners) -> set[str]:
    """Media paths (relative to the run) that a journal line or the catalog gives to a row that is
    not ok now. Whatever took the row back, the file may be all that is left of it."""
    index, rows = found.index, len(found.status)
    own = found.status[found.plan.original] == STATUS_CODES["ok"]
    inside = index.row_index < rows
    without = ~own[np.where(inside, index.row_index, 0)] | ~inside
    lines = np.flatnonzero(without & (index.status == STATUS_CODES["ok"]))
    claimed = set(commit_column(parse_commits(index, lines), "media.path").to_pylist())
    with suppress(RunStateError):  # a catalog that cannot be read names no media
        paths = catalog_column(run, "media_path").to_pylist()
        claimed |= {path for row, path in enumerate(paths) if row >= rows or not own[row]}
    return claimed - {"", None}


def delete_files(paths: Iterable[Path]) -> int:
    """Delete media files and folders; returns their number."""
    count = 0
    for path in paths:
        remove(path)
        count += 1
    return count


def set_aside(run: RunPaths, paths: Iterable[Path]) -> int:
    """Move existing files to `orphans/`, under their path in the run and never over other files;
    returns their number. StorageError if one cannot be moved."""
    count = 0
    for path in paths:
        if not os.path.lexists(path):
            continue
        target = _free(run.orphans / path.relative_to(run.root))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)
        except OSError as error:
            raise StorageError(f"{path} cannot be moved to {target}: {error}") from error
        count += 1
    return count


def set_records_aside(run: RunPaths) -> list[Path]:
    """Move damaged records of submissions to `orphans/`; the run then goes on as if they were lost.
    Returns the paths where they were."""
    damaged = damaged_records(run)
    set_aside(run, damaged)
    return damaged


def _free(path: Path) -> Path:
    """`path`, or the first of `path.1`, `path.2` ... that does not exist."""
    names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(name for name in itertools.chain([path], names) if not os.path.lexists(name))
