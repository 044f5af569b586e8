"""A copy of a run folder is a run of its own: the ranks and jobs of the original are not its; and a
run that was moved still has its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import warm
from run_folder import RunFolder
from waiting import process_state, wait_for

from batchgen.catalog.verify import verify
from batchgen.ledger.intent import last_render, own_render
from batchgen.ledger.status import live_attempts, read_status
from batchgen.ledger.submissions import maker_of
from batchgen.paths import RunPaths
from batchgen.scheduler.commands import job_name, slurm_intent


@pytest.fixture
def at_work(
    make_run_folder: Callable[..., RunFolder],
) -> Iterator[tuple[RunFolder, warm.Process]]:
    """A rank that is stopped in the middle of its second row."""
    run_folder = make_run_folder(3)
    rank = run_folder.start_rank(run_folder.submit(), [0, 1, 2], "journal.before_append:2:stop")
    wait_for(lambda: process_state(rank.pid) == "T")
    yield run_folder, rank
    rank.kill()
    rank.wait()


def test_the_ranks_of_the_original_are_not_the_copys(
    at_work: tuple[RunFolder, warm.Process], tmp_path: Path
) -> None:
    run_folder, rank = at_work
    copy = RunPaths(tmp_path / "elsewhere" / run_folder.run.root.name)
    shutil.copytree(run_folder.run.root, copy.root)
    assert [a.process.pid for a in live_attempts(run_folder.run)] == [rank.pid]
    assert live_attempts(copy) == []
    status = read_status(copy)
    assert (status.state, status.ok, status.attempts[0].life) == ("stopped", 1, "dead")
    assert last_render(copy) is not None and own_render(copy) is None
    assert slurm_intent(copy) is None and maker_of(copy, 1) is None
    assert job_name(copy, 2) != job_name(run_folder.run, 2)
    assert verify(copy, repair=True).is_sound, "nothing is at work in it"
    again = RunFolder(copy, run_folder.requests)
    with again.journal(again.submit([1, 2])) as journal:
        again.render(journal, 1)
        assert len(live_attempts(copy)) == 1 and own_render(copy) is not None
    assert read_status(copy).ok == 2 and read_status(run_folder.run).ok == 1


def test_a_run_that_was_moved_keeps_its_ranks(
    at_work: tuple[RunFolder, warm.Process], tmp_path: Path
) -> None:
    run_folder, rank = at_work
    moved = RunPaths(run_folder.run.root.rename(tmp_path / "moved"))
    assert [a.process.pid for a in live_attempts(moved)] == [rank.pid]
    assert own_render(moved) is not None and maker_of(moved, 1) is not None
    (tmp_path / "link").symlink_to(moved.root)
    assert len(live_attempts(RunPaths(tmp_path / "link"))) == 1


CANCEL = """
import sys
from pathlib import Path
from batchgen.paths import RunPaths
from batchgen.runner import steward
print(steward.cancel(RunPaths(Path(sys.argv[1]))))
"""


def test_to_cancel_a_copy_leaves_the_original_alone(
    at_work: tuple[RunFolder, warm.Process], tmp_path: Path
) -> None:
    run_folder, rank = at_work
    copy = RunPaths(tmp_path / "copy")
    shutil.copytree(run_folder.run.root, copy.root)
    done = subprocess.run(
        [sys.executable, "-c", CANCEL, str(copy.root)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "None"
    assert not copy.cancelled(1).exists()
    os.kill(rank.pid, signal.SIGCONT)
    assert rank.wait(60) == 0
    assert read_status(run_folder.run).ok == 3
