"""Blame: which row is behind deaths, and that nobody innocent is."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from quick_cases import first_quick
from run_folder import RunFolder, die, fail

from batchgen.catalog import table
from batchgen.catalog.collect import collect
from batchgen.errors import RunStateError
from batchgen.ledger.blame.rows import Blame, Verdict, read_blame
from batchgen.ledger.counts import read_counters
from batchgen.ledger.events import End, to_plain
from batchgen.ledger.intent import last_intent
from batchgen.ledger.journal import JournalWriter
from batchgen.ledger.reading.left import missing_rows
from batchgen.ledger.restarts import fence_restart
from batchgen.ledger.status import read_status
from batchgen.ledger.submissions import SubmissionInfo, SubmissionRows, begin_submission
from batchgen.ledger.upkeep.repair import QUARANTINED, quarantine_rows
from batchgen.paths import parse_journal
from batchgen.records import Attempt


def blame(run_folder: RunFolder) -> Blame:
    return read_blame(run_folder.run, all_gone=True)


def suspects(run_folder: RunFolder) -> list[int]:
    found: list[int] = blame(run_folder).suspects.tolist()
    return found


def convicted(run_folder: RunFolder) -> list[int]:
    return [verdict.row_index for verdict in blame(run_folder).convicted]


# suspects


def test_rows_in_flight_at_a_death_are_suspects(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(5)
    journal = run_folder.journal(run_folder.submit(), host="n7")
    run_folder.render(journal, 0)
    run_folder.fail(journal, 1)
    for row in (2, 3):
        journal.start(row, f"row{row:04d}")
    assert read_blame(run_folder.run).deaths == (), "this process lives"
    found = blame(run_folder)
    assert found.suspects.tolist() == [2, 3]
    (death,) = found.deaths
    assert (death.rows, death.alone, death.host, death.device) == ((2, 3), False, "n7", "cpu")
    assert str(death) == "s1t0r0p0 on n7 (rows in flight: 2)"
    assert found.convicted == ()


def test_a_killed_process_is_seen_at_once_on_its_machine(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(3)
    rank = run_folder.start_rank(run_folder.submit(), [0, 1, 2], "journal.before_append:2:kill")
    assert rank.wait(60) == -signal.SIGKILL
    found = read_blame(run_folder.run)
    assert (found.suspects.tolist(), len(found.deaths)) == ([1], 1)


def test_whoever_ends_with_a_last_line_did_not_die(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(4)
    number = run_folder.submit()
    for task, reason in enumerate(("drained", "terminated", "superseded", "SickNode")):
        with run_folder.journal(number, task) as journal:
            journal.start(task, f"row{task:04d}")
            journal.end(End(reason=reason))
    assert (blame(run_folder).deaths, suspects(run_folder)) == ((), [])
    status = read_status(run_folder.run)
    assert {attempt.life for attempt in status.attempts} == {"ended"}
    assert (status.suspects, status.running, status.state) == (0, 0, "stopped")


def test_a_saved_row_is_no_suspect_even_if_its_attempt_dies(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(3)
    with run_folder.journal(run_folder.submit()) as journal:
        for row in (0, 1, 2):
            journal.start(row, f"row{row:04d}")
        journal.saved(1, 3, 0.25)
    assert suspects(run_folder) == [0, 2]


def test_whoever_is_rendered_later_is_cleared(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(3)
    die(run_folder, run_folder.submit(), 0, 1, 2)
    run_folder.render(run_folder.journal(run_folder.submit(), host="n2"), 1)
    assert suspects(run_folder) == [0, 2]


def test_a_suspect_that_fails_alone_is_no_killer(make_run_folder: Callable[..., RunFolder]) -> None:
    """An error is not a death: what came before it no longer counts."""
    run_folder = make_run_folder(2)
    die(run_folder, run_folder.submit(), 0)
    die(run_folder, run_folder.submit(), 0, host="n2", alone=False)
    fail(run_folder, run_folder.journal(run_folder.submit(), host="n3"), 0)
    assert suspects(run_folder) == []
    die(run_folder, run_folder.submit(), 0, host="n4", alone=True)
    assert (suspects(run_folder), convicted(run_folder)) == ([0], [])


def test_what_waits_for_another_try_was_not_in_flight(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """A row that failed once stays open; then a suspect was alone, and killed the process."""
    run_folder = make_run_folder(3)
    journal = run_folder.journal(run_folder.submit())
    journal.start(0, "row0000")
    journal.start(1, "row0001", alone=True)
    assert suspects(run_folder) == [1]
    journal.commit(run_folder.commit_of(1, parse_journal(journal.path), None))
    assert suspects(run_folder) == [], "killed between two rows"
    journal.start(2, "row0002")
    assert suspects(run_folder) == [0, 2]


# what a zombie did


def test_the_death_of_a_zombie_counts_for_nothing(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(4)
    zombie = run_folder.journal(run_folder.submit())
    zombie.start(0, "row0000")
    number = run_folder.submit()
    assert suspects(run_folder) == [0], "it may have died before"
    zombie.start(1, "row0001")
    assert suspects(run_folder) == []
    die(run_folder, number, 2)
    assert suspects(run_folder) == [2]


def test_what_a_zombie_commits_clears_nobody(make_run_folder: Callable[..., RunFolder]) -> None:
    run_folder = make_run_folder(2)
    number = run_folder.submit()
    die(run_folder, number, 0)
    fence_restart(run_folder.run, Attempt(number, 0, 1, 0))
    zombie = run_folder.journal(number, restart=1)
    fence_restart(run_folder.run, Attempt(number, 0, 2, 0))
    fail(run_folder, zombie, 0)
    assert suspects(run_folder) == [0]


def test_a_zombie_that_only_beats_counts_for_nothing(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchgen.ledger.blame import deaths as deaths_module

    monkeypatch.setattr(deaths_module, "FENCE_MARGIN_S", 0.0)
    run_folder = make_run_folder(2)
    zombie = run_folder.journal(run_folder.submit())
    zombie.start(0, "row0000")
    fence_restart(run_folder.run, Attempt(1, 0, 1, 0))
    assert suspects(run_folder) == [0]
    zombie.close()  # a last heartbeat
    assert suspects(run_folder) == []


@pytest.mark.parametrize(("ahead_s", "counts"), [(50.0, True), (70.0, False)])
def test_a_death_counts_where_the_clock_is_ahead(
    ahead_s: float, counts: bool, make_run_folder: Callable[..., RunFolder]
) -> None:
    """By as much as `slurm check` lets pass: the last heartbeat seems to come after the fence."""
    run_folder = make_run_folder(2)
    die(run_folder, run_folder.submit(), 0)
    path = run_folder.run.counters(Attempt(1, 0, 0, 0))
    known = read_counters(path)
    assert known is not None
    path.write_text(json.dumps(to_plain(replace(known, t=known.t + ahead_s))))
    fence_restart(run_folder.run, Attempt(1, 0, 1, 0))
    assert suspects(run_folder) == ([0] if counts else [])


def test_a_restart_names_the_suspects_of_its_task(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    from batchgen.ledger.intent import read_fence

    run_folder = make_run_folder(8)
    number = run_folder.submit()
    first = run_folder.journal(number)
    run_folder.render(first, 0)
    for row in (1, 2, 3, 4):
        first.start(row, f"row{row:04d}")
    first.saved(4, 2, 0.5)
    first.start(5, "row0005", alone=True)
    with run_folder.journal(number, replica=1) as drained:
        drained.start(6, "row0006")
        drained.end(End(reason="drained"))
    die(run_folder, number, 7, task=1)
    fence_restart(run_folder.run, second := Attempt(number, 0, 1, 0))
    fence = read_fence(run_folder.run, second)
    assert fence is not None
    assert (fence.suspects, fence.statuses) == ((5,), {0: "ok"})
    again = run_folder.journal(number, restart=1)
    run_folder.render(again, 5)
    for row in (1, 2, 3, 4):
        again.start(row, f"row{row:04d}")
    again.saved(3, 2, 0.5)
    again.tried(4, 0.5, RuntimeError("boom"))
    fence_restart(run_folder.run, third := Attempt(number, 0, 2, 0))
    fence = read_fence(run_folder.run, third)
    assert fence is not None
    assert fence.suspects == (1, 2)


def test_a_restart_withholds_who_died_alone(make_run_folder: Callable[..., RunFolder]) -> None:
    """For good: the rows that died in company are tried alone first."""
    from batchgen.ledger.intent import read_fence

    run_folder = make_run_folder(4)
    number = run_folder.submit()
    die(run_folder, number, 0, 1, 2)
    withheld = []
    for restart, row in ((1, 0), (2, 1), (3, 2), (4, None)):
        fence_restart(run_folder.run, attempt := Attempt(number, 0, restart, 0))
        fence = read_fence(run_folder.run, attempt)
        assert fence is not None and fence.suspects == (0, 1, 2)
        withheld.append(fence.withheld)
        if row is not None:
            die(run_folder, number, row, alone=True, restart=restart, host=f"n{restart}")
    assert withheld == [(), (0,), (0, 1), (0, 1, 2)]
    assert read_status(run_folder.run).suspects == 3


def test_a_row_that_survived_alone_is_not_withheld(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Its rank died later, or said how it ended."""
    from batchgen.ledger.intent import read_fence

    run_folder = make_run_folder(4)
    number = run_folder.submit()
    journal = run_folder.journal(number)
    for row in (0, 1):
        journal.start(row, f"row{row:04d}", alone=True)
        fail(run_folder, journal, row)
    with run_folder.journal(number, replica=1) as drained:
        drained.start(2, "row0002", alone=True)
        drained.end(End(reason="terminated"))
    saved = run_folder.journal(number, replica=2)
    saved.start(3, "row0003", alone=True)
    saved.saved(3, 1, 0.5)
    fence_restart(run_folder.run, attempt := Attempt(number, 0, 1, 0))
    fence = read_fence(run_folder.run, attempt)
    assert fence is not None
    assert (fence.suspects, fence.withheld) == ((), ())


# convictions


@pytest.mark.parametrize("executor", ["local", "slurm"])
@pytest.mark.parametrize(
    ("deaths", "local", "cluster"),
    [
        ("n1", False, False),
        ("n1 n2 n3", False, False),
        ("n1!", False, False),
        ("n1 n1!", False, False),
        ("n1! n2", False, False),
        ("n1 n2!", False, False),
        ("n1! n2!", True, True),
        ("n1 n2! n3!", True, True),
        ("n1! n2 n1! n2!", True, True),
        ("n1 n1! n1!", True, True),
        ("n1! n1!", True, True),
        ("n2 n1! n1!", True, False),
        ("n1! n2 n1! n1!", True, False),
    ],
)
def test_a_row_that_kills_alone_on_two_devices_is_convicted(
    deaths: str,
    local: bool,
    cluster: bool,
    executor: str,
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """`!`: alone. Twice on one device is enough where the run had no other."""
    run_folder, guilty = make_run_folder(3), local if executor == "local" else cluster
    for host in deaths.split():
        number = run_folder.submit([0, 1, 2], executor=executor, row_retries=1)
        alone = host.endswith("!")
        die(run_folder, number, *([] if alone else [2]), 0, host=host.rstrip("!"), alone=alone)
    assert (0 in convicted(run_folder), 0 in suspects(run_folder)) == (guilty, not guilty)
    assert 2 not in convicted(run_folder)


def test_a_verdict_says_what_a_rank_of_the_replica_met(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(1)
    for host in ("n1", "n2"):
        with run_folder.journal(run_folder.submit(), host=host) as journal:
            journal.start(0, "row0000", alone=True)
            said = f"rank 1 of 2 on {host}: OutOfMemoryError: full"
            journal.end(End(reason="ReplicaFailed", error=said))
    (verdict,) = blame(run_folder).convicted
    assert verdict.reason.endswith("; the last one by rank 1 of 2 on n2: OutOfMemoryError: full")


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_one_device_takes_as_many_deaths_alone_as_the_row_has_tries(
    retries: int, make_run_folder: Callable[..., RunFolder]
) -> None:
    run_folder = make_run_folder(1)
    die(run_folder, run_folder.submit(executor="local", row_retries=retries), 0)
    for _ in range(retries + 1):
        assert convicted(run_folder) == []
        number = run_folder.submit(executor="local", row_retries=retries)
        die(run_folder, number, 0, alone=True)
        assert blame(run_folder).has_evidence_from(number)
    (verdict,) = blame(run_folder).convicted
    assert "when it was alone, on the only device of the run: s1t0r0p0" in verdict.reason


def test_cards_of_one_machine_are_devices_of_their_own(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """Their names are the same, and so may be the numbers that processes have for them."""
    run_folder = make_run_folder(2)
    run_folder.journal(run_folder.submit(), card="GPU-b").close()  # it has been seen
    for _ in range(3):
        die(run_folder, number := run_folder.submit(), 0, alone=True, card="GPU-a")
    assert (suspects(run_folder), convicted(run_folder)) == ([0], [])
    assert not blame(run_folder).has_evidence_from(number), "it tells nothing new"
    die(run_folder, run_folder.submit(), 0, alone=True, card="GPU-b")
    (verdict,) = blame(run_folder).convicted
    assert "when it was alone, on another device: " in verdict.reason


def preempted(run_folder: RunFolder, submission: int, row: int, host: str, alone: bool) -> None:
    """An attempt that is told to end and killed before it could."""
    journal = run_folder.journal(submission, host=host)
    journal.start(row, f"row{row:04d}", alone)
    journal.signalled("SIGTERM")
    journal.close()


@pytest.mark.parametrize("alone", [True, False])
def test_a_kill_after_a_signal_convicts_nobody(
    alone: bool, make_run_folder: Callable[..., RunFolder]
) -> None:
    """Its rows run alone, in case. They are convicted by deaths of their own only."""
    run_folder = make_run_folder(2)
    for host in ("n1", "n2", "n3"):
        preempted(run_folder, run_folder.submit([0]), 0, host, alone)
    found = blame(run_folder)
    assert len(found.deaths) == 3 and all(death.signalled for death in found.deaths)
    assert (suspects(run_folder), convicted(run_folder)) == ([0], [])
    die(run_folder, run_folder.submit([0]), 0, host="n4", alone=True)
    assert (suspects(run_folder), convicted(run_folder)) == ([0], [])
    die(run_folder, run_folder.submit([0]), 0, host="n5", alone=True)
    (verdict,) = blame(run_folder).convicted
    assert "s3t0r0p0" not in verdict.reason and "s4t0r0p0 on n4 (alone)" in verdict.reason


def test_a_row_that_was_killed_after_a_signal_is_not_withheld(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    from batchgen.ledger.intent import read_fence

    run_folder = make_run_folder(2)
    number = run_folder.submit()
    preempted(run_folder, number, 0, "n1", True)
    fence_restart(run_folder.run, attempt := Attempt(number, 0, 1, 0))
    fence = read_fence(run_folder.run, attempt)
    assert fence is not None
    assert (fence.suspects, fence.withheld) == ((0,), ())


def test_restarts_of_a_task_are_one_after_the_other(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(1)
    number = run_folder.submit()
    die(run_folder, number, 0, host="n1", alone=True)
    fence_restart(run_folder.run, Attempt(number, 0, 1, 0))
    die(run_folder, number, 0, host="n2", alone=True, restart=1)
    (verdict,) = blame(run_folder).convicted
    assert verdict.reason == (
        "its process died again when it was alone, on another device: "
        "s1t0r0p0 on n1 (alone), s1t0r1p0 on n2 (alone)"
    )
    assert verdict.host == "n2"


def killer(run_folder: RunFolder, row: int = 0) -> None:
    die(run_folder, run_folder.submit([row]), row, host="n1", alone=True)
    die(run_folder, run_folder.submit([row]), row, host="n2", alone=True)


def test_a_quarantined_row_is_shown_and_left_alone(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(4, aliases={3: 0})
    killer(run_folder)
    number = quarantine_rows(run_folder.run, blame(run_folder).convicted)
    assert (suspects(run_folder), convicted(run_folder)) == ([], [])
    missing = missing_rows(run_folder.run)
    assert (missing.pending.tolist(), missing.quarantined.tolist()) == ([1, 2], [0])
    status = read_status(run_folder.run)
    assert (status.quarantined, status.left, status.suspects) == (2, 2, 0)
    assert status.state == "stopped"
    assert collect(run_folder.run).quarantined == 2
    frame = pd.read_parquet(run_folder.run.catalog_rows)
    assert frame["status"].tolist() == ["quarantined", "pending", "pending", "quarantined"]
    assert frame["error_type"][0] == QUARANTINED
    assert "died again when it was alone" in frame["error"][0]
    assert (frame["host"][0], frame["attempt"][0]) == ("n2", f"s{number}t0r0p0")


def test_a_retry_of_a_quarantined_row_begins_anew(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(2)
    killer(run_folder)
    quarantine_rows(run_folder.run, blame(run_folder).convicted)
    die(run_folder, run_folder.submit([0]), 0, host="n3", alone=True)
    assert (suspects(run_folder), convicted(run_folder)) == ([0], [])
    run_folder.render(run_folder.journal(run_folder.submit([0])), 0)
    assert (suspects(run_folder), convicted(run_folder)) == ([], [])
    status = read_status(run_folder.run)
    assert (status.ok, status.quarantined) == (1, 0)
    assert collect(run_folder.run).quarantined == 0


def test_an_innocent_row_that_is_retried_after_its_ok_has_no_past(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(1)
    die(run_folder, run_folder.submit(), 0, host="n1")
    die(run_folder, run_folder.submit(), 0, host="n1", alone=True)
    run_folder.render(run_folder.journal(run_folder.submit()), 0)
    from batchgen.ledger.upkeep.repair import void_rows

    void_rows(run_folder.run, [(0, "media/x.png", "damaged")])
    assert (suspects(run_folder), convicted(run_folder)) == ([], [])


def test_a_quarantine_keeps_what_was_known_of_hosts_and_attempts(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(2)
    rows = SubmissionRows(
        np.arange(2), np.zeros(2, np.int32), np.arange(2), np.array([False, True])
    )
    begin_submission(run_folder.run, rows, SubmissionInfo(attempt=3, excluded={"n9": "why"}))
    intent = last_intent(run_folder.run)
    assert intent is not None
    assert (intent.attempt, intent.excluded, intent.suspects) == (3, {"n9": "why"}, (1,))
    assert read_status(run_folder.run).suspects == 1
    quarantine_rows(run_folder.run, [Verdict(1, "it kills", "n1")])
    intent = last_intent(run_folder.run)
    assert intent is not None
    assert (intent.kind, intent.attempt, intent.excluded) == ("quarantine", 3, {"n9": "why"})


def test_a_row_that_is_not_in_the_plan_cannot_be_quarantined(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    run_folder = make_run_folder(2)
    with pytest.raises(RunStateError, match=r"plan\.parquet has no row with row_index 5"):
        quarantine_rows(run_folder.run, [Verdict(5, "it kills", "n1")])
    assert last_intent(run_folder.run) is None


# all together


def test_ok_lines_are_not_parsed(
    make_run_folder: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchgen.ledger.blame import hosts as hosts_module

    run_folder = make_run_folder(4)
    journal = run_folder.journal(run_folder.submit())
    run_folder.render(journal, 0)
    run_folder.render(journal, 1)
    fail(run_folder, journal, 2)
    parsed = []

    def counted(index: object, lines: np.ndarray) -> object:
        parsed.append(len(lines))
        return table.parse_commits(index, lines)  # type: ignore[arg-type]

    monkeypatch.setattr(hosts_module, "parse_commits", counted)
    blame(run_folder)
    assert parsed == [1]


ROWS = 12
HOSTS = ("n1", "n2", "n3")


class World:
    """A cluster that kills, drains and forgets at random, and a steward that follows the rules.

    Innocent rows survive whenever they are alone; killers never survive.
    """

    def __init__(self, run_folder: RunFolder, seed: int) -> None:
        self.run_folder, self.dice = run_folder, random.Random(seed)
        self.killers = set(self.dice.sample(range(ROWS), self.dice.randint(0, 3)))
        self.quarantined: set[int] = set()
        self.zombies: list[JournalWriter] = []

    def step(self) -> bool:
        """One submission; False when nothing is left."""
        found = blame(self.run_folder)
        if verdicts := found.convicted:
            self.quarantined |= {verdict.row_index for verdict in verdicts}
            quarantine_rows(self.run_folder.run, verdicts)
        left = missing_rows(self.run_folder.run).pending
        if not len(left):
            return False
        alone = np.isin(left, found.suspects)
        shards = left % 2
        rows = SubmissionRows(left, shards.astype(np.int32), left, alone)
        number = begin_submission(self.run_folder.run, rows, SubmissionInfo())
        for task in (0, 1):
            mine, mine_alone = left[shards == task], alone[shards == task]
            groups = self.cut(mine[~mine_alone].tolist())
            groups += [[row] for row in mine[mine_alone].tolist()]
            self.attempt(number, task, groups, {*mine[mine_alone].tolist()})
        return True

    def cut(self, rows: list[int]) -> list[list[int]]:
        size = self.dice.randint(1, 4)
        return [rows[begin : begin + size] for begin in range(0, len(rows), size)]

    def attempt(self, number: int, task: int, groups: list[list[int]], suspects: set[int]) -> None:
        run_folder, dice = self.run_folder, self.dice
        journal = run_folder.journal(number, task, host=dice.choice(HOSTS))
        for group in groups:
            alone = group[0] in suspects
            for row in group:
                journal.start(row, f"row{row:04d}", alone)
            fate = dice.random()
            if self.killers.intersection(group) or (fate < 0.2 and not alone):
                self.end(journal, dead=True)
                return
            if fate < 0.3:
                for row in group:
                    journal.saved(row, 1, 0.1)
                self.end(journal, dead=False)
                return
            for row in dice.sample(group, len(group)):
                journal.commit(run_folder.commit_of(row, parse_journal(journal.path), None))
        self.end(journal, dead=dice.random() < 0.2)

    def end(self, journal: JournalWriter, dead: bool) -> None:
        if not dead:
            journal.end(End(reason="done"))
        elif self.dice.random() < 0.2:
            self.zombies.append(journal)
            return
        journal.close()

    def haunt(self) -> None:
        """Zombies begin rows of others, and die of them."""
        for zombie in self.zombies:
            row = self.dice.randrange(ROWS)
            zombie.start(row, f"row{row:04d}", alone=self.dice.random() < 0.5)


@pytest.mark.parametrize("seed", first_quick(range(25), 5))
def test_the_innocent_are_rendered_and_the_killers_quarantined(
    seed: int, make_run_folder: Callable[..., RunFolder]
) -> None:
    world = World(make_run_folder(ROWS), seed)
    for _ in range(60):
        if not world.step():
            break
        assert world.quarantined <= world.killers
        if world.dice.random() < 0.5:
            begin_submission(world.run_folder.run, no_rows(), SubmissionInfo())
            world.haunt()
    assert world.quarantined == world.killers
    status = read_status(world.run_folder.run)
    assert (status.ok, status.quarantined) == (ROWS - len(world.killers), len(world.killers))
    assert status.suspects == 0


def no_rows() -> SubmissionRows:
    return SubmissionRows(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64))
