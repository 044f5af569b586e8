"""Deaths: attempts without an end line, or ended by the loss of one of their ranks."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.ledger.counts import read_counters
from batchgen.ledger.intent import FenceTimes, fence_times
from batchgen.ledger.reading.fold import is_death
from batchgen.ledger.reading.scan import CommitIndex, JournalFacts
from batchgen.paths import RunPaths
from batchgen.records import Attempt

# Clocks of two machines may differ by this much; `slurm check` fails for more. An attempt that died
# within this time after its fence is treated as if it had died before the fence.
FENCE_MARGIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Death:
    """An attempt that ended without an end line, or by the loss of one of its ranks."""

    attempt: Attempt
    host: str
    device: str  # id of the device on that host
    rows: tuple[int, ...]  # row_index of the rows in flight
    alone: bool  # the row in flight was a suspect, rendered alone
    signalled: bool  # it had been told to end: no evidence against its rows or its machine
    error: str = ""  # what ended it, if one of several ranks could say so

    @property
    def place(self) -> tuple[str, str]:
        """Host and device that the attempt was on."""
        return self.host, self.device

    def __str__(self) -> str:
        how = "alone" if self.alone else f"rows in flight: {len(self.rows)}"
        return f"{self.attempt.tag} on {self.host or 'an unknown host'} ({how})"


def find_deaths(run: RunPaths, index: CommitIndex, live: set[Attempt]) -> tuple[Death, ...]:
    """Those of attempts that are not in `live`, in the order of attempts. An attempt
    that died after it was fenced off is left out."""
    deaths = []
    fences: dict[int, FenceTimes] = {}
    for facts in index.journals:
        attempt = facts.journal.attempt
        if not is_death(facts.end.reason if facts.end else "") or attempt in live:
            continue
        if attempt.submission not in fences:
            fences[attempt.submission] = fence_times(run, attempt.submission)
        if _outlived(run, facts, fences[attempt.submission].of(attempt)):
            continue
        alone, rows = facts.in_flight.died_alone, sorted(facts.in_flight.suspects)
        host, device = place_of(facts)
        death = Death(
            attempt=attempt,
            host=host,
            device=device,
            rows=tuple(rows),
            alone=alone,
            signalled=facts.signalled,
            error=facts.end.error if facts.end else "",
        )
        deaths.append(death)
    return tuple(deaths)


def _outlived(run: RunPaths, facts: JournalFacts, fenced: float) -> bool:
    """Whether an attempt still worked, or was alive, after it was fenced off at `fenced` (unix
    seconds)."""
    limit = facts.journal.limit
    if limit is None:
        return False
    if facts.whole_bytes > limit:
        return True
    counters = read_counters(run.counters(facts.journal.attempt))
    return counters is not None and counters.t > fenced + FENCE_MARGIN_S


def place_of(facts: JournalFacts) -> tuple[str, str]:
    """Host and device id of an attempt; the id is empty if the journal does not name the device."""
    header = facts.header
    return host_of(facts), (header.device_id or header.device) if header else ""


def host_of(facts: JournalFacts) -> str:
    """Host of an attempt; empty if unknown."""
    header = facts.header
    return (header.host or header.process.host) if header else ""
