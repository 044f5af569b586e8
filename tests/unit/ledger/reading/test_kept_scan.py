"""What is kept of ended journals says what reading them says, and is not believed where it might
not."""

from __future__ import annotations

import os
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from run_folder import RunFolder, make_run_folder

from batchgen.ledger.events import End
from batchgen.ledger.intent import FencedJournal
from batchgen.ledger.reading import kept_scan, scan
from batchgen.ledger.reading.kept_scan import index_quickly, scan_and_keep
from batchgen.ledger.reading.keys import KEY_TYPE, key_number
from batchgen.ledger.reading.plan_rows import read_keys
from batchgen.ledger.reading.scan import CommitIndex, index_commits


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Two ended journals, with a failed row and a phase, and one that goes on; then a fence that
    cuts the second one."""
    monkeypatch.setattr(kept_scan, "LEAST_LINES", 1)
    made = make_run_folder(tmp_path / "run", 8)
    number = made.submit()
    for replica, rows in enumerate(([0, 1, 2], [3, 4], [5])):
        with made.journal(number, replica=replica, card=f"uuid-{replica}") as journal:
            journal.phase("load", 2.0)
            for row in rows[1:]:
                made.render(journal, row)
            made.fail(journal, rows[0])
            if replica < 2:
                journal.end(End(reason="done", busy_s=3.0))
    return made


def keep(folder: RunFolder) -> CommitIndex:
    """What reading all journals finds, kept."""
    return index_commits(folder.run, partial(scan_and_keep, folder.run))


def assert_same(one: CommitIndex, other: CommitIndex) -> None:
    for field in fields(CommitIndex):
        if field.name == "journals":
            assert one.journals == other.journals
        else:
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert a.dtype == b.dtype and np.array_equal(a, b), field.name


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the journals that are read."""
    names: list[str] = []
    plain = scan.scan_journal

    def noting(journal: FencedJournal) -> scan.Scanned:
        names.append(journal.path.name)
        return plain(journal)

    for module in (scan, kept_scan):
        monkeypatch.setattr(module, "scan_journal", noting)
    return names


def test_ended_journals_are_not_read_again(folder: RunFolder, read: list[str]) -> None:
    whole = keep(folder)
    assert len(whole.row_index) == 6 and len(read) == 3
    read.clear()
    assert_same(index_quickly(folder.run), whole)
    assert read == ["0-r0-2.jsonl"]  # the one that goes on


def test_the_fence_of_a_later_submission_holds_for_what_is_kept(folder: RunFolder) -> None:
    keep(folder)
    folder.submit()
    late = folder.journal(2)
    folder.render(late, 5)
    late.close()
    assert_same(index_quickly(folder.run), index_commits(folder.run))
    for facts in index_quickly(folder.run).journals:
        assert (facts.journal.limit is None) == (facts.journal.attempt.submission == 2)


def journal(folder: RunFolder) -> Path:
    return folder.run.journals / "0001" / "0-r0-0.jsonl"


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more\n")


def replace_bytes(path: Path) -> None:
    """Of the same size, some seconds later."""
    data = path.read_bytes().replace(b'"status":"ok"', b'"status":"OK"')
    path.write_bytes(data)
    os.utime(path, ns=(0, 10**18))


def cut(path: Path) -> None:
    stat = path.stat()
    os.truncate(path, stat.st_size - 30)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [append, replace_bytes, cut])
def test_a_journal_that_has_changed_is_read(folder: RunFolder, read: list[str], change) -> None:
    keep(folder)
    change(journal(folder))
    read.clear()
    found = index_quickly(folder.run)
    assert journal(folder).name in read
    assert_same(found, index_commits(folder.run))


@pytest.mark.parametrize("damage", ["gone", "empty", "torn", "other", "sealed", "format"])
def test_what_is_kept_and_damaged_is_not_believed(
    folder: RunFolder, read: list[str], damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(folder)
    path = folder.run.kept_scan(journal(folder))
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "format":
        monkeypatch.setattr(kept_scan, "FORMAT", 99)
    else:
        middle = data.index(b"row_index.npy") + 250
        torn = data[:middle] + bytes(reversed(data[middle : middle + 8])) + data[middle + 8 :]
        flags = data.index(b"PK\x01\x02") + 8  # says that it is encrypted
        sealed = data[:flags] + bytes([data[flags] | 1]) + data[flags + 1 :]
        others = {"empty": b"", "torn": data[:-200], "other": torn, "sealed": sealed}
        path.write_bytes(others[damage])
    read.clear()
    found = index_quickly(folder.run)
    assert journal(folder).name in read
    assert_same(found, index_commits(folder.run))
    keep(folder)  # and it is mended
    read.clear()
    index_quickly(folder.run)
    assert journal(folder).name not in read


def test_nothing_is_kept_of_a_journal_with_a_bad_line(folder: RunFolder) -> None:
    data = bytearray(journal(folder).read_bytes())
    place = data.index(b'"status":"ok"')
    data[place + 11] ^= 1
    journal(folder).write_bytes(bytes(data))
    whole = keep(folder)
    assert whole.journals[0].bad_lines
    assert not folder.run.kept_scan(journal(folder)).exists()
    assert_same(index_quickly(folder.run), whole)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("keys", [["ab" * 32, "cd" * 32, "ef" * 32], ["short", "x" * 70, ""], []])
def test_keys_of_the_plan_are_the_same_however_they_are_read(
    keys: list[str], kind: pa.DataType
) -> None:
    """Those of one length from Arrow's memory, others one by one; also of a part of a column."""
    column = pa.array(["00" * 32, *keys, "11" * 32], kind)
    for part, wanted in (
        (column, column.to_pylist()),
        (column.slice(1, len(keys)), keys),
    ):
        found = read_keys(part)
        assert found.dtype == KEY_TYPE
        assert found.tolist() == [key_number(key.encode()) for key in wanted]
