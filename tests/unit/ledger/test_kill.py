"""kill -9 at every step of a commit, in real processes: what was promised is there, no more."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pandas as pd
import pytest
from run_folder import RunFolder
from waiting import process_state, wait_for

from batchgen.catalog.collect import collect
from batchgen.catalog.verify import verify
from batchgen.ledger.reading.left import missing_rows
from batchgen.ledger.status import read_status

POINTS = [
    "media.before_write",
    "media.after_write",
    "media.before_rename",
    "media.after_rename",
    "journal.before_append",
    "journal.torn",
    "journal.after_append",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_loses_no_commit_and_invents_none(
    point: str, make_run_folder: Callable[..., RunFolder]
) -> None:
    """Killed while it works on its second of three rows; then the rest is rendered."""
    run_folder = make_run_folder(3)
    rank = run_folder.start_rank(run_folder.submit(), [0, 1, 2], f"{point}:2:kill")
    assert rank.wait(60) == -signal.SIGKILL

    committed = [0, 1] if point == "journal.after_append" else [0]
    left = [row for row in range(3) if row not in committed]
    status = read_status(run_folder.run)
    assert (status.ok, status.left, status.running) == (len(committed), len(left), 0)
    assert (status.state, status.attempts[0].life) == ("stopped", "dead")
    assert missing_rows(run_folder.run).pending.tolist() == left
    assert verify(run_folder.run).is_sound

    collect(run_folder.run)
    frame = pd.read_parquet(run_folder.run.catalog_rows)
    assert frame["status"].tolist() == ["ok" if row in committed else "pending" for row in range(3)]
    runs = pd.read_parquet(run_folder.run.catalog_runs)
    assert runs["exit_reason"].tolist() == ["killed"]
    assert runs["load_s"].tolist() == [0.5]
    assert runs["rows_lost"].tolist() == [2 - len(committed)]

    assert run_folder.start_rank(run_folder.submit(left), left).wait(60) == 0
    assert read_status(run_folder.run).ok == 3
    report = verify(run_folder.run, repair=True)
    assert report.is_sound
    assert (report.ok, report.files) == (3, 3)
    assert len(list(run_folder.run.media.iterdir())) == 3, "orphans and temporary files are deleted"


def test_a_rank_that_is_killed_and_started_again_renders_only_the_rest(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    from batchgen.ledger.restarts import fence_restart
    from batchgen.records import Attempt

    run_folder = make_run_folder(3)
    number = run_folder.submit()
    assert run_folder.start_rank(number, [0, 1, 2], "journal.after_append:2:kill").wait(60) == -9
    done = fence_restart(run_folder.run, Attempt(number, 0, 1, 0))
    assert done == {0: "ok", 1: "ok"}
    assert run_folder.start_rank(number, [2], restart=1).wait(60) == 0
    status = read_status(run_folder.run)
    assert (status.ok, status.left, status.state) == (3, 0, "finished")


def test_a_stopped_rank_that_wakes_up_late_publishes_nothing(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """SIGSTOP in the middle of a row, a resume that renders all, then SIGCONT."""
    import os

    run_folder = make_run_folder(2)
    zombie = run_folder.start_rank(run_folder.submit(), [0, 1], "journal.before_append:2:stop")
    wait_for(lambda: process_state(zombie.pid) == "T")
    assert read_status(run_folder.run).running == 1
    assert run_folder.start_rank(run_folder.submit([1]), [1]).wait(60) == 0
    before = media_by_row(run_folder)
    os.kill(zombie.pid, signal.SIGCONT)
    assert zombie.wait(60) == 0
    assert media_by_row(run_folder) == before
    assert before["row0001"] == "media/row0001-s2t0r0p0.png"
    summary = collect(run_folder.run)
    assert (summary.ok, summary.wasted) == (2, 1)
    runs = pd.read_parquet(run_folder.run.catalog_runs)
    assert runs["rows_wasted"].tolist() == [1, 0]
    assert runs["retried_s"].tolist() == pytest.approx([1.1, 0.0])


def media_by_row(run_folder: RunFolder) -> dict[str, str]:
    from batchgen import catalog

    frame = catalog.snapshot(run_folder.run.root)
    return dict(zip(frame["row_id"], frame["media_path"], strict=True))
