"""Which machines are bad, and which rows fail by their own fault.

A row that failed on two machines and was rendered on none is at fault: it is not tried elsewhere,
and counts against no machine.

A machine can be bad only if another one rendered rows. It is bad if, after the last row rendered on
it,

- an attempt gave up there (SickNode), unless all rows that it tried are at fault; or
- two starts of tasks came to nothing there: one of their attempts ended with an error. Errors of
  the run folder or of a person do not count, nor do those that another good machine met in the same
  submission. If this is true of more than half of the machines that rendered rows, the cluster or
  the job is to blame, and no machine is.

A machine that rendered no row is also bad if three rows failed or died there. Attempts that died
before their first row then count as such starts, unless another rank on the machine had begun a row
or one elsewhere ended with an error. Of each death at most one row counts: one of them, or the
cluster, may have killed all. Deaths of convicted rows do not count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from batchgen.errors import (
    FINAL_ERRORS,
    KeysChanged,
    PromptTooLong,
    ReplicaFailed,
    RunStateError,
    SickNode,
    StorageError,
)
from batchgen.ledger.blame.deaths import Death, host_of
from batchgen.ledger.events import End, time_of
from batchgen.ledger.reading.commits import commit_column, parse_commits
from batchgen.ledger.reading.scan import STATUS_CODES, CommitIndex, JournalFacts, fetch_lines
from batchgen.ledger.reading.winners import Winners
from batchgen.records import Attempt

BAD_AFTER = 3  # rows
BAD_AFTER_STARTS = 2  # starts of tasks that came to nothing
_FINAL = [error.__name__ for error in FINAL_ERRORS]
_NOBODYS = [
    error.__name__
    for error in (StorageError, OSError, RunStateError, KeysChanged, KeyboardInterrupt)
]
Start = tuple[int, int, int]  # submission, task, restart: its ranks began together


@dataclass(slots=True)
class _Record:
    """The evidence against one machine."""

    failed: set[int] = field(default_factory=set)  # rows
    deaths: list[Death] = field(default_factory=list)  # with rows in flight
    sick: bool = False  # an attempt gave up there, and no row was rendered since
    fallen: dict[Start, str] = field(default_factory=dict)  # starts that came to nothing, and how

    @property
    def is_broken(self) -> bool:
        """Whether enough starts of tasks came to nothing there."""
        return len(self.fallen) >= BAD_AFTER_STARTS

    @property
    def is_barren(self) -> bool:
        """Whether it is bad, given that it rendered no row."""
        return self.is_broken or _distinct(self.failed, self.deaths) >= BAD_AFTER

    def __str__(self) -> str:
        told = [f"rows failed there: {len(self.failed)}"]
        told += [f"attempts died there with rows in flight: {len(self.deaths)}"]
        if self.sick:
            told += ["an attempt gave up there since row after row failed"]
        if self.fallen:
            *_, last = self.fallen.values()
            count = f"starts of tasks that came to no row there: {len(self.fallen)}"
            told += [f"{count}, the last one by {last}"]
        return "; ".join(told)


def rows_at_fault(found: Winners) -> np.ndarray:
    """row_index, sorted, of rows that failed on two hosts or more and are not ok."""
    index = found.index
    lines = np.flatnonzero(index.accepted & (index.status == STATUS_CODES["failed"]))
    lines = lines[index.row_index[lines] < len(found.status)]
    rows = index.row_index[lines]
    same = index.key[lines] == found.plan.key[rows]
    same &= found.status[rows] != STATUS_CODES["ok"]
    hosts = np.array([host_of(facts) for facts in index.journals], str)
    pairs = {*zip(rows[same].tolist(), hosts[index.journal[lines[same]]].tolist(), strict=True)}
    blamed, count = np.unique(np.array([row for row, _ in pairs], np.int64), return_counts=True)
    return blamed[count > 1]


def bad_hosts(index: CommitIndex, deaths: Sequence[Death], at_fault: Set[int]) -> dict[str, str]:
    """Host -> the reason why it is bad. `deaths` must hold neither deaths of convicted rows nor
    those after a signal; rows in `at_fault` count against no machine."""
    hosts = [host_of(facts) for facts in index.journals]
    ok = rows_rendered(index)
    records: dict[str, _Record] = defaultdict(_Record)
    failures = _failures(index)
    for place, errors in failures.items():
        rows = {row for row, error in errors.items() if error not in _FINAL}
        records[hosts[place]].failed |= rows - at_fault
    for death in deaths:
        if death.rows:
            records[death.host].deaths.append(death)
    last = _last_rendered(index, hosts)
    for place in _gave_up(index, hosts, last):
        errors = failures.get(place, {})
        tried = {row for row, error in errors.items() if error != PromptTooLong.__name__}
        records[hosts[place]].sick |= not tried or not tried <= at_fault
    for host, start, how in _fallen(index, deaths, last, ok.keys()):
        records[host].fallen[start] = how
    broken = {host for host in ok if host in records and records[host].is_broken}
    if 2 * len(broken) > len(ok):
        broken = set()
    total, reasons = sum(ok.values()), {}
    for host, record in sorted(records.items()):
        here = ok.get(host, 0)
        bad = record.sick or host in broken or (not here and record.is_barren)
        if host and total > here and bad:
            told = f"rows rendered there: {here}, on other hosts: {total - here}"
            reasons[host] = f"{record}; {told}"
    return reasons


def _last_rendered(index: CommitIndex, hosts: Sequence[str]) -> dict[str, float]:
    """Host -> when the last row was rendered there (unix seconds by its own clock, 0 = never), for
    hosts where an attempt ended with an error, SickNode included."""
    ends = [_end(facts) for facts in index.journals]
    bad_ends = [end.error or end.reason == SickNode.__name__ for end in ends]
    last = {host: 0.0 for host, bad in zip(hosts, bad_ends, strict=True) if bad}
    good = np.flatnonzero(index.accepted & (index.status == STATUS_CODES["ok"]))
    for place, host in enumerate(hosts):
        if host in last:
            lines = good[index.journal[good] == place][-1:]
            last[host] = max([last[host], *map(time_of, fetch_lines(index, lines))])
    return last


def _gave_up(index: CommitIndex, hosts: Sequence[str], last: Mapping[str, float]) -> Iterator[int]:
    """Places of journals that ended by SickNode after the last row rendered on their host."""
    for place, facts in enumerate(index.journals):
        end = _end(facts)
        if end.reason == SickNode.__name__ and end.t > last[hosts[place]]:
            yield place


def _end(facts: JournalFacts) -> End:
    """The end line of a journal; an empty one if there is none or if it lies behind the fence."""
    limit = facts.journal.limit
    late = limit is not None and facts.whole_bytes > limit
    return End(reason="") if facts.end is None or late else facts.end


def _fallen(
    index: CommitIndex, deaths: Iterable[Death], last: Mapping[str, float], good: Set[str]
) -> list[tuple[str, Start, str]]:
    """Attempts that came to nothing by a fault of their machine: host, start, how. On hosts in
    `good`, which rendered rows, only those without a commit after the last one."""
    committed = {index.journals[place].journal.attempt for place in np.unique(index.journal)}
    ends = [(host_of(facts), facts.journal.attempt, _end(facts)) for facts in index.journals]
    ends = [(host, attempt, end) for host, attempt, end in ends if end.error]
    fallen = []
    met: dict[tuple[int, str, str], set[str]] = defaultdict(set)  # good hosts with that error
    guilty: dict[Start, set[str]] = defaultdict(set)  # hosts where a rank ended with an error
    for host, attempt, end in ends:
        guilty[_start(attempt)].add(host)
        if host in good:
            met[attempt.submission, end.reason, end.error].add(host)
    for host, attempt, end in ends:
        if end.reason in (SickNode.__name__, ReplicaFailed.__name__, *_NOBODYS):  # one is a death
            continue
        if met[attempt.submission, end.reason, end.error] - {host}:
            continue
        if host not in good or (attempt not in committed and end.t > last[host]):
            fallen.append((host, _start(attempt), f"{end.reason}: {end.error}"))
    journals = [facts for facts in index.journals if facts.starts]
    begun = {(_start(facts.journal.attempt), host_of(facts)) for facts in journals}
    for death in deaths:
        start, host = _start(death.attempt), death.host
        if host not in good and (start, host) not in begun and not guilty[start] - {host}:
            fallen.append((host, start, "a death before its first row"))
    return sorted(fallen, key=lambda item: item[1])


def _start(attempt: Attempt) -> Start:
    return attempt.submission, attempt.task, attempt.restart


def rows_rendered(index: CommitIndex) -> dict[str, int]:
    """Host -> number of its ok lines before the fence; hosts without one are left out."""
    counts: dict[str, int] = defaultdict(int)
    for facts in index.journals:
        counts[host_of(facts)] += facts.rendered
    return {host: rows for host, rows in counts.items() if rows}


def _failures(index: CommitIndex) -> dict[int, dict[int, str]]:
    """Place of the journal -> its failed rows, each with the class of its error."""
    lines = np.flatnonzero(index.accepted & (index.status == STATUS_CODES["failed"]))
    errors = commit_column(parse_commits(index, lines), "error_type").to_pylist()
    rows: dict[int, dict[int, str]] = defaultdict(dict)
    for line, error in zip(lines.tolist(), errors, strict=True):
        rows[int(index.journal[line])][int(index.row_index[line])] = error
    return rows


def _distinct(failed: Set[int], deaths: Sequence[Death]) -> int:
    """Distinct rows that failed or died, at most one of each death."""
    rows = set(failed)
    for death in deaths:
        new = next((row for row in death.rows if row not in rows), None)
        rows |= set() if new is None else {new}
    return len(rows)
