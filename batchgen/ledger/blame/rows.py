"""Who is to blame for deaths and failures: a row, a machine, or nobody. Reads journals only.

A death is an attempt that is no longer alive and wrote no end line. The rows that it had in flight
are suspects as long as they are missing: they are rendered after all others, each alone, so that
the next death has one row to blame. A row is convicted once its process has died on two devices
while the row was alone; in a run with one device, `row_retries` + 1 times on that.

Any commit of a row (rendered, failed or quarantined) closes its history: only later deaths count.
So a row that survives alone is never convicted, and a retry of a quarantined row begins anew. An
attempt that was told to end and killed before it had ended leaves suspects too, but is evidence
against nobody.

`hosts` says which machines are bad and which rows fail by their own fault.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from batchgen.config.schema import ONE_MACHINE, SlurmConfig
from batchgen.ledger.blame.deaths import Death, find_deaths, host_of, place_of
from batchgen.ledger.blame.hosts import bad_hosts, rows_at_fault
from batchgen.ledger.intent import profile_of, read_intent
from batchgen.ledger.reading.scan import STATUS_CODES, CommitIndex, index_commits
from batchgen.ledger.reading.winners import Winners, winners
from batchgen.ledger.status import live_attempts
from batchgen.paths import RunPaths
from batchgen.records import Attempt


@dataclass(frozen=True, slots=True)
class Verdict:
    """A convicted row: it is not rendered again unless a person asks for it."""

    row_index: int
    reason: str
    host: str  # of the last death


@dataclass(frozen=True, slots=True, eq=False)
class Blame:
    """What the journals of a run say about its deaths and failures; arrays hold row_index."""

    deaths: tuple[Death, ...]  # in the order of attempts
    suspects: np.ndarray  # missing rows that were in flight at a death and are not convicted
    convicted: tuple[Verdict, ...]
    bad_hosts: dict[str, str]  # host -> reason
    _found: Winners
    _at_fault: np.ndarray  # rows that failed on two hosts
    _evidence: tuple[Death, ...]  # deaths that brought a row closer to a verdict

    def has_evidence_from(self, submission: int) -> bool:
        """Whether a death of that submission brought a row closer to its verdict. Such a submission
        counts as progress, since a verdict may need several deaths."""
        return any(death.attempt.submission == submission for death in self._evidence)

    def rows_failed_on(self, hosts: Iterable[str]) -> np.ndarray:
        """Rows whose last commit is a failure on one of `hosts`, whatever the error, and that did
        not fail on another machine before."""
        failed = np.flatnonzero(self._found.status == STATUS_CODES["failed"])
        failed = np.setdiff1d(failed, self._at_fault)
        index = self._found.index
        names = {*hosts}
        bad = np.array([host_of(facts) in names for facts in index.journals], bool)
        return failed[bad[index.journal[self._found.line[failed]]]] if len(failed) else failed


def read_blame(run: RunPaths, found: Winners | None = None, *, all_gone: bool = False) -> Blame:
    """Judge a run by its journals.

    `all_gone`: the scheduler knows that no attempt is at work. Without it, one on another machine
    is taken for alive until its heartbeat is a minute old. RunStateError if the plan cannot be
    read.
    """
    found = winners(run, index_commits(run)) if found is None else found
    live = set() if all_gone else {status.attempt for status in live_attempts(run)}
    deaths = find_deaths(run, found.index, live)
    histories = _histories(found, deaths)
    law = _Law(run, found.index)
    convicted = tuple(filter(None, (law.judge(row, past) for row, past in histories.items())))
    guilty = {verdict.row_index for verdict in convicted}
    suspects = np.array(sorted(histories.keys() - guilty), np.int64)
    open_cases = [d for d in deaths if not d.signalled and guilty.isdisjoint(d.rows)]
    at_fault = rows_at_fault(found)
    bad = bad_hosts(found.index, open_cases, {*at_fault.tolist()})
    evidence = tuple(death for past in histories.values() for death in law.evidence(past))
    return Blame(deaths, suspects, convicted, bad, found, at_fault, evidence)


def _histories(found: Winners, deaths: Sequence[Death]) -> dict[int, list[Death]]:
    """Suspect row -> the deaths since its last commit, in the order of attempts."""
    rows = np.array(sorted({row for death in deaths for row in death.rows}), np.int64)
    rows = rows[rows < len(found.status)]
    rows = rows[(found.status[rows] != STATUS_CODES["ok"]) & ~found.plan.alias[rows]]
    closed = _last_commits(found.index, rows)
    histories: dict[int, list[Death]] = defaultdict(list)
    wanted = {*rows.tolist()}
    for death in deaths:
        for row in wanted.intersection(death.rows):
            if _place(death.attempt) > closed.get(row, (0, 0)):
                histories[row].append(death)
    return dict(sorted(histories.items()))


def _place(attempt: Attempt) -> tuple[int, int]:
    """Sort key by time: attempts at the same row never overlap."""
    return attempt.submission, attempt.restart


def _last_commits(index: CommitIndex, rows: np.ndarray) -> dict[int, tuple[int, int]]:
    void = index.status == STATUS_CODES["void"]
    lines = np.flatnonzero(np.isin(index.row_index, rows) & index.accepted & ~void)
    places = [_place(facts.journal.attempt) for facts in index.journals]
    last: dict[int, tuple[int, int]] = {}
    pairs = zip(index.row_index[lines].tolist(), index.journal[lines].tolist(), strict=True)
    for row, journal in pairs:  # in order of attempts: the last one stays
        last[row] = places[journal]
    return last


class _Law:
    """The rule that convicts one row, and what it needs to know of the run."""

    def __init__(self, run: RunPaths, index: CommitIndex) -> None:
        self._run = run
        self._devices = {place_of(facts) for facts in index.journals if place_of(facts)[1]}
        self._profiles: dict[int, SlurmConfig] = {}

    def judge(self, row: int, past: Sequence[Death]) -> Verdict | None:
        past = [death for death in past if not death.signalled]
        alone = [death for death in past if death.alone]
        if len({death.place for death in alone}) > 1:
            where = "on another device"
        elif self._is_enough(alone):
            where = "on the only device of the run"
        else:
            return None
        told = ", ".join(str(death) for death in past)
        reason = f"its process died again when it was alone, {where}: {told}"
        if alone[-1].error:
            reason += f"; the last one by {alone[-1].error}"
        return Verdict(row, reason, alone[-1].host)

    def evidence(self, past: Sequence[Death]) -> Sequence[Death]:
        """Those deaths of one row alone that its verdict needs: at most two, or as many as one
        device needs."""
        alone = [death for death in past if death.alone and not death.signalled]
        return alone[: max(2, self._needed(alone[-1]))] if alone else []

    def _is_enough(self, alone: Sequence[Death]) -> bool:
        """Whether enough of these deaths were on a device that was the only one the run could
        use."""
        forced = [death for death in alone if self._choice(death) <= {death.place}]
        return bool(forced) and len(forced) >= self._needed(forced[-1])

    def _choice(self, death: Death) -> set[tuple[str, str]]:
        """The devices that the run could use at that death: all on which it was seen, or those of
        the same host if the executor uses one machine."""
        if self._profile(death).executor in ONE_MACHINE:
            return {place for place in self._devices if place[0] == death.host}
        return self._devices

    def _needed(self, death: Death) -> int:
        return self._profile(death).row_retries + 1

    def _profile(self, death: Death) -> SlurmConfig:
        """The profile that the death's submission ran under; the defaults if it was not
        recorded."""
        number = death.attempt.submission
        if number not in self._profiles:
            intent = read_intent(self._run, number)
            profile = SlurmConfig()
            if intent is not None and intent.config:
                profile = profile_of(self._run, intent)
            self._profiles[number] = profile
        return self._profiles[number]
