"""A ledger that lost something: it is told by name, nothing goes on over it, no media vanish."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from quick_cases import first_quick
from run_folder import RunFolder, render

from batchgen.catalog.collect import collect
from batchgen.catalog.verify import verify
from batchgen.cli.main import main
from batchgen.errors import RunStateError
from batchgen.ledger.events import End, decode_line, encode_line
from batchgen.ledger.intent import submission_numbers
from batchgen.ledger.reading.left import missing_rows
from batchgen.ledger.restarts import fence_restart
from batchgen.ledger.upkeep.losses import find_losses
from batchgen.media.publish import write_media
from batchgen.paths import RunPaths
from batchgen.records import Attempt, Commit, RankSeconds

FIRST, SECOND = "journal/0001/0-r0-0.jsonl", "journal/0002/0-r0-0.jsonl"


@pytest.fixture
def run_folder(make_run_folder: Callable[..., RunFolder]) -> RunFolder:
    """Four rows: two of a first submission, two of a second; not collected."""
    made = make_run_folder(4)
    for number, rows in enumerate(([0, 1], [2, 3]), start=1):
        with made.journal(made.submit(rows)) as journal:
            assert journal.path.parent.name == f"{number:04d}"
            for row in rows:
                made.render(journal, row)
            journal.end(End(reason="done"))
    return made


def contents(run: RunPaths) -> set[bytes]:
    """What all media hold, wherever they are now."""
    folders = (run.media, run.orphans)
    return {p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()}


def gone(path: Path) -> None:
    path.unlink()


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    """Between two lines: nothing in the file itself shows it."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))


def folder_gone(path: Path) -> None:
    shutil.rmtree(path.parent)


def all_gone(path: Path) -> None:
    shutil.rmtree(path.parents[1])


def forget_synced(run_folder: RunFolder) -> None:
    """Counters of the second submission as they were before they knew of it."""
    path = run_folder.run.counters(Attempt(2, 0, 0, 0))
    path.write_text(path.read_text().replace('"synced": ', '"other": '))


def refuse(run_folder: RunFolder, match: str) -> None:
    """Neither a collect nor a submission goes on, and neither leaves anything behind."""
    before = sorted(run_folder.run.root.rglob("*"))
    for verb in (lambda: collect(run_folder.run), lambda: run_folder.submit([0])):
        with pytest.raises(RunStateError, match=match):
            verb()
    assert sorted(run_folder.run.root.rglob("*")) == before


def mend(run_folder: RunFolder, purge: bool = False) -> None:
    """Repair, render what is left, and all is well again; no picture vanishes."""
    media = contents(run_folder.run)
    repaired = verify(run_folder.run, repair=True, purge=purge)
    assert repaired.is_sound and repaired.deleted == 0
    assert contents(run_folder.run) == media
    assert find_losses(run_folder.run) == [] and verify(run_folder.run).findings == ()
    left = missing_rows(run_folder.run).all.tolist()
    assert repaired.left == bool(left)
    collect(run_folder.run)
    if left:
        with run_folder.journal(run_folder.submit(left)) as journal:
            for row in left:
                run_folder.render(journal, row)
            journal.end(End(reason="done"))
    assert collect(run_folder.run).ok == 4
    assert verify(run_folder.run).findings == ()


@pytest.mark.parametrize("collected", first_quick([False, True], 1))
@pytest.mark.parametrize("damage", first_quick([gone, cut, emptied, folder_gone, all_gone], 3))
@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_a_lost_emptied_or_shortened_journal_is_told_and_mended(
    run_folder: RunFolder, name: str, damage: Callable[[Path], None], collected: bool
) -> None:
    """The first by the length that the second submission accepted, the second by its counters."""
    if collected:
        collect(run_folder.run)
    damage(run_folder.run.root / name)
    lost = [f for f in verify(run_folder.run).damage if f.kind == "lost"]
    told = next(f for f in lost if f.path == name)
    says = r"submissions/0002/intent\.json" if name == FIRST else r"counters/0002/0-r0-0\.json"
    refuse(run_folder, rf"{name} (is gone|has \d+ bytes); it had \d+( bytes)? by {says}")
    assert "it had" in told.detail
    assert main(["verify", str(run_folder.run.root)]) == 1
    assert main(["collect", str(run_folder.run.root)]) == 2
    mend(run_folder, purge=True)


def test_what_only_the_catalog_knows_is_lost_too(run_folder: RunFolder) -> None:
    collect(run_folder.run)
    forget_synced(run_folder)
    cut(run_folder.run.root / SECOND)
    lost = [f for f in verify(run_folder.run).damage if f.kind == "lost"]
    assert [f.row_id for f in lost] == ["row0003"]
    with pytest.raises(RunStateError, match="catalog/rows has 1 ok rows whose lines are gone"):
        collect(run_folder.run)
    mend(run_folder)


def test_a_journal_of_another_run_does_not_hide_what_is_lost(run_folder: RunFolder) -> None:
    """It has lines of the same rows, and is no shorter than what it stands for."""
    collect(run_folder.run)
    path = run_folder.run.root / SECOND
    lines = [decode_line(line) for line in path.read_bytes().splitlines(keepends=True)]
    others = [replace(e, row_key="f" * 64) if isinstance(e, Commit) else e for e in lines]
    path.write_bytes(b"".join(encode_line(event, RankSeconds()) for event in others))
    assert {f.row_index for f in verify(run_folder.run).damage if f.kind == "lost"} == {2, 3}
    with pytest.raises(RunStateError, match="2 ok rows whose lines are gone"):
        collect(run_folder.run)
    mend(run_folder, purge=True)


def test_what_only_media_know_is_lost_too(run_folder: RunFolder) -> None:
    shutil.rmtree(run_folder.run.counters_dir / "0002")
    (run_folder.run.root / SECOND).unlink()
    lost = [f for f in verify(run_folder.run).damage if f.kind == "lost"]
    assert [f.path for f in lost] == [SECOND]
    mend(run_folder)


def test_what_a_restart_accepted_is_known(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(4)
    run_folder.submit()
    with run_folder.journal(1) as journal:
        for row in range(4):
            run_folder.render(journal, row)
    fence_restart(run_folder.run, Attempt(1, 0, 1, 0))
    shutil.rmtree(run_folder.run.counters_dir)
    emptied(journal.path)
    refuse(run_folder, r"has 0 bytes; it had \d+ by journal/0001/0-r1\.accept\.json")
    mend(run_folder)


@pytest.mark.parametrize(
    "path", ["0001/intent.json", "0002/intent.json", "0001/shards.parquet", "0001", "0002", ""]
)
def test_a_lost_record_of_a_submission_is_told_and_mended(run_folder: RunFolder, path: str) -> None:
    target = run_folder.run.submissions / path
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    run_folder.age()
    lost = [f.path for f in verify(run_folder.run).damage if f.kind == "lost"]
    assert lost and all(name.startswith(f"submissions/{path[:4]}") for name in lost)
    if path.startswith("0001"):  # all that counts of it is in the later one
        assert collect(run_folder.run).ok == 4
    else:
        refuse(run_folder, r"submissions/000\d/(intent\.json|shards\.parquet) is gone")
    assert verify(run_folder.run, repair=True).ok == 4, (
        "its journals are there: nothing is lost of rows"
    )
    mend(run_folder)


def test_all_but_the_catalog_is_lost(run_folder: RunFolder) -> None:
    """The repair's submission gets a number that no file of before bears."""
    collect(run_folder.run)
    for folder in (
        run_folder.run.journals,
        run_folder.run.submissions,
        run_folder.run.counters_dir,
    ):
        shutil.rmtree(folder)
    refuse(
        run_folder, r"submissions/0001/intent\.json is gone; submissions/0002/intent\.json is gone"
    )
    mend(run_folder)
    assert submission_numbers(run_folder.run)[0] == 3


def test_lines_that_a_power_cut_took_are_no_loss(make_run_folder: Callable[..., RunFolder]) -> None:
    """A start line is not synced: the counters know of it, the disk need not."""
    run_folder = make_run_folder(2)
    with run_folder.journal(run_folder.submit()) as journal:
        run_folder.render(journal, 0)
        size = journal.path.stat().st_size
        journal.start(1, "row0001")
    journal.path.write_bytes(journal.path.read_bytes()[:size])
    assert collect(run_folder.run).ok == 1
    assert verify(run_folder.run).findings == ()
    run_folder.submit([1])


def test_counters_of_before_they_knew_what_was_synced_tell_of_a_journal(
    run_folder: RunFolder,
) -> None:
    forget_synced(run_folder)
    assert find_losses(run_folder.run) == []
    emptied(run_folder.run.root / SECOND)
    assert [loss.path for loss in find_losses(run_folder.run)] == [SECOND]


def test_a_purge_keeps_what_a_line_calls_the_media_of_a_row_that_is_not_ok(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Of a fenced-off attempt: nobody else has drawn the row. What nothing names is deleted."""
    run_folder = make_run_folder(2)
    zombie = run_folder.journal(run_folder.submit())
    run_folder.submit()
    commit = run_folder.render(zombie, 0)
    write_media(render(run_folder.requests[1]), run_folder.run, Attempt(1, 0, 0, 0), 2)
    zombie.end(End(reason="done"))
    repaired = verify(run_folder.run, repair=True, purge=True)
    assert (repaired.moved, repaired.deleted) == (1, 1)
    assert commit.media is not None
    assert (run_folder.run.orphans / commit.media.path).exists()


def test_nothing_that_was_set_aside_is_overwritten(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(1)
    for text in ("one", "two", "three"):
        run_folder.run.media.mkdir(exist_ok=True)
        (run_folder.run.media / "note.txt").write_text(text)
        assert verify(run_folder.run, repair=True).moved == 1
    folder = run_folder.run.orphans / "media"
    assert {p.name: p.read_text() for p in folder.iterdir()} == {
        "note.txt": "one",
        "note.txt.1": "two",
        "note.txt.2": "three",
    }


def test_a_collect_that_another_one_overtakes_calls_nothing_lost(
    run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it reads of the journals is older than the catalog that it meets."""
    from batchgen.catalog import collect as catalog

    journal = run_folder.journal(run_folder.submit([0, 1]))
    real = catalog.winners

    def overtaken(run: RunPaths) -> object:
        found = real(run)
        monkeypatch.setattr(catalog, "winners", real)
        run_folder.render(journal, 0)
        (run_folder.run.root / FIRST).write_bytes(first)
        collect(run)
        return found

    first = (run_folder.run.root / FIRST).read_bytes()
    monkeypatch.setattr(catalog, "winners", overtaken)
    collect(run_folder.run)
    journal.close()
    assert verify(run_folder.run).is_sound


def test_purge_without_repair_is_refused(
    run_folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(run_folder.run.root), "--purge"]) == 2
    assert "--purge needs --repair" in capsys.readouterr().err
