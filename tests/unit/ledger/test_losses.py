"""A ledger that lost something: it is told by name, nothing goes on over it, no media vanish."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from run_folder import RunFolder, render

from batchgen.catalog.collect import collect
from batchgen.catalog.verify import verify
from batchgen.cli.main import main
from batchgen.errors import RunStateError
from batchgen.ledger.events import End, decode_line, encode_line
from batchgen.ledger.intent import submission_numbers
from batchgen.ledger.losses import find_losses
from batchgen.ledger.restarts import accept_restart
from batchgen.ledger.winners import missing_rows
from batchgen.media.publish import write_media
from batchgen.paths import RunPaths
from batchgen.records import Attempt, Commit, RankSeconds

FIRST, SECOND = "journal/0001/0-r0-0.jsonl", "journal/0002/0-r0-0.jsonl"


@pytest.fixture
def lab(make_lab: Callable[..., RunFolder]) -> RunFolder:
    """Four rows: two of a first submission, two of a second; not collected."""
    made = make_lab(4)
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


def forget_synced(lab: RunFolder) -> None:
    """Counters of the second submission as they were before they knew of it."""
    path = lab.run.counters(Attempt(2, 0, 0, 0))
    path.write_text(path.read_text().replace('"synced": ', '"other": '))


def refuse(lab: RunFolder, match: str) -> None:
    """Neither a collect nor a submission goes on, and neither leaves anything behind."""
    before = sorted(lab.run.root.rglob("*"))
    for verb in (lambda: collect(lab.run), lambda: lab.submit([0])):
        with pytest.raises(RunStateError, match=match):
            verb()
    assert sorted(lab.run.root.rglob("*")) == before


def mend(lab: RunFolder, purge: bool = False) -> None:
    """Repair, render what is left, and all is well again; no picture vanishes."""
    media = contents(lab.run)
    repaired = verify(lab.run, repair=True, purge=purge)
    assert repaired.is_sound and repaired.deleted == 0
    assert contents(lab.run) == media
    assert find_losses(lab.run) == [] and verify(lab.run).findings == ()
    left = missing_rows(lab.run).all.tolist()
    assert repaired.left == bool(left)
    collect(lab.run)
    if left:
        with lab.journal(lab.submit(left)) as journal:
            for row in left:
                lab.render(journal, row)
            journal.end(End(reason="done"))
    assert collect(lab.run).ok == 4
    assert verify(lab.run).findings == ()


@pytest.mark.parametrize("collected", [False, True])
@pytest.mark.parametrize("damage", [gone, emptied, cut, folder_gone, all_gone])
@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_a_lost_emptied_or_shortened_journal_is_told_and_mended(
    lab: RunFolder, name: str, damage: Callable[[Path], None], collected: bool
) -> None:
    """The first by the length that the second submission accepted, the second by its counters."""
    if collected:
        collect(lab.run)
    damage(lab.run.root / name)
    lost = [f for f in verify(lab.run).damage if f.kind == "lost"]
    told = next(f for f in lost if f.path == name)
    says = r"submissions/0002/intent\.json" if name == FIRST else r"counters/0002/0-r0-0\.json"
    refuse(lab, rf"{name} (is gone|has \d+ bytes); it had \d+( bytes)? by {says}")
    assert "it had" in told.detail
    assert main(["verify", str(lab.run.root)]) == 1
    assert main(["collect", str(lab.run.root)]) == 2
    mend(lab, purge=True)


def test_what_only_the_catalog_knows_is_lost_too(lab: RunFolder) -> None:
    collect(lab.run)
    forget_synced(lab)
    cut(lab.run.root / SECOND)
    lost = [f for f in verify(lab.run).damage if f.kind == "lost"]
    assert [f.row_id for f in lost] == ["row0003"]
    with pytest.raises(RunStateError, match="catalog/rows has 1 ok rows whose lines are gone"):
        collect(lab.run)
    mend(lab)


def test_a_journal_of_another_run_does_not_hide_what_is_lost(lab: RunFolder) -> None:
    """It has lines of the same rows, and is no shorter than what it stands for."""
    collect(lab.run)
    path = lab.run.root / SECOND
    lines = [decode_line(line) for line in path.read_bytes().splitlines(keepends=True)]
    others = [replace(e, row_key="f" * 64) if isinstance(e, Commit) else e for e in lines]
    path.write_bytes(b"".join(encode_line(event, RankSeconds()) for event in others))
    assert {f.row_index for f in verify(lab.run).damage if f.kind == "lost"} == {2, 3}
    with pytest.raises(RunStateError, match="2 ok rows whose lines are gone"):
        collect(lab.run)
    mend(lab, purge=True)


def test_what_only_media_know_is_lost_too(lab: RunFolder) -> None:
    shutil.rmtree(lab.run.counters_dir / "0002")
    (lab.run.root / SECOND).unlink()
    lost = [f for f in verify(lab.run).damage if f.kind == "lost"]
    assert [f.path for f in lost] == [SECOND]
    mend(lab)


def test_what_a_restart_accepted_is_known(make_lab: Callable[..., RunFolder]) -> None:
    lab = make_lab(4)
    lab.submit()
    with lab.journal(1) as journal:
        for row in range(4):
            lab.render(journal, row)
    accept_restart(lab.run, Attempt(1, 0, 1, 0))
    shutil.rmtree(lab.run.counters_dir)
    emptied(journal.path)
    refuse(lab, r"has 0 bytes; it had \d+ by journal/0001/0-r1\.accept\.json")
    mend(lab)


@pytest.mark.parametrize(
    "path", ["0001/intent.json", "0002/intent.json", "0001/shards.parquet", "0001", "0002", ""]
)
def test_a_lost_record_of_a_submission_is_told_and_mended(lab: RunFolder, path: str) -> None:
    target = lab.run.submissions / path
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    lab.age()
    lost = [f.path for f in verify(lab.run).damage if f.kind == "lost"]
    assert lost and all(name.startswith(f"submissions/{path[:4]}") for name in lost)
    if path.startswith("0001"):  # all that counts of it is in the later one
        assert collect(lab.run).ok == 4
    else:
        refuse(lab, r"submissions/000\d/(intent\.json|shards\.parquet) is gone")
    assert verify(lab.run, repair=True).ok == 4, "its journals are there: nothing is lost of rows"
    mend(lab)


def test_all_but_the_catalog_is_lost(lab: RunFolder) -> None:
    """The repair's submission gets a number that no file of before bears."""
    collect(lab.run)
    for folder in (lab.run.journals, lab.run.submissions, lab.run.counters_dir):
        shutil.rmtree(folder)
    refuse(lab, r"submissions/0001/intent\.json is gone; submissions/0002/intent\.json is gone")
    mend(lab)
    assert submission_numbers(lab.run)[0] == 3


def test_lines_that_a_power_cut_took_are_no_loss(make_lab: Callable[..., RunFolder]) -> None:
    """A start line is not synced: the counters know of it, the disk need not."""
    lab = make_lab(2)
    with lab.journal(lab.submit()) as journal:
        lab.render(journal, 0)
        size = journal.path.stat().st_size
        journal.start(1, "row0001")
    journal.path.write_bytes(journal.path.read_bytes()[:size])
    assert collect(lab.run).ok == 1
    assert verify(lab.run).findings == ()
    lab.submit([1])


def test_counters_of_before_they_knew_what_was_synced_tell_of_a_journal(lab: RunFolder) -> None:
    forget_synced(lab)
    assert find_losses(lab.run) == []
    emptied(lab.run.root / SECOND)
    assert [loss.path for loss in find_losses(lab.run)] == [SECOND]


def test_a_purge_keeps_what_a_line_calls_the_media_of_a_row_that_is_not_ok(
    make_lab: Callable[..., RunFolder],
) -> None:
    """Of a fenced-off attempt: nobody else has drawn the row. What nothing names is deleted."""
    lab = make_lab(2)
    zombie = lab.journal(lab.submit())
    lab.submit()
    commit = lab.render(zombie, 0)
    write_media(render(lab.requests[1]), lab.run, Attempt(1, 0, 0, 0), 2)
    zombie.end(End(reason="done"))
    repaired = verify(lab.run, repair=True, purge=True)
    assert (repaired.moved, repaired.deleted) == (1, 1)
    assert commit.media is not None
    assert (lab.run.orphans / commit.media.path).exists()


def test_nothing_that_was_set_aside_is_overwritten(make_lab: Callable[..., RunFolder]) -> None:
    lab = make_lab(1)
    for text in ("one", "two", "three"):
        lab.run.media.mkdir(exist_ok=True)
        (lab.run.media / "note.txt").write_text(text)
        assert verify(lab.run, repair=True).moved == 1
    folder = lab.run.orphans / "media"
    assert {p.name: p.read_text() for p in folder.iterdir()} == {
        "note.txt": "one",
        "note.txt.1": "two",
        "note.txt.2": "three",
    }


def test_a_collect_that_another_one_overtakes_calls_nothing_lost(
    lab: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it reads of the journals is older than the catalog that it meets."""
    from batchgen.catalog import collect as catalog

    journal = lab.journal(lab.submit([0, 1]))
    real = catalog.winners

    def overtaken(run: RunPaths) -> object:
        found = real(run)
        monkeypatch.setattr(catalog, "winners", real)
        lab.render(journal, 0)
        (lab.run.root / FIRST).write_bytes(first)
        collect(run)
        return found

    first = (lab.run.root / FIRST).read_bytes()
    monkeypatch.setattr(catalog, "winners", overtaken)
    collect(lab.run)
    journal.close()
    assert verify(lab.run).is_sound


def test_purge_without_repair_is_refused(
    lab: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(lab.run.root), "--purge"]) == 2
    assert "--purge needs --repair" in capsys.readouterr().err
