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
from batchgen.ledger.losses import UNSEEN_S, find_losses
from batchgen.ledger.restarts import accept_restart
from batchgen.records import Attempt


@pytest.fixture
def killed(make_lab: Callable[..., RunFolder]) -> tuple[RunFolder, Path]:
    """A rank that was killed after a line that it does not sync; its journal."""
    lab = make_lab(2)
    journal = lab.journal(lab.submit())
    lab.render(journal, 0)
    journal.start(1, "row0001")
    return lab, journal.path


def accept(lab: RunFolder) -> None:
    accept_restart(lab.run, Attempt(1, 0, 1, 0))


def submit_again(lab: RunFolder) -> None:
    lab.submit([1])


def collect(lab: RunFolder) -> None:
    catalog.collect(lab.run)


@pytest.mark.parametrize("step", [accept, submit_again, collect])
def test_lines_are_on_the_disk_before_anything_is_said_of_them(
    killed: tuple[RunFolder, Path],
    step: Callable[[RunFolder], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab, path = killed
    synced: list[int] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    step(lab)
    assert path.stat().st_ino in synced


def test_a_loss_that_only_the_extent_of_the_catalog_tells(
    make_lab: Callable[..., RunFolder],
) -> None:
    """No row needs the line: it is told, a submission goes on, and a collect does not wait long
    after its catalog was written."""
    lab = make_lab(2)
    with lab.journal(lab.submit([0])) as journal:
        lab.render(journal, 0)
        journal.end(End(reason="done"))
    path = journal.path
    collect(lab)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    (counters,) = lab.run.counters_files(since=1)
    known = json.loads(counters.read_text())
    counters.write_text(json.dumps(known | {"synced": path.stat().st_size}))
    assert find_losses(lab.run) == [], "another machine's lines may not be seen yet"
    first = lab.run.catalog_rows / "part-00000.parquet"
    long_ago = time.time() - 2 * UNSEEN_S
    os.utime(first, (long_ago, long_ago))
    assert [(f.kind, f.path) for f in verify(lab.run).damage] == [("lost", "journal")]
    began = time.monotonic()
    with pytest.raises(RunStateError, match=r"some of its ledger was lost.*--repair"):
        collect(lab)
    assert time.monotonic() - began < UNSEEN_S / 4
    assert verify(lab.run, repair=True).is_sound
    assert verify(lab.run).findings == ()
    collect(lab)
    lab.submit([1])
