"""`verify`: catalog and media both ways; `--repair` leaves a run that can be finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from run_folder import RunFolder, render

from batchgen.catalog import verify as verify_module
from batchgen.catalog.checking import findings
from batchgen.catalog.checking.inputs import damaged_inputs
from batchgen.catalog.collect import collect
from batchgen.catalog.verify import VerifyReport, verify
from batchgen.errors import RunStateError
from batchgen.ledger.counts import read_counters
from batchgen.ledger.events import End, to_plain
from batchgen.ledger.journal import JournalWriter
from batchgen.ledger.reading.left import missing_rows
from batchgen.ledger.status import read_status
from batchgen.media.publish import write_media
from batchgen.paths import RunPaths
from batchgen.records import Attempt


@pytest.fixture
def finished(make_run_folder: Callable[..., RunFolder]) -> RunFolder:
    """Four manifest rows, the last an alias of the first; all ok, collected."""
    run_folder = make_run_folder(4, aliases={3: 0})
    with run_folder.journal(run_folder.submit([0, 1, 2])) as journal:
        for row in range(3):
            run_folder.render(journal, row)
        journal.end(End(reason="done"))
    collect(run_folder.run)
    return run_folder


def media_of(run_folder: RunFolder, row: int) -> Path:
    return run_folder.run.media / f"row{row:04d}-s1t0r0p0.png"


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else {}


def kinds(report: VerifyReport) -> list[str]:
    return sorted(finding.kind for finding in report.findings)


def test_a_sound_run_is_sound(finished: RunFolder) -> None:
    report = verify(finished.run)
    assert report.is_sound
    assert report.findings == ()
    assert (report.rows, report.ok, report.files) == (4, 4, 3)
    assert report.bytes == sum(file.stat().st_size for file in finished.run.media.iterdir())


def test_a_repair_does_not_end_what_began_while_it_looked(
    finished: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look at all media takes hours; somebody may have the run go on meanwhile."""
    media_of(finished, 1).unlink()

    def go_on(run: RunPaths) -> Iterator[findings.Finding]:
        journals.append(finished.journal(finished.submit([0, 2])))
        yield from damaged_inputs(run)

    journals: list[JournalWriter] = []
    monkeypatch.setattr(verify_module, "damaged_inputs", go_on)  # the last that it looks at
    with pytest.raises(RunStateError, match="began submission 2"):
        verify(finished.run, repair=True)
    (attempt,) = [a for a in read_status(finished.run).attempts if a.life == "running"]
    assert not attempt.fenced
    finished.render(journals[0], 2)
    journals[0].end(End(reason="done"))
    monkeypatch.undo()
    assert verify(finished.run, repair=True).voided == 1


def damage_missing(path: Path) -> None:
    path.unlink()


def damage_size(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_link(path: Path) -> None:
    """The same bytes, but out of the run's reach."""
    elsewhere = path.parents[2] / "elsewhere.png"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (damage_missing, "missing"),
        (damage_size, "size"),
        (damage_empty, "size"),
        (damage_bit, "sha256"),
        (damage_link, "outside"),
    ],
)
def test_damage_is_found_repaired_and_rendered_again(
    damage: Callable[[Path], None], kind: str, finished: RunFolder
) -> None:
    damage(media_of(finished, 1))
    report = verify(finished.run)
    assert not report.is_sound
    found = next(f for f in report.findings if f.kind == kind)
    assert (found.row_index, found.row_id) == (1, "row0001")
    assert found.path == "media/row0001-s1t0r0p0.png"

    repaired = verify(finished.run, repair=True)
    assert repaired.is_sound
    assert (repaired.voided, repaired.submission) == (1, 2)
    assert missing_rows(finished.run).pending.tolist() == [1]
    status = read_status(finished.run)
    assert (status.ok, status.left, status.state) == (3, 1, "stopped")
    frame = pd.read_parquet(finished.run.catalog_rows)
    assert frame["status"].tolist() == ["ok", "pending", "ok", "ok"]

    journal = finished.journal(finished.submit([1]))
    finished.render(journal, 1)
    journal.close()
    assert read_status(finished.run).ok == 4
    collect(finished.run)
    journal_end = verify(finished.run)
    assert journal_end.is_sound
    assert journal_end.findings == ()


def test_of_many_findings_the_first_are_told_and_all_are_counted_and_mended(
    finished: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "MOST", 1)
    for row in range(3):
        media_of(finished, row).unlink()
    (finished.run.media / "note.txt").write_text("mine")
    (finished.run.media / "other.txt").write_text("mine")
    report = verify(finished.run)
    assert kinds(report) == ["missing", "orphan"]
    assert (report.counts, report.damaged) == ({"missing": 3, "orphan": 2}, 3)
    repaired = verify(finished.run, repair=True)
    assert (repaired.voided, repaired.moved, repaired.damaged) == (3, 2, 0)
    assert verify(finished.run).counts == {}


def test_a_damaged_original_takes_its_aliases_along(finished: RunFolder) -> None:
    media_of(finished, 0).unlink()
    report = verify(finished.run, repair=True)
    assert report.voided == 1
    assert (report.ok, report.files, report.rows) == (2, 2, 4), "as it stands after the repair"
    assert report.bytes == sum(file.stat().st_size for file in finished.run.media.iterdir())
    status = read_status(finished.run)
    assert (status.ok, status.left) == (2, 2)


def test_a_file_that_does_not_decode_or_has_other_frames_is_found(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Published with a right digest, but by a broken encoder."""
    from batchgen.durable import digest_file

    run_folder = make_run_folder(2)
    attempt = Attempt(run_folder.submit(), 0, 0, 0)
    with run_folder.journal(1) as journal:
        media = write_media(render(run_folder.requests[0]), run_folder.run, attempt, 2)
        journal.commit(run_folder.commit_of(0, attempt, replace(media, num_frames=5)))
        media = write_media(render(run_folder.requests[1]), run_folder.run, attempt, 2)
        path = run_folder.run.root / media.path
        path.write_bytes(b"not a picture")
        digest, size = digest_file(path)
        journal.commit(run_folder.commit_of(1, attempt, replace(media, sha256=digest, bytes=size)))
        journal.end(End(reason="done"))
    assert kinds(verify(run_folder.run)) == ["frames", "undecodable"]


@pytest.mark.parametrize("purge", [False, True])
def test_orphans_are_waste_and_repair_moves_or_deletes_them(
    make_run_folder: Callable[..., RunFolder], purge: bool
) -> None:
    """Of a retried row, of a crash, of nobody; a folder of frames too. The rest stays."""
    run_folder = make_run_folder(2, format_name="frames")
    first = run_folder.journal(run_folder.submit())
    run_folder.render(first, 0)
    run_folder.render(first, 1)
    first.end(End(reason="done"))
    second = run_folder.journal(run_folder.submit([0]))
    run_folder.render(second, 0)
    second.end(End(reason="done"))
    (run_folder.run.media / "row0001-s9t0r0p0.tmp.frames").mkdir()
    (run_folder.run.media / "note.txt").write_text("mine")
    (run_folder.run.media / ".hydra").mkdir()
    report = verify(run_folder.run)
    assert report.is_sound
    assert kinds(report) == ["orphan", "orphan", "temporary"]
    kept = files_of(run_folder.run.media / "row0000-s1t0r0p0.frames")
    repaired = verify(run_folder.run, repair=True, purge=purge)
    counts = (repaired.moved, repaired.deleted, repaired.voided, repaired.submission)
    assert counts == ((0, 3, 0, 3) if purge else (3, 0, 0, 3))
    moved = run_folder.run.orphans / "media/row0000-s1t0r0p0.frames"
    assert files_of(moved) == ({} if purge else kept)
    names = sorted(entry.name for entry in run_folder.run.media.iterdir())
    assert names == [".hydra", "row0000-s2t0r0p0.frames", "row0001-s1t0r0p0.frames"]
    assert verify(run_folder.run).findings == ()


def test_repair_waits_for_live_attempts_and_checks_leave_their_files_alone(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(2)
    journal = run_folder.journal(run_folder.submit())
    run_folder.render(journal, 0)
    attempt = Attempt(1, 0, 0, 0)
    write_media(
        render(run_folder.requests[1]), run_folder.run, attempt, 2
    )  # renamed, not committed yet
    report = verify(run_folder.run)
    assert (report.findings, report.live) == ((), 1)
    with pytest.raises(RunStateError, match=r"nothing is at work \(s1t0r0p0 on"):
        verify(run_folder.run, repair=True)
    journal.end(End(reason="done"))
    assert kinds(verify(run_folder.run)) == ["orphan"]


def test_a_zombie_cannot_publish_an_orphan_that_repair_moved(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """On a machine that was not heard of for a minute, about to commit."""
    run_folder = make_run_folder(2)
    zombie, attempt = run_folder.journal(run_folder.submit()), Attempt(1, 0, 0, 0)
    run_folder.render(zombie, 0)
    zombie.phase("load", 0.1)  # writes its counters
    media = write_media(render(run_folder.requests[1]), run_folder.run, attempt, 2)
    path = run_folder.run.counters(attempt)
    known = read_counters(path)
    assert known is not None
    elsewhere = replace(known.process, place="another boot")
    path.write_text(json.dumps(to_plain(replace(known, process=elsewhere, t=known.t - 61))))
    repaired = verify(run_folder.run, repair=True)
    assert (repaired.moved, repaired.voided, repaired.submission) == (1, 0, 2)
    zombie.commit(run_folder.commit_of(1, attempt, media))
    assert verify(run_folder.run).is_sound
    status = read_status(run_folder.run)
    assert (status.ok, status.left) == (1, 1)


def test_two_rows_with_one_file_are_found_and_both_taken_back(finished: RunFolder) -> None:
    with finished.journal(finished.submit([1, 2])) as journal:
        commit = finished.render(journal, 1)
        journal.commit(finished.commit_of(2, Attempt(2, 0, 0, 0), commit.media))
        journal.end(End(reason="done"))
    assert kinds(verify(finished.run)).count("duplicate") == 2
    assert verify(finished.run, repair=True).voided == 2
    assert missing_rows(finished.run).pending.tolist() == [1, 2]
    assert verify(finished.run).is_sound


def test_a_damaged_journal_line_is_told_and_its_row_rendered_again(finished: RunFolder) -> None:
    path = finished.run.journal(Attempt(1, 0, 0, 0))
    lines = path.read_bytes().splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if b'"commit","row_index":1' in line)
    lines[place] = lines[place].replace(b'"row_index":1', b'"row_index":2')
    path.write_bytes(b"".join(lines))
    report = verify(finished.run)
    assert "journal" in kinds(report)
    assert not report.is_sound
    assert missing_rows(finished.run).pending.tolist() == [1]


def test_an_older_catalog_is_told_but_is_no_damage(finished: RunFolder) -> None:
    with finished.journal(finished.submit([1])) as journal:
        finished.render(journal, 1)
        journal.end(End(reason="done"))
    report = verify(finished.run)
    assert report.is_sound
    assert kinds(report) == ["orphan", "stale"]


def test_a_catalog_that_does_not_fit_is_damage_and_is_made_anew(finished: RunFolder) -> None:
    part = next(finished.run.catalog_rows.iterdir())
    table = pq.read_table(part)
    spoil: list[Callable[[], object]] = [
        lambda: pq.write_table(table.slice(0, 3), part),
        lambda: pq.write_table(table.take([0, 1, 2, 3, 3]), part),
        lambda: pq.write_table(table.take([1, 0, 2, 3]), part),
        lambda: part.write_bytes(b"PAR1"),
    ]
    for damage in spoil:
        damage()
        assert "catalog" in kinds(verify(finished.run))
        assert verify(finished.run, repair=True).is_sound
        assert verify(finished.run).findings == ()


def test_repair_that_is_cut_off_is_finished_by_the_next_one(
    finished: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for row in (0, 1):
        media_of(finished, row).unlink()
    monkeypatch.setenv("BATCHGEN_FAILPOINT", "submission.after_intent:1:raise")
    with pytest.raises(RuntimeError):
        verify(finished.run, repair=True)
    monkeypatch.delenv("BATCHGEN_FAILPOINT")
    assert verify(finished.run, repair=True).voided == 2
    assert missing_rows(finished.run).pending.tolist() == [0, 1]
    assert read_status(finished.run).left == 3


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    from batchgen.paths import RunPaths

    with pytest.raises(RunStateError, match="is not a run folder"):
        verify(RunPaths(tmp_path))
