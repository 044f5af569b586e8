"""Who is to blame for deaths and failures: a row, a machine, or nobody. Reads journals only.

A death is an attempt without a last line that is not alive any more. The rows that it had in flight
are suspects as long as they are missing: they are rendered again after all others and alone, so
that the next death has one row to blame. A row is convicted by a death while it was alone if there
was another such death, or an earlier death in another place. Whatever was committed for a row
(rendered, failed, or a verdict) closes its history: only later deaths count. So a row that survives
alone is never convicted, and a retry of a quarantined row begins anew. An attempt that was told to
end and killed before it could leaves suspects too, but is evidence against nobody.

Which machines are bad, and which failed rows are so by themselves: `hosts`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from batchgen.ledger.deaths import Death, find_deaths, host_of
from batchgen.ledger.hosts import bad_hosts, rows_at_fault
from batchgen.ledger.scan import STATUS_CODES, CommitIndex, index_commits
from batchgen.ledger.status import live_attempts
from batchgen.ledger.winners import Winners, winners
from batchgen.paths import RunPaths
from batchgen.records import Attempt


@dataclass(frozen=True, slots=True)
class Verdict:
    """A row that is not to be rendered again unless asked for."""

    row_index: int
    reason: str
    host: str  # of the last death


@dataclass(frozen=True, slots=True, eq=False)
class Blame:
    """What the journals of a run say about its deaths and failures; arrays hold row_index."""

    deaths: tuple[Death, ...]  # in the order of attempts
    suspects: np.ndarray  # missing rows that were in flight at a death, without the convicted
    convicted: tuple[Verdict, ...]
    bad_hosts: dict[str, str]  # host -> reason
    _found: Winners
    _at_fault: np.ndarray  # rows that failed on two hosts

    def rows_failed_on(self, hosts: Iterable[str]) -> np.ndarray:
        """Rows that failed, whatever the error, and the commit that says so came from `hosts`:
        to be tried again elsewhere, unless they failed elsewhere before."""
        failed = np.flatnonzero(self._found.status == STATUS_CODES["failed"])
        failed = np.setdiff1d(failed, self._at_fault)
        index = self._found.index
        names = {*hosts}
        bad = np.array([host_of(facts) in names for facts in index.journals], bool)
        return failed[bad[index.journal[self._found.line[failed]]]] if len(failed) else failed


def read_blame(run: RunPaths, found: Winners | None = None, *, all_gone: bool = False) -> Blame:
    """Judge a run by its journals.

    `all_gone`: the scheduler knows that no attempt is at work. Else one on another machine is taken
    for alive until its heartbeat is a minute old. RunStateError if the plan cannot be read.
    """
    found = winners(run, index_commits(run)) if found is None else found
    live = set() if all_gone else {status.attempt for status in live_attempts(run)}
    deaths = find_deaths(run, found.index, live)
    histories = _histories(found, deaths)
    convicted = tuple(filter(None, (_judge(row, past) for row, past in histories.items())))
    guilty = {verdict.row_index for verdict in convicted}
    suspects = np.array(sorted(histories.keys() - guilty), np.int64)
    open_cases = [d for d in deaths if not d.signalled and guilty.isdisjoint(d.rows)]
    at_fault = rows_at_fault(found)
    bad = bad_hosts(found.index, open_cases, {*at_fault.tolist()})
    return Blame(deaths, suspects, convicted, bad, found, at_fault)


def _histories(found: Winners, deaths: Sequence[Death]) -> dict[int, list[Death]]:
    """Of every suspect the deaths since it was last committed, in the order of attempts."""
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
    """Order in time of all that happened to one row."""
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


def _judge(row: int, past: Sequence[Death]) -> Verdict | None:
    """The rule for one row; None = not convicted."""
    past = [death for death in past if not death.signalled]
    alone = [number for number, death in enumerate(past) if death.alone]
    if not alone:
        return None
    elsewhere = any(past[i].place != past[j].place for j in alone for i in range(j))
    if len(alone) < 2 and not elsewhere:
        return None
    told = ", ".join(str(death) for death in past)
    return Verdict(row, f"its process died again when it was alone: {told}", past[alone[-1]].host)
