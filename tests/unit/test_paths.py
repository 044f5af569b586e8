"""Names inside a run folder: no folder grows without bound."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from batchgen.config.schema import SlurmConfig
from batchgen.paths import RunPaths, media_fan_out, parse_journal
from batchgen.records import Attempt
from batchgen.runner.executors.slurm import steward_batch, task_batches

RUN = RunPaths(Path("run"))


@pytest.mark.parametrize("task", [0, 499, 500, 9_999])
def test_a_journal_is_known_by_its_path(task: int) -> None:
    attempt = Attempt(12, task, 3, 7)
    assert parse_journal(RUN.journal(attempt)) == attempt


@pytest.mark.parametrize("name", ["journal/0001/copy of 1-r0-0.jsonl", "journal/old/1-r0-0.jsonl"])
def test_other_files_are_no_journals(name: str) -> None:
    with pytest.raises(ValueError, match="is not a journal"):
        parse_journal(Path(name))


@pytest.mark.parametrize("shards", [4, 4_096, 50_000])
def test_small_files_of_many_shards_share_folders_of_bounded_size(shards: int) -> None:
    """Eight ranks, each started twice: all that the last three folders hold, and every folder."""
    last = range(max(0, shards - 1_500), shards)
    starts = [Attempt(1, task, restart, 0) for task in last for restart in (0, 1)]
    attempts = [replace(start, replica=rank) for start in starts for rank in range(8)]
    some = [Attempt(1, task, task % 2, 0) for task in range(0, shards, 99)]
    for name in (RUN.journal, RUN.counters, RUN.run_log, RUN.queue_address):
        assert max(Counter(name(attempt).parent for attempt in attempts).values()) <= 10_000
        assert len({name(start).parent for start in some}) == -(-shards // 500) <= 10_000


@pytest.mark.parametrize("window", [1, 2, 1001, 4_000_001])
@pytest.mark.parametrize("shards", [4, 10_000, 50_000])
def test_what_slurm_gets_and_prints_shares_folders_of_bounded_size(
    shards: int, window: int
) -> None:
    """A script of each array and a log of each element, whatever the cluster takes as an array."""
    batches = task_batches(RUN, 1, shards, SlurmConfig(executor="slurm", nodes=20), window)
    assert sum(batch.elements for batch in batches) == shards
    files: Counter[Path] = Counter()
    for batch in batches:
        files[batch.folder] += 1 + batch.elements
    assert max(files.values()) <= 10_000 and len(files) <= 20
    steward = steward_batch(RUN, 1, SlurmConfig(executor="slurm"), rows=9)
    assert steward.folder not in files and steward.folder.parent == batches[0].folder.parent


@pytest.mark.parametrize("rows", [100, 10**6, 10**8])
def test_media_folders_are_of_bounded_size(rows: int) -> None:
    """The rows of one stretch fill a folder; there are never more than 10k folders side by side."""
    stretch = [media_fan_out(row, rows) for row in range(min(rows, 50_000))]
    assert max(Counter(stretch).values()) <= 10_000
    depth = media_fan_out(rows - 1, rows).count("/")
    assert all(folder.count("/") == depth for folder in stretch)
