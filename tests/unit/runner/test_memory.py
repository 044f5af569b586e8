"""Submissions of many rows: what they keep of each."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from batchgen.bench._jobs import made, null_job
from batchgen.ledger import submissions
from batchgen.planning.pricing import shards
from batchgen.runner import submit as runner
from batchgen.runner.submit import cut

SIZES = 70_000, 130_000  # readers of Arrow have up to 65,536 rows at once


def peak_of_submission(folder: Path, rows: int) -> int:
    """Bytes of Python and numpy from the cut on, without ranks."""
    run, settings = made(null_job(folder, rows))
    gc.collect()
    tracemalloc.start()
    try:
        runner.submit(run, settings)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def cut_anew(*args: Any, **kwargs: Any) -> submissions.SubmissionRows:
    """What was in between before, in pieces of many rows, does not count."""
    tracemalloc.reset_peak()
    return cut(*args, **kwargs)


def test_a_submission_takes_few_bytes_of_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """17 for the ledger, 9 for the number of a row and whether it is a suspect, 8 for its cost and
    16 while rows are sorted; with copies and numbers of 8 bytes it was 83."""
    monkeypatch.setattr(shards, "_STRETCH", 2000)
    monkeypatch.setattr(submissions, "_GROUP_ROWS", 2000)
    monkeypatch.setattr(shards, "_ONE_BY_ONE", 1000)
    monkeypatch.setattr(runner, "_launch", lambda *args, **kwargs: [])
    monkeypatch.setattr(runner, "cut", cut_anew)
    peak_of_submission(tmp_path / "imports", 10)
    small, large = (peak_of_submission(tmp_path / str(rows), rows) for rows in SIZES)
    assert (large - small) / (SIZES[1] - SIZES[0]) < 55
