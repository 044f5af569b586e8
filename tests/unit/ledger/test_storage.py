"""A full disk and a read-only folder: clear errors, valid state, and going on afterwards."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Lab

from batchgen.errors import MediaError, StorageError
from batchgen.ledger.catalog import collect
from batchgen.ledger.intent import submission_numbers
from batchgen.ledger.journal import read_journal
from batchgen.ledger.status import read_status
from batchgen.ledger.verify import verify
from batchgen.ledger.winners import missing_rows


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
    make_lab: Callable[..., Lab], disk: Path
) -> None:
    lab = make_lab(4, root=disk / "run")
    journal = lab.journal(lab.submit())
    lab.render(journal, 0)
    filler = fill(disk)
    with pytest.raises(MediaError, match="No space left"):
        lab.render(journal, 1)
    with pytest.raises(StorageError, match=r"0-r0-0\.jsonl: the journal cannot be written"):
        for row in range(1, 200):  # until the last page of the journal is full
            journal.start(row, f"row{row:04d}")
    journal.close()
    content = read_journal(journal.path)
    assert (content.bad_lines, content.torn_bytes) == ((), 0)
    assert read_status(lab.run).ok == 1
    with pytest.raises(StorageError, match="cannot be written"):
        lab.submit([1, 2, 3])
    with pytest.raises(StorageError, match="catalog cannot be written"):
        collect(lab.run)
    assert missing_rows(lab.run).pending.tolist() == [1, 2, 3]

    filler.unlink()
    number = lab.submit([1, 2, 3])
    with lab.journal(number) as journal:
        for row in (1, 2, 3):
            lab.render(journal, row)
    assert submission_numbers(lab.run)[-1] == number
    assert collect(lab.run).ok == 4
    assert verify(lab.run).is_sound


def test_a_journal_that_cannot_even_begin_is_a_storage_error(
    make_lab: Callable[..., Lab], disk: Path
) -> None:
    lab = make_lab(1, root=disk / "run")
    number = lab.submit()
    filler = fill(disk)
    with pytest.raises(StorageError, match="journal cannot be"):
        lab.journal(number)
    filler.unlink()
    assert read_status(lab.run).left == 1


def test_a_read_only_folder_is_told_and_still_readable(
    make_lab: Callable[..., Lab], disk: Path
) -> None:
    lab = make_lab(2, root=disk / "run")
    first = lab.journal(lab.submit())
    lab.render(first, 0)
    first.close()
    number = lab.submit([1])
    collect(lab.run)
    remount(disk, "ro")
    for change in (lambda: lab.submit([1]), lambda: lab.journal(number), lambda: collect(lab.run)):
        with pytest.raises(StorageError, match="Read-only file system"):
            change()
    status = read_status(lab.run)
    assert (status.ok, status.left) == (1, 1)
    assert verify(lab.run).is_sound
    assert missing_rows(lab.run).pending.tolist() == [1]
    remount(disk, "rw")
    with lab.journal(number) as journal:
        lab.render(journal, 1)
    assert read_status(lab.run).ok == 2
