"""Attempts that ended without a word."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.ledger.intent import FenceTimes, fence_times
from batchgen.ledger.scan import CommitIndex, JournalFacts
from batchgen.ledger.tally import read_counters
from batchgen.paths import RunPaths
from batchgen.records import Attempt

# Clocks of two machines may differ by this: more fails `slurm check`. Who lived on for less than
# that after it was fenced off, and then died, is taken for one that died before.
FENCE_MARGIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Death:
    """An attempt that ended without a word."""

    attempt: Attempt
    host: str
    device: str  # what tells it from others of that host
    rows: tuple[int, ...]  # row_index of the rows in flight
    alone: bool  # the one row was rendered alone, as a suspect
    signalled: bool  # it was told to end before: neither its rows nor its machine are behind it

    @property
    def place(self) -> tuple[str, str]:
        """The device it was on."""
        return self.host, self.device

    def __str__(self) -> str:
        how = "alone" if self.alone else f"rows in flight: {len(self.rows)}"
        return f"{self.attempt.tag} on {self.host or 'an unknown host'} ({how})"


def find_deaths(run: RunPaths, index: CommitIndex, live: set[Attempt]) -> tuple[Death, ...]:
    """Attempts without a last line that are not in `live`, in the order of attempts. What an
    attempt did after it was fenced off counts for nothing, its death neither."""
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
        alone, rows = facts.in_flight.died_alone, sorted(facts.in_flight.suspects)
        host, device = place_of(facts)
        death = Death(
            attempt=attempt,
            host=host,
            device=device,
            rows=tuple(rows),
            alone=alone,
            signalled=facts.signalled,
        )
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


def place_of(facts: JournalFacts) -> tuple[str, str]:
    """The device that an attempt was on: its host and what tells it from others there; the latter
    is empty as long as the attempt has not found out."""
    header = facts.header
    return host_of(facts), (header.device_id or header.device) if header else ""


def host_of(facts: JournalFacts) -> str:
    """Where an attempt was; empty if unknown."""
    header = facts.header
    return (header.host or header.process.host) if header else ""
