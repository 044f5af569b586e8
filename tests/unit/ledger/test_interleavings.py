"""Random interleavings of submissions, restarts, failures and zombies against a plain model."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from quick_cases import first_quick
from run_folder import RunFolder

from batchgen import catalog
from batchgen.ledger.intent import seniority
from batchgen.ledger.journal import JournalWriter
from batchgen.ledger.reading.left import missing_rows
from batchgen.ledger.restarts import fence_restart
from batchgen.ledger.status import read_status
from batchgen.paths import parse_journal
from batchgen.records import Attempt, Media

ROWS = 8
ALIASES = {6: 0, 7: 3}
OWN = [row for row in range(ROWS) if row not in ALIASES]


@dataclass
class Model:
    """What should be true, by the rules in plain words."""

    submission: int = 0
    restarts: dict[int, int] = field(default_factory=dict)  # task -> restart, of this submission
    accepted: list[tuple[Attempt, int, str, str]] = field(default_factory=list)

    def counts(self, attempt: Attempt) -> bool:
        """Whether what an attempt commits now is accepted."""
        current = attempt.submission == self.submission
        return current and attempt.restart >= self.restarts.get(attempt.task, 0)

    def winner(self, row: int) -> tuple[str, str]:
        """(status, media path) of a row that is rendered."""
        mine = [entry for entry in self.accepted if entry[1] == row]
        mine.sort(key=lambda entry: (entry[2] == "ok", seniority(entry[0])))
        return mine[-1][2:] if mine else ("pending", "")


def commit(run_folder: RunFolder, journal: JournalWriter, row: int, status: str) -> str:
    """Commit a row without rendering it; returns the path of the media that it names."""
    attempt = parse_journal(journal.path)
    path = f"media/{row}-{attempt.tag}.png" if status == "ok" else ""
    media = Media(path, "ab" * 32, 1, "cd" * 32, 1) if path else None
    journal.start(row, run_folder.requests[row].row_id)
    journal.commit(replace(run_folder.commit_of(row, attempt, media), status=status, error_type=""))
    return path


def check(run_folder: RunFolder, model: Model) -> None:
    expected = [model.winner(ALIASES.get(row, row)) for row in range(ROWS)]
    frame = catalog.snapshot(run_folder.run.root)
    assert list(zip(frame["status"], frame["media_path"], strict=True)) == expected
    status = read_status(run_folder.run)
    found = [status.ok, status.failed, status.left]
    assert found == [sum(s == name for s, _ in expected) for name in ("ok", "failed", "pending")], (
        expected
    )
    missing = missing_rows(run_folder.run)
    assert missing.pending.tolist() == [r for r in OWN if expected[r][0] == "pending"]
    assert missing.failed.tolist() == [r for r in OWN if expected[r][0] == "failed"]


@pytest.mark.parametrize("seed", first_quick(range(12), 3))
def test_readers_agree_with_the_rules_in_plain_words(
    seed: int, make_run_folder: Callable[..., RunFolder]
) -> None:
    dice = random.Random(seed)
    run_folder, model = make_run_folder(ROWS, aliases=ALIASES), Model()
    journals: list[JournalWriter] = []
    done: dict[tuple[int, int], set[int]] = {}  # (submission, row) -> restarts that committed it

    def open_journal(attempt: Attempt) -> None:
        journals.append(run_folder.journal(attempt.submission, attempt.task, attempt.restart))

    for _ in range(60):
        move = dice.random()
        if not journals or move < 0.08:
            rows = dice.sample(OWN, dice.randint(1, len(OWN)))
            model.submission, model.restarts = run_folder.submit(rows), {}
            open_journal(Attempt(model.submission, 0, 0, 0))
            open_journal(Attempt(model.submission, 1, 0, 0))
        elif move < 0.16:
            task = dice.randint(0, 1)
            restart = model.restarts.get(task, 0) + 1
            attempt = Attempt(model.submission, task, restart, 0)
            fence_restart(run_folder.run, attempt)
            model.restarts[task] = restart
            open_journal(attempt)
        elif move < 0.22:
            with dice.choice(journals).path.open("ab") as file:
                file.write(b'{"kind":"commit","row_index":1,"status":"ok"')
                file.truncate(file.tell() - 44)  # a torn line that a recovery cut off again
        else:
            journal = dice.choice(journals)
            attempt = parse_journal(journal.path)
            # a row belongs to one task of a submission, and is committed once by each start
            intent_rows = set(read_rows(run_folder, attempt.submission))
            row = dice.choice([r for r in OWN if r % 2 == attempt.task])
            tried = done.setdefault((attempt.submission, row), set())
            if row not in intent_rows or attempt.restart in tried:
                continue
            tried.add(attempt.restart)
            status = dice.choice(["ok", "ok", "failed"])
            path = commit(run_folder, journal, row, status)
            if model.counts(attempt):
                model.accepted.append((attempt, row, status, path))
        if dice.random() < 0.3:
            check(run_folder, model)
    for journal in journals:
        journal.close()
    check(run_folder, model)


def read_rows(run_folder: RunFolder, submission: int) -> list[int]:
    from batchgen.ledger.submissions import read_shard

    rows: list[int] = read_shard(run_folder.run, submission, 0).all.tolist()
    return rows
