"""What `verify --repair` changes: damaged rows are taken back by a submission of their own."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from batchgen.ledger.attempts import SubmissionInfo, SubmissionRows, begin_submission
from batchgen.ledger.events import AttemptHeader, End, Void
from batchgen.ledger.journal import JournalWriter
from batchgen.media.durable import remove
from batchgen.paths import RunPaths
from batchgen.records import Attempt


def void_rows(run: RunPaths, damaged: Sequence[tuple[int, str, str]]) -> int:
    """Take back all commits of some rows: (row_index, path of the media, reason). Returns the
    number of the submission that says so. RunStateError if another one begins at this moment."""
    rows = np.array(sorted({row for row, _, _ in damaged}), np.int64)
    chosen = SubmissionRows(rows, np.zeros(len(rows), np.int32), np.arange(len(rows)))
    number = begin_submission(run, chosen, SubmissionInfo(kind="repair"))
    header = AttemptHeader(attempt=Attempt(number, 0, 0, 0), devices=0)
    with JournalWriter.open(run, header) as journal:
        for row, path, reason in damaged:
            journal.void(Void(row, path, reason, time.time()))
        journal.end(End(reason="repaired"))
    return number


def delete_files(paths: Iterable[Path]) -> int:
    """Delete media files and folders; returns how many."""
    count = 0
    for path in paths:
        remove(path)
        count += 1
    return count
