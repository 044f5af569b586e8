"""Who is to blame for deaths and failures: a row, a machine, or nobody. Reads journals only.

A death is an attempt without a last line that is not alive any more. The rows that it had in flight
are suspects as long as they are missing: they are rendered again after all others and alone, so
that the next death has one row to blame. A row is convicted by a death while it was alone if there
was another such death, or an earlier death in another place. Whatever was committed for a row
(rendered, failed, or a verdict) closes its history: only later deaths count. So a row that survives
alone is never convicted, and a retry of a quarantined row begins anew.

A machine is bad if three rows failed or died there and none was rendered, while another machine has
rendered some. Of the rows of one death one counts at most, since one of them, or the cluster, may
have killed them all; nor does a death of a convicted row count.

What an attempt did after it was fenced off counts for nothing, its death neither.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from batchgen.errors import FINAL_ERRORS, SickNode
from batchgen.ledger.intent import FenceTimes, fence_times
from batchgen.ledger.scan import STATUS_CODES, CommitIndex, JournalFacts, index_commits
from batchgen.ledger.status import live_attempts
from batchgen.ledger.table import commit_column, parse_commits
from batchgen.ledger.tally import read_counters
from batchgen.ledger.winners import Winners, winners
from batchgen.paths import RunPaths
from batchgen.records import Attempt

BAD_AFTER = 3  # rows
FENCE_MARGIN_S = 5.0  # clocks of two machines may differ
_FINAL = [error.__name__ for error in FINAL_ERRORS]


@dataclass(frozen=True, slots=True)
class Death:
    """An attempt that ended without a word."""

    attempt: Attempt
    host: str
    device: str
    rows: tuple[int, ...]  # row_index of the rows in flight
    alone: bool  # the one row was rendered alone, as a suspect
    t: float  # last sign of life, unix seconds

    @property
    def place(self) -> tuple[str, str]:
        """Where it was."""
        return self.host, self.device

    def __str__(self) -> str:
        how = "alone" if self.alone else f"rows in flight: {len(self.rows)}"
        return f"{self.attempt.tag} on {self.host or 'an unknown host'} ({how})"


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

    def rows_failed_on(self, hosts: Iterable[str]) -> np.ndarray:
        """Rows that failed, whatever the error, and the commit that says so came from `hosts`:
        to be tried again elsewhere."""
        failed = np.flatnonzero(self._found.status == STATUS_CODES["failed"])
        index = self._found.index
        names = {*hosts}
        bad = np.array([_host(facts) in names for facts in index.journals], bool)
        return failed[bad[index.journal[self._found.line[failed]]]] if len(failed) else failed


def read_blame(run: RunPaths, found: Winners | None = None, *, all_gone: bool = False) -> Blame:
    """Judge a run by its journals.

    `all_gone`: the scheduler knows that no attempt is at work. Else one on another machine is taken
    for alive until its heartbeat is a minute old. RunStateError if the plan cannot be read.
    """
    found = winners(run, index_commits(run)) if found is None else found
    live = set() if all_gone else {status.attempt for status in live_attempts(run)}
    deaths = _deaths(run, found.index, live)
    histories = _histories(found, deaths)
    convicted = tuple(filter(None, (_judge(row, past) for row, past in histories.items())))
    guilty = {verdict.row_index for verdict in convicted}
    suspects = np.array(sorted(histories.keys() - guilty), np.int64)
    innocent = [death for death in deaths if guilty.isdisjoint(death.rows)]
    return Blame(deaths, suspects, convicted, _bad_hosts(found.index, innocent), found)


def _deaths(run: RunPaths, index: CommitIndex, live: set[Attempt]) -> tuple[Death, ...]:
    deaths = []
    fences: dict[int, FenceTimes] = {}
    for facts in index.journals:
        attempt = facts.journal.attempt
        if facts.end is not None or attempt in live:
            continue
        if attempt.submission not in fences:
            fences[attempt.submission] = fence_times(run, attempt.submission)
        if _outlived(run, facts, fences[attempt.submission].of(attempt)):
            continue
        alone = facts.alone in facts.open_rows
        rows = (facts.alone,) if alone else () if facts.alone >= 0 else sorted(facts.open_rows)
        device = facts.header.device if facts.header else ""
        death = Death(attempt, _host(facts), device, tuple(rows), alone, facts.last_t)
        deaths.append(death)
    return tuple(deaths)


def _outlived(run: RunPaths, facts: JournalFacts, fenced: float) -> bool:
    """Whether an attempt worked on, or was alive, after another one took over (unix seconds)."""
    limit = facts.journal.limit
    if limit is None:
        return False
    if facts.whole_bytes > limit:
        return True
    counters = read_counters(run.counters(facts.journal.attempt))
    return counters is not None and counters.t > fenced + FENCE_MARGIN_S


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
    alone = [number for number, death in enumerate(past) if death.alone]
    if not alone:
        return None
    elsewhere = any(past[i].place != past[j].place for j in alone for i in range(j))
    if len(alone) < 2 and not elsewhere:
        return None
    told = ", ".join(str(death) for death in past)
    return Verdict(row, f"its process died again when it was alone: {told}", past[alone[-1]].host)


def _bad_hosts(index: CommitIndex, deaths: Sequence[Death]) -> dict[str, str]:
    hosts = [_host(facts) for facts in index.journals]
    ok = _rendered(index, hosts)
    failed = _failed_rows(index, hosts)
    sick = {
        host for host, facts in zip(hosts, index.journals, strict=True)
        if facts.end is not None and facts.end.reason == SickNode.__name__
    }  # fmt: skip
    died: dict[str, list[Death]] = defaultdict(list)
    for death in deaths:
        if death.rows:
            died[death.host].append(death)
    reasons = {}
    for host in sorted({*failed, *died, *sick} - {""}):
        count = _distinct(failed.get(host, set()), died[host])
        others = sum(rows for name, rows in ok.items() if name != host)
        if ok.get(host) or not others or (count < BAD_AFTER and host not in sick):
            continue
        told = [f"rows failed there: {len(failed.get(host, ()))}"]
        told += [f"attempts died there with rows in flight: {len(died[host])}"]
        told += ["an attempt gave up there since its first rows all failed"] if host in sick else []
        reasons[host] = "; ".join([*told, f"rows rendered there: 0, on other hosts: {others}"])
    return reasons


def _rendered(index: CommitIndex, hosts: Sequence[str]) -> dict[str, int]:
    """Accepted ok lines by host."""
    good = index.journal[index.accepted & (index.status == STATUS_CODES["ok"])]
    counts: dict[str, int] = defaultdict(int)
    for host, rows in zip(hosts, np.bincount(good, minlength=len(hosts)).tolist(), strict=True):
        counts[host] += rows
    return {host: rows for host, rows in counts.items() if rows}


def _failed_rows(index: CommitIndex, hosts: Sequence[str]) -> dict[str, set[int]]:
    """Rows that failed by an error that another machine may not make, by host."""
    lines = np.flatnonzero(index.accepted & (index.status == STATUS_CODES["failed"]))
    errors = commit_column(parse_commits(index, lines), "error_type").to_pylist()
    rows: dict[str, set[int]] = defaultdict(set)
    for line, error in zip(lines.tolist(), errors, strict=True):
        if error not in _FINAL:
            rows[hosts[int(index.journal[line])]].add(int(index.row_index[line]))
    return rows


def _distinct(failed: set[int], deaths: Sequence[Death]) -> int:
    """Distinct rows, at most one of each death."""
    rows = set(failed)
    for death in deaths:
        new = next((row for row in death.rows if row not in rows), None)
        rows |= set() if new is None else {new}
    return len(rows)


def _host(facts: JournalFacts) -> str:
    header = facts.header
    return (header.host or header.process.host) if header else ""
