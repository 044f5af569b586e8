"""Plans and submissions of many rows: what they keep of each."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from batchgen.bench._jobs import made, null_job
from batchgen.ledger import submissions
from batchgen.planning.manifests import parts, rowids
from batchgen.planning.pricing import shards
from batchgen.runner import submit as runner

SIZES = 70_000, 170_000  # Arrow's readers have up to 65,536 rows at once


def grown(work: Callable[[], object]) -> int:
    """Bytes of Python and numpy at the peak, beside those before."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_row_more_takes_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan: 22 of a table of keys, 8 of a hash of its id. A submission: 17 of the ledger, 8 of
    its number, 8 of its cost, and 16 while rows are sorted; before, 41 and 114. The rest is the
    same for 100,000 rows as for 10^8."""
    monkeypatch.setattr(parts, "BATCH_ROWS", 2000)
    monkeypatch.setattr(rowids, "_IN_MEMORY", 1)
    for module in (rowids, shards):
        monkeypatch.setattr(module, "_STRETCH", 2000)
    monkeypatch.setattr(submissions, "_GROUP_ROWS", 2000)
    monkeypatch.setattr(shards, "_ONE_BY_ONE", 1000)
    monkeypatch.setattr(runner, "_launch", lambda *args, **kwargs: [])
    peaks = {"plan": [], "submit": []}
    for rows in SIZES:
        job, found = null_job(tmp_path / str(rows), rows), []
        peaks["plan"].append(grown(lambda job=job, found=found: found.append(made(job))))
        [(run, settings)] = found
        peaks["submit"].append(grown(lambda: runner.submit(run, settings)))
    of_a_row = {what: (b - a) / (SIZES[1] - SIZES[0]) for what, (a, b) in peaks.items()}
    print(of_a_row)
    assert of_a_row["plan"] < 35
    assert of_a_row["submit"] < 53
