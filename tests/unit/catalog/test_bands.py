"""In bands of a few rows the ledger says what it says in a single one: a collect leaves the same
catalog, byte for byte, and the same rows are left to render."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from quick_cases import first_quick
from run_folder import RunFolder, fail, make_run_folder

from batchgen.catalog import parts
from batchgen.catalog.collect import CatalogSummary, collect
from batchgen.errors import RunStateError
from batchgen.ledger.blame.hosts import rows_rendered
from batchgen.ledger.blame.rows import read_blame
from batchgen.ledger.events import End, encode_line
from batchgen.ledger.intent import read_intent
from batchgen.ledger.reading import bands, kept_scan, plan_rows
from batchgen.ledger.reading.left import missing_of, survey
from batchgen.ledger.reading.plan_rows import read_plan_rows
from batchgen.ledger.reading.winners import winners
from batchgen.ledger.restarts import fence_restart
from batchgen.ledger.submissions import SubmissionInfo, SubmissionRows, begin_submission
from batchgen.ledger.upkeep.losses import rows_gone
from batchgen.ledger.upkeep.repair import void_rows
from batchgen.paths import RunPaths
from batchgen.records import Attempt

ROWS, PART = 23, 3
ALIASES = {2: 1, 7: 1, 8: 7, 12: 19, 21: 0, 22: 0}  # some of rows in other bands; one of an alias
SIZES = (3, 6, 9, 12, ROWS + 1)  # the last one: one band
NOBODY = 99  # a row_index that no plan has


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Several submissions and restarts, with rows that failed, were taken back, were rendered twice
    and too late, lines that are damaged or torn, and one of a row that is in no plan."""
    monkeypatch.setattr(parts, "PART_ROWS", PART)
    monkeypatch.setattr(parts, "GROUP_ROWS", 2)
    monkeypatch.setattr(kept_scan, "LEAST_LINES", 1)
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=7))  # the number of a collect
    made = make_run_folder(tmp_path / "run", ROWS, ALIASES)
    first = made.submit()
    with made.journal(first) as ended:
        for row in (0, 1, 5, 9, 13, 19):
            made.render(ended, row)
        made.fail(ended, 3)
        ended.end(End(reason="done"))
    late = made.journal(first, replica=1, host="n2")
    for row in (4, 10, 16):
        made.render(late, row)
    late.start(17, "row0017")
    fence_restart(made.run, Attempt(first, 0, 1, 0))
    with made.journal(first, restart=1) as again:
        for row in (17, 3):
            made.fail(again, row)
    second = made.submit([3, 4, 6, 11, 17])
    for row in (6, 20):  # behind its fence
        made.render(late, row)
    late.close()
    with made.journal(second) as journal:
        for row in (3, 11, 4, 18):
            made.render(journal, row)
        made.fail(journal, 4)
        damage(journal.path, row=18)
        journal.end(End(reason="done"))
    with made.journal(second, replica=1, host="n3") as bad:  # fails all, one that failed before
        for row in (14, 15, 20, 17):
            fail(made, bad, row)
    void_rows(made.run, [(9, "media/x.png", "lost"), (19, "media/y.png", "lost")])
    third = made.submit([9, 14])
    journal = made.journal(third)
    made.render(journal, 9)
    stray(made, journal.path, third)
    journal.close()
    return made


def damage(path: Path, row: int) -> None:
    """Change a byte of the commit of a row."""
    data = path.read_bytes()
    place = data.index(b'"kind":"commit","row_index":%d,' % row) + 20
    path.write_bytes(data[:place] + b"X" + data[place + 1 :])


def stray(folder: RunFolder, path: Path, submission: int) -> None:
    """The commit of a row that is in no plan, and half a line."""
    commit = folder.commit_of(14, Attempt(submission, 0, 0, 0), None)
    with path.open("ab") as file:
        file.write(encode_line(replace(commit, row_index=NOBODY)))
        file.write(encode_line(commit)[:-9])


def in_bands(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "BAND_ROWS", rows)


def left_by(run: RunPaths) -> dict[str, bytes]:
    """All files of the catalog, by name, and what the run says of time; those that are kept for the
    next collect hold the time of a journal, which a copy has, too."""
    found = {
        path.relative_to(run.root).as_posix(): path.read_bytes()
        for path in run.catalog_rows.parent.rglob("*")
        if path.is_file() and ".turns" not in path.parts
    }
    lines = run.time_stats.read_text().splitlines()
    return found | {"time_stats": "\n".join(line.split(",", 1)[1] for line in lines).encode()}


def collected(folder: RunFolder, copy: Path) -> tuple[dict[str, bytes], CatalogSummary]:
    """What a collect of a copy of a run leaves and says."""
    run = RunPaths(copy / "run")
    shutil.copytree(folder.run.root, run.root)
    summary = collect(run)
    return left_by(run), summary


@pytest.mark.parametrize("size", first_quick(SIZES[:-1], 2))
def test_whatever_a_band_has_the_catalog_is_the_same(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    in_bands(SIZES[-1], monkeypatch)
    whole, told = collected(folder, tmp_path / "one")
    in_bands(size, monkeypatch)
    found, said = collected(folder, tmp_path / "many")
    assert found.keys() == whole.keys() and len(found) >= 20
    for name, data in found.items():
        assert data == whole[name], name
    names = ("rows", "ok", "failed", "quarantined", "pending", "wasted", "parts", "fidelity")
    for name in names:
        assert getattr(said, name) == getattr(told, name), name
    assert (said.ok, said.failed, said.wasted) == (14, 4, 2)
    assert {path.name for path in (tmp_path / "many/run").iterdir()} == {
        path.name for path in (tmp_path / "one/run").iterdir()
    }, "no file of a band is left"


@pytest.mark.parametrize("size", first_quick(SIZES[:-1], 2))
def test_whatever_a_band_has_the_same_rows_are_left_and_the_same_is_to_blame(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    whole = winners(folder.run)
    in_bands(size, monkeypatch)
    found = survey(folder.run)
    assert found.status.tolist() == whole.status.tolist()
    assert found.plan.key.tolist() == whole.plan.key.tolist()
    assert found.plan.original.tolist() == whole.plan.original.tolist()
    left, wanted = missing_of(found), missing_of(whole)
    for name in ("pending", "failed", "quarantined", "all"):
        assert getattr(left, name).tolist() == getattr(wanted, name).tolist(), name
    assert left.failed.tolist() == [14, 15, 17, 20] and len(left.pending) > 1
    assert len(found.index.status) < len(whole.index.status), "ordinary lines are left out"
    assert rows_rendered(found.index) == rows_rendered(whole.index) != {}
    one, other = (read_blame(folder.run, each, all_gone=True) for each in (found, whole))
    assert one.deaths == other.deaths != ()
    assert one.suspects.tolist() == other.suspects.tolist()
    assert (one.convicted, one.bad_hosts) == (other.convicted, other.bad_hosts)
    assert "n3" in one.bad_hosts and one.rows_failed_on(["n3"]).tolist() == [14, 15, 20]
    for hosts in (["n1"], ["n2"], ["n1", "n3"]):
        assert one.rows_failed_on(hosts).tolist() == other.rows_failed_on(hosts).tolist()


def test_a_submission_records_the_same_of_what_was_before_it(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    for size in (SIZES[-1], PART):
        run = RunPaths(tmp_path / str(size) / "run")
        shutil.copytree(folder.run.root, run.root)
        in_bands(size, monkeypatch)
        found = survey(run)
        rows = missing_of(found).all
        chosen = SubmissionRows(rows, np.zeros(len(rows), np.int32), np.arange(len(rows)))
        intent = read_intent(run, begin_submission(run, chosen, SubmissionInfo(), found=found))
        assert intent is not None
        told.append((intent.accepted, intent.before, intent.reopened, intent.copies, intent.rows))
    assert told[0] == told[1]


@pytest.mark.parametrize("size", [PART, SIZES[-1]])
def test_rows_that_are_gone_are_missed_in_their_band(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    in_bands(size, monkeypatch)
    collect(folder.run)
    damage(folder.run.journals / "0001" / "0-r0-0.jsonl", row=13)
    assert rows_gone(folder.run, survey(folder.run)).tolist() == [13]
    with pytest.raises(RunStateError, match="has 1 ok rows whose lines are gone"):
        collect(folder.run)


def test_names_that_look_alike_are_told_apart(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that aliases name are found by a hash of their names."""
    wanted = read_plan_rows(folder.run.plan)
    assert np.flatnonzero(wanted.alias).tolist() == [*ALIASES]
    real, alike = plan_rows._hashes, 2

    def coarse(names: object, salt: int) -> np.ndarray:
        return real(names, salt) % (3 if salt < alike else 2**62)

    monkeypatch.setattr(plan_rows, "_hashes", coarse)
    found = read_plan_rows(folder.run.plan)
    assert found.original.tolist() == wanted.original.tolist()
    assert found.key.tolist() == wanted.key.tolist()
    alike = plan_rows.SALTS
    with pytest.raises(RunStateError, match="twice"):
        read_plan_rows(folder.run.plan)
