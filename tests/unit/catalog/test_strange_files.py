"""Pipes, sockets, folders, dangling links where files should be: nobody waits for them, and they
are told by name."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from run_folder import RunFolder, make_request

from batchgen import catalog
from batchgen.catalog import parts as parts_module
from batchgen.catalog.collect import collect
from batchgen.catalog.verify import verify
from batchgen.durable import digest_file, remove, sync
from batchgen.errors import RunStateError
from batchgen.ledger.events import End
from batchgen.ledger.intent import read_intent
from batchgen.ledger.status import read_status
from batchgen.paths import RunPaths
from batchgen.records import Attempt
from batchgen.regular import open_regular
from batchgen.runner.jobs import jobs_of
from batchgen.worker.queue import QueueLost, TicketClient
from batchgen.worker.states import RowStates

pytestmark = pytest.mark.timeout(60)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)  # a socket's path is short
        server.bind(path.name)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_dangling_link(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def a_link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


KINDS = [a_pipe, a_socket, a_folder, a_dangling_link, a_link_to_a_pipe]
Make = Callable[[Path], None]


@pytest.fixture
def done(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> RunFolder:
    """Two rows, rendered and collected."""
    monkeypatch.chdir(tmp_path)
    run_folder = make_run_folder(2)
    with run_folder.journal(run_folder.submit()) as journal:
        run_folder.render(journal, 0)
        run_folder.render(journal, 1)
        journal.end(End(reason="done"))
    collect(run_folder.run)
    return run_folder


def swap(path: Path, make: Make) -> None:
    remove(path)
    make(path)


@pytest.mark.parametrize("make", KINDS)
def test_among_the_media(done: RunFolder, make: Make) -> None:
    first, second = sorted(done.run.media.iterdir())
    swap(first, make)
    strange = second.with_name("strange.png")
    if make is not a_link_to_a_pipe:
        make(strange)
    report = verify(done.run)
    (damage,) = report.damage
    assert damage.path == first.relative_to(done.run.root).as_posix()
    assert strange.name in {Path(f.path).name for f in report.findings} or not strange.exists()
    assert collect(done.run).ok == 2
    after = verify(done.run, repair=True)
    assert (after.voided, after.is_sound) == (1, True)
    assert verify(done.run).findings == ()


@pytest.mark.parametrize("make", KINDS)
def test_the_folder_of_the_catalog(done: RunFolder, make: Make) -> None:
    """It is damage; collect puts it aside, whatever it is, and publishes."""
    swap(done.run.catalog_rows, make)
    if make is a_folder:
        assert verify(done.run).is_sound, "a catalog without a part is one to come"
    else:
        (damage,) = verify(done.run).damage
        assert damage.kind == "catalog" and "is not a folder" in damage.detail
        with pytest.raises(RunStateError, match="is not a folder"):
            catalog.open_runs(done.run.root)
    collect(done.run)
    assert len(pd.read_parquet(done.run.catalog_rows)) == 2 and verify(done.run).is_sound
    aside = list(done.run.catalog_rows.parent.glob("rows.not-a-folder-*"))
    assert len(aside) == (make is not a_folder)


def test_a_run_that_was_moved_to_a_name_that_is_no_utf8_is_not_called_damaged(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    root = make_run_folder(1).run.root
    moved = root.rename(root.with_name("caf\udce9"))
    with pytest.raises(RunStateError, match=r"no name in UTF-8, .*; rename the folder") as raised:
        collect(RunPaths(moved))
    assert str(raised.value).startswith(f"{moved / 'plan.parquet'}: ")
    moved.rename(root)
    assert collect(RunPaths(root)).rows == 1


def test_a_plain_file_in_place_of_the_catalog_is_mended_by_a_repair(done: RunFolder) -> None:
    remove(done.run.catalog_rows)
    done.run.catalog_rows.write_text("somebody's notes")
    assert not verify(done.run).is_sound
    assert verify(done.run, repair=True).is_sound
    (aside,) = done.run.catalog_rows.parent.glob("rows.not-a-folder-*")
    assert aside.read_text() == "somebody's notes"


@pytest.mark.parametrize("make", KINDS)
def test_a_part_of_the_catalog(done: RunFolder, make: Make) -> None:
    swap(done.run.catalog_rows / "part-00000.parquet", make)
    (damage,) = verify(done.run).damage
    assert damage.kind == "catalog" and "is not a regular file" in damage.detail
    with pytest.raises(RunStateError, match=r"part-00000\.parquet is not a regular file"):
        catalog.open_runs(done.run.root)
    assert collect(done.run).ok == len(catalog.open_runs(done.run.root))
    assert verify(done.run).is_sound


@pytest.mark.parametrize("name", ["catalog/runs.parquet", "time_stats.csv"])
def test_a_folder_in_place_of_another_published_file(done: RunFolder, name: str) -> None:
    swap(done.run.root / name, a_folder)
    collect(done.run)
    assert (done.run.root / name).is_file()


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("name", ["7-r0-0.jsonl", "0-r1.accept.json"])
def test_among_the_journals(done: RunFolder, make: Make, name: str) -> None:
    make(done.run.journals / "0001" / name)
    for verb in (read_status, collect, verify):
        with pytest.raises(RunStateError, match=f"{name} is not a regular file"):
            verb(done.run)


def test_a_file_in_place_of_a_folder_of_journals(done: RunFolder) -> None:
    (done.run.journals / "0002").touch()
    for verb in (read_status, collect, verify):
        with pytest.raises(RunStateError, match="0002 is not a folder"):
            verb(done.run)


@pytest.mark.parametrize("make", KINDS)
def test_counters_are_done_without(done: RunFolder, make: Make) -> None:
    swap(done.run.counters(Attempt(1, 0, 0, 0)), make)
    assert read_status(done.run).ok == 2
    assert collect(done.run).ok == 2


@pytest.mark.parametrize("make", KINDS)
def test_small_files(done: RunFolder, make: Make) -> None:
    run = done.run
    swap(run.intent(1), make)
    if make is not a_dangling_link:
        with pytest.raises(RunStateError, match=r"intent\.json is damaged: it is not a file"):
            read_intent(run, 1)
    remove(run.intent(1).with_name("pipe"))
    make(run.jobs(1))
    if make is a_dangling_link:
        assert jobs_of(run, 1) == []
    else:
        with pytest.raises(RunStateError, match=r"jobs\.json is damaged: .*at work, delete it"):
            jobs_of(run, 1)
    state = run.row_state(0, 2)
    state.parent.mkdir(parents=True)
    make(state)
    states = RowStates(run, 2, "strict", "")
    assert states.load(make_request(0)) is None and states.share_left(make_request(0)) == 1.0
    address = run.submission(1) / "address.json"
    remove(address.with_name("pipe"))
    make(address)
    with pytest.raises(QueueLost):
        TicketClient(address, patience_s=0.2)


@pytest.mark.parametrize("make", KINDS)
def test_reading_and_syncing(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"x")
    make(folder / "1.png")
    for call in (digest_file, sync) if make is not a_folder else (digest_file,):
        with pytest.raises(OSError, match=r"not a regular file|No such|such device"):
            call(folder)
    with pytest.raises(OSError):
        open_regular(folder / "1.png")
    with open_regular(folder / "0.png") as file:
        assert file.read() == b"x"


def test_parts_of_two_collects_are_damage(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "GROUP_ROWS", 2)
    monkeypatch.setattr(parts_module, "PART_ROWS", 2)
    run_folder = make_run_folder(4)
    collect(run_folder.run)
    part = run_folder.run.catalog_rows / "part-00001.parquet"
    kept = part.read_bytes()
    with run_folder.journal(run_folder.submit()) as journal:
        run_folder.render(journal, 3)
        journal.end(End(reason="done"))
    collect(run_folder.run)
    assert verify(run_folder.run).is_sound
    part.write_bytes(kept)
    (damage,) = verify(run_folder.run).damage
    assert damage.kind == "catalog" and "different collects" in damage.detail
    assert isinstance(run_folder.run, RunPaths) and verify(run_folder.run, repair=True).is_sound
    assert verify(run_folder.run).findings == ()
