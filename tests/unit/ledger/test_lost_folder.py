"""A run folder that goes away under its ranks is not made again, and no row of it is published
whose media went elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from planned_run import PlannedRun, plan_run
from quick_cases import first_quick
from run_folder import RunFolder, render

from batchgen.anchor import Anchor, Place
from batchgen.catalog.verify import verify
from batchgen.durable import make_folder
from batchgen.errors import MediaError, StorageError
from batchgen.ledger.events import End
from batchgen.media.publish import write_media
from batchgen.paths import RunPaths
from batchgen.records import Attempt, Commit
from batchgen.worker.meetings.address import announce


def moved(root: Path) -> RunPaths:
    """Somebody renames the folder."""
    return RunPaths(root.rename(root.with_name("moved")))


def deleted(root: Path) -> RunPaths | None:
    shutil.rmtree(root)
    return None


def replaced_by_a_copy(root: Path) -> RunPaths:
    """`mv run moved; cp -r moved run`."""
    after = moved(root)
    shutil.copytree(after.root, root)
    return after


def media_replaced(root: Path) -> RunPaths:
    """As if what was mounted there is unmounted: an empty folder is left."""
    run = RunPaths(root)
    run.media.rename(root / "media.away")
    run.media.mkdir()
    return run


def journals_replaced(root: Path) -> RunPaths:
    """By a copy, while the descriptor of the rank stays with the other."""
    run = RunPaths(root)
    run.journals.rename(root / "journal.away")
    shutil.copytree(root / "journal.away", run.journals)
    return run


def tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


@pytest.mark.parametrize(
    "happens",
    first_quick([deleted, replaced_by_a_copy, moved, media_replaced, journals_replaced], 2),
)
def test_a_rank_ends_when_its_folder_goes_away(
    tmp_path: Path, happens: Callable[[Path], RunPaths | None]
) -> None:
    planned_run = plan_run(tmp_path, [5, 60, 60, 60])
    planned_run.begin([0, 1, 2, 3])
    rank = planned_run.start(1)
    planned_run.wait_for(lambda: planned_run.of(Commit, 1))
    root = planned_run.run.root
    after = happens(root)
    stood = tree(root)
    _, said = rank.communicate(timeout=60)
    assert rank.returncode != 0 and "is not the one that was opened" in said
    assert tree(root) <= stood and root.exists() == bool(stood)
    if after is None:
        return
    where = after.root / "journal.away" if happens is journals_replaced else after.journals
    lost = PlannedRun(after, planned_run.config)
    if where == after.journals:
        (end,) = lost.of(End, 1)
        assert end.reason == "StorageError"
        assert len(lost.of(Commit, 1)) < 4
    if happens in (moved, replaced_by_a_copy):
        report = verify(after)
        assert report.is_sound and report.files >= 1, report.findings


def test_a_row_that_was_written_before_the_move_is_not_committed_after_it(
    make_run_folder: Callable[..., RunFolder], tmp_path: Path
) -> None:
    """Not even where a copy of the run took the place, so that its media was written."""
    run_folder = make_run_folder(2)
    run_folder.run.media.mkdir()
    journal = run_folder.journal(run_folder.submit())
    run_folder.render(journal, 0)
    lines = journal.path.read_bytes()
    after = replaced_by_a_copy(run_folder.run.root)
    media = write_media(render(run_folder.requests[1]), run_folder.run, Attempt(1, 0, 0, 0), 2)
    commit = run_folder.commit_of(1, Attempt(1, 0, 0, 0), media)
    for each in (commit, replace(commit, status="failed", media=None)):
        with pytest.raises(StorageError, match="is not the one that was opened"):
            journal.commit(each)
    with pytest.raises(StorageError, match="is not the one that was opened"):
        journal.saved(1, 2, 0.5)
    assert RunPaths(after.root).journal(Attempt(1, 0, 0, 0)).read_bytes() == lines
    counters = run_folder.run.counters(Attempt(1, 0, 0, 0))
    before = counters.read_bytes()
    journal.end(End(reason="error"))
    journal.close()
    assert counters.read_bytes() == before, "they are the copy's"
    assert not verify(after).damage


def test_a_folder_that_comes_back_is_the_one_that_was_opened(tmp_path: Path) -> None:
    root, link = tmp_path / "run", tmp_path / "link"
    root.mkdir()
    anchor = Anchor(RunPaths(root))
    anchor.check()
    root.rename(tmp_path / "moved")
    assert anchor.is_lost()
    root.mkdir()
    assert anchor.is_lost()
    root.rmdir()
    root.symlink_to(tmp_path / "moved")
    anchor.check()
    link.symlink_to(root)
    anchor.close()
    shutil.rmtree(tmp_path / "moved")
    root.unlink()
    with pytest.raises(StorageError, match="cannot be opened"):
        Anchor(RunPaths(root))


def test_a_folder_made_anew_is_another_one_even_with_the_same_number(tmp_path: Path) -> None:
    """Filesystems give the inode of a deleted folder to the next one."""
    run = RunPaths(tmp_path / "run")
    run.root.mkdir()
    anchor = Anchor(run)
    for _ in range(20):
        run.root.rmdir()
        run.root.mkdir()
        assert anchor.is_lost()
    anchor.close()


def test_nothing_makes_a_run_folder_again(make_run_folder: Callable[..., RunFolder]) -> None:
    """Each of what a rank writes, on its own."""
    run_folder = make_run_folder(1)
    run, attempt = run_folder.run, Attempt(1, 0, 0, 0)
    request = run_folder.requests[0]
    shutil.rmtree(run.root)
    with pytest.raises(MediaError):
        write_media(render(request), run, attempt, 1)
    with pytest.raises(MediaError):
        write_media(render(request), run, attempt, 10_000_000)
    with pytest.raises(StorageError):
        run_folder.journal(1)
    with pytest.raises(StorageError):
        announce(run.queue_address(attempt))
    with pytest.raises(StorageError):
        run_folder.submit()
    with pytest.raises(FileNotFoundError):
        make_folder(run.root / "a" / "b", run.root)
    assert not run.root.exists()


def test_a_place_knows_the_moved_run_from_a_copy(tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "run")
    run.root.mkdir()
    place = Place.of(run)
    copy, after = RunPaths(tmp_path / "copy"), RunPaths(tmp_path / "moved")
    shutil.copytree(run.root, copy.root)
    assert place.is_of(run) and not place.is_of(copy)
    (tmp_path / "link").symlink_to(run.root)
    assert place.is_of(RunPaths(tmp_path / "link"))
    run.root.rename(after.root)
    assert place.is_of(after) and not place.is_of(copy)
    assert Place().is_of(copy), "an older run"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_media_that_are_unmounted_are_not_written_below_the_mount(tmp_path: Path) -> None:
    planned_run = plan_run(tmp_path, [5, 60, 60, 60])
    media = planned_run.run.media
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(media)]).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        planned_run.begin([0, 1, 2, 3])
        rank = planned_run.start(1)
        planned_run.wait_for(lambda: planned_run.of(Commit, 1))
    finally:
        subprocess.run(["umount", "-l", str(media)], check=True)
    _, said = rank.communicate(timeout=60)
    assert rank.returncode != 0 and "is not the one that was opened" in said
    assert list(media.iterdir()) == []
