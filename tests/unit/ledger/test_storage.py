"""A full disk and a read-only folder: clear errors, valid state, and going on afterwards."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio_ffmpeg
import pytest
from run_folder import RunFolder, make_request, read_journal, render

from batchgen.catalog.collect import collect
from batchgen.catalog.verify import verify
from batchgen.errors import MediaError, StorageError
from batchgen.ledger.blame.rows import read_blame
from batchgen.ledger.events import End
from batchgen.ledger.intent import submission_numbers
from batchgen.ledger.journal import JournalWriter
from batchgen.ledger.reading.left import missing_rows
from batchgen.ledger.status import read_status
from batchgen.media.publish import write_media
from batchgen.paths import RunPaths, parse_journal
from batchgen.records import Attempt


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room that is left."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return path


def test_a_full_disk_fails_rows_then_the_journal_and_all_is_well_with_room(
    make_run_folder: Callable[..., RunFolder], disk: Path
) -> None:
    run_folder = make_run_folder(4, root=disk / "run")
    journal = run_folder.journal(run_folder.submit())
    run_folder.render(journal, 0)
    filler = fill(disk)
    with pytest.raises(MediaError, match="No space left"):
        run_folder.render(journal, 1)
    with pytest.raises(StorageError, match=r"0-r0-0\.jsonl: the journal cannot be written"):
        for row in range(1, 200):  # until the last page of the journal is full
            journal.start(row, f"row{row:04d}")
    journal.close()
    content = read_journal(journal.path)
    assert (content.bad_lines, content.torn_bytes) == ((), 0)
    assert read_status(run_folder.run).ok == 1
    with pytest.raises(StorageError, match="cannot be written"):
        run_folder.submit([1, 2, 3])
    with pytest.raises(StorageError, match="catalog cannot be written"):
        collect(run_folder.run)
    assert missing_rows(run_folder.run).pending.tolist() == [1, 2, 3]

    filler.unlink()
    number = run_folder.submit([1, 2, 3])
    with run_folder.journal(number) as journal:
        for row in (1, 2, 3):
            run_folder.render(journal, row)
    assert submission_numbers(run_folder.run)[-1] == number
    assert collect(run_folder.run).ok == 4
    assert verify(run_folder.run).is_sound


def fill_journal(journal: JournalWriter, row: int) -> None:
    """A suspect in flight alone while the last page of the journal fills up."""
    for _ in range(200):
        journal.start(row, f"row{row:04d}", alone=True)


def test_whoever_a_full_disk_ends_did_not_die(
    make_run_folder: Callable[..., RunFolder], disk: Path
) -> None:
    """The last line has room when no other has: else the row would be convicted on the second
    host, and the hosts blamed."""
    run_folder = make_run_folder(2, root=disk / "run")
    with run_folder.journal(run_folder.submit(), host="good") as journal:
        run_folder.render(journal, 1)
        journal.end(End(reason="done"))
    for host in ("n1", "n2", "n3"):
        journal = run_folder.journal(run_folder.submit([0]), host=host)
        reserve = run_folder.run.counters(parse_journal(journal.path)).with_suffix(".reserve")
        assert reserve.stat().st_size == 2 * 4096
        filler = fill(disk)
        with pytest.raises(StorageError, match="journal cannot be written"):
            fill_journal(journal, 0)
        journal.end(End(reason="StorageError", error="No space left on device"))
        journal.close()
        filler.unlink()
        assert not reserve.exists()
        assert read_journal(journal.path).torn_bytes == 0
    blame = read_blame(run_folder.run, all_gone=True)
    assert (blame.deaths, blame.convicted, blame.bad_hosts) == ((), (), {})
    assert {attempt.ended for attempt in read_status(run_folder.run).attempts} == {
        "done",
        "StorageError",
    }


def test_a_disk_that_is_full_from_the_start_leaves_no_room_to_keep(
    make_run_folder: Callable[..., RunFolder], disk: Path
) -> None:
    """What cannot be kept is done without: nothing is raised for it."""
    run_folder = make_run_folder(2, root=disk / "run")
    number = run_folder.submit()
    run_folder.run.counters(Attempt(number, 0, 0, 0)).with_suffix(".reserve").mkdir(parents=True)
    with run_folder.journal(number) as journal:
        run_folder.render(journal, 0)
        journal.end(End(reason="done"))
    assert read_blame(run_folder.run, all_gone=True).deaths == ()


@pytest.mark.parametrize("format_name", ["mp4", "gif", "png"])
def test_a_full_disk_is_told_by_its_number_whoever_wrote_the_file(
    format_name: str, disk: Path
) -> None:
    """The program that makes videos has only words for it; callers look at the number."""
    run, attempt = RunPaths(disk), Attempt(1, 0, 0, 0)
    fill(disk)
    with pytest.raises(MediaError, match="No space left") as caught:
        write_media(render(make_request(0, format_name)), run, attempt, 1)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, None])
def test_the_encoders_words_become_a_number(
    number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = os.strerror(number) if number else "Invalid argument"
    program = tmp_path / "encoder"
    program.write_text(f"#!/bin/sh\necho 'Error writing trailer: {words}' >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(program))
    with pytest.raises(MediaError, match=words) as caught:
        write_media(render(make_request(0, "mp4")), RunPaths(tmp_path), Attempt(1, 0, 0, 0), 1)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == number


def test_a_journal_that_cannot_even_begin_is_a_storage_error(
    make_run_folder: Callable[..., RunFolder], disk: Path
) -> None:
    run_folder = make_run_folder(1, root=disk / "run")
    number = run_folder.submit()
    filler = fill(disk)
    with pytest.raises(StorageError, match="journal cannot be"):
        run_folder.journal(number)
    filler.unlink()
    assert read_status(run_folder.run).left == 1


def test_a_read_only_folder_is_told_and_still_readable(
    make_run_folder: Callable[..., RunFolder], disk: Path
) -> None:
    run_folder = make_run_folder(2, root=disk / "run")
    first = run_folder.journal(run_folder.submit())
    run_folder.render(first, 0)
    first.close()
    number = run_folder.submit([1])
    collect(run_folder.run)
    remount(disk, "ro")
    for change in (
        lambda: run_folder.submit([1]),
        lambda: run_folder.journal(number),
        lambda: collect(run_folder.run),
    ):
        with pytest.raises(StorageError, match="Read-only file system"):
            change()
    status = read_status(run_folder.run)
    assert (status.ok, status.left) == (1, 1)
    assert verify(run_folder.run).is_sound
    assert missing_rows(run_folder.run).pending.tolist() == [1]
    remount(disk, "rw")
    with run_folder.journal(number) as journal:
        run_folder.render(journal, 1)
    assert read_status(run_folder.run).ok == 2
