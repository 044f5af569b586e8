"""What is not on the disk yet counts for nothing that is: a power cut would make a loss of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from run_folder import RunFolder

from batchgen.catalog import collect as catalog
from batchgen.catalog.verify import verify
from batchgen.errors import RunStateError
from batchgen.ledger.events import End
from batchgen.ledger.restarts import fence_restart
from batchgen.ledger.upkeep.losses import UNSEEN_S, find_losses
from batchgen.records import Attempt


@pytest.fixture
def killed(make_run_folder: Callable[..., RunFolder]) -> tuple[RunFolder, Path]:
    """A rank that was killed after a line that it does not sync; its journal."""
    run_folder = make_run_folder(2)
    journal = run_folder.journal(run_folder.submit())
    run_folder.render(journal, 0)
    journal.start(1, "row0001")
    return run_folder, journal.path


def accept(run_folder: RunFolder) -> None:
    fence_restart(run_folder.run, Attempt(1, 0, 1, 0))


def submit_again(run_folder: RunFolder) -> None:
    run_folder.submit([1])


def collect(run_folder: RunFolder) -> None:
    catalog.collect(run_folder.run)


@pytest.mark.parametrize("step", [accept, submit_again, collect])
def test_lines_are_on_the_disk_before_anything_is_said_of_them(
    killed: tuple[RunFolder, Path],
    step: Callable[[RunFolder], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_folder, path = killed
    synced: list[int] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    step(run_folder)
    assert path.stat().st_ino in synced


def test_a_loss_that_only_the_extent_of_the_catalog_tells(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """No row needs the line: it is told, a submission goes on, and a collect does not wait long
    after its catalog was written."""
    run_folder = make_run_folder(2)
    with run_folder.journal(run_folder.submit([0])) as journal:
        run_folder.render(journal, 0)
        journal.end(End(reason="done"))
    path = journal.path
    collect(run_folder)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    (counters,) = run_folder.run.counters_files(since=1)
    known = json.loads(counters.read_text())
    counters.write_text(json.dumps(known | {"synced": path.stat().st_size}))
    assert find_losses(run_folder.run) == [], "another machine's lines may not be seen yet"
    first = run_folder.run.catalog_rows / "part-00000.parquet"
    long_ago = time.time() - 2 * UNSEEN_S
    os.utime(first, (long_ago, long_ago))
    assert [(f.kind, f.path) for f in verify(run_folder.run).damage] == [("lost", "journal")]
    began = time.monotonic()
    with pytest.raises(RunStateError, match=r"some of its ledger was lost.*--repair"):
        collect(run_folder)
    assert time.monotonic() - began < UNSEEN_S / 4
    assert verify(run_folder.run, repair=True).is_sound
    assert verify(run_folder.run).findings == ()
    collect(run_folder)
    run_folder.submit([1])
