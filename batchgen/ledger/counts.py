"""Counts of rows by status as commits come in, and the small file that carries them.

Counts are in manifest rows: a row that is rendered once for three equal manifest rows counts three.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from batchgen.errors import RunStateError
from batchgen.ledger.events import End, from_plain
from batchgen.processes import ProcessId
from batchgen.records import RankSeconds
from batchgen.regular import read_control

MISSING = "missing"
FINAL = ("ok", "failed", "quarantined")


@dataclass(frozen=True, slots=True)
class Counts:
    """Manifest rows by the status that the catalog would show."""

    ok: int = 0
    failed: int = 0
    quarantined: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.ok + other.ok,
            self.failed + other.failed,
            self.quarantined + other.quarantined,
        )

    @property
    def total(self) -> int:
        """Number of rows that have a status."""
        return self.ok + self.failed + self.quarantined


class ChangedCounts:
    """Changes of the counts since a known state.

    `known` holds the status of every row that may be committed here and was not missing before;
    `copies` holds the number of manifest rows of each row that stands for more than one. The rule
    is that of `ledger.winners`: an ok row stays ok, otherwise the last status counts.
    """

    def __init__(self, known: Mapping[int, str], copies: Mapping[int, int]) -> None:
        self._known = dict(known)
        self._copies = copies
        self._counts = dict.fromkeys(FINAL, 0)
        self.commits = 0

    def add(self, row_index: int, status: str) -> None:
        """Count one commit line, or one void line (status `void`)."""
        before = self._known.get(row_index, MISSING)
        after = MISSING if status == "void" else status
        if status != "void":
            self.commits += 1
            after = "ok" if before == "ok" else status
        if before == after:
            return
        copies = self._copies.get(row_index, 1)
        for name, change in ((before, -copies), (after, copies)):
            if name != MISSING:
                self._counts[name] += change
        if after == "ok":
            self._known.pop(row_index, None)  # not committed again here; keeps memory flat
        else:
            self._known[row_index] = after

    @property
    def counts(self) -> Counts:
        """The changes so far; single numbers may be negative."""
        return Counts(**self._counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What one journal says up to byte `offset`. `status` reads this and the few lines after it."""

    offset: int
    synced: int = 0  # bytes of the journal that are synced; 0 = not recorded
    process: ProcessId
    device: str = ""
    devices: int = 1
    began: float = 0.0  # unix seconds
    t: float = 0.0  # heartbeat: when this file was written
    open_rows: tuple[int, ...] = ()  # row_index of rows in flight
    commits: int = 0  # commit lines
    changes: Counts = field(default_factory=Counts)
    recent: tuple[float, ...] = ()  # times of the last commits
    phase: str = "load"  # load, then render
    cleared: tuple[int, ...] = ()  # suspects that were committed
    memory_rung: str = ""  # the highest one it has climbed to
    last_error: str = ""
    last_error_t: float = 0.0
    spent: RankSeconds = field(default_factory=RankSeconds)  # at the heartbeat
    ended: str = ""  # reason of the end; empty while it runs (or was killed)
    error: str = ""  # message, if an error ended it

    @property
    def wall_s(self) -> float:
        """Seconds from the beginning to the heartbeat: as measured, since clocks are set."""
        return self.spent.wall or max(0.0, self.t - self.began)

    def after_end(self, end: End) -> Counters:
        """These counters once the attempt has ended by itself."""
        ended = replace(self, ended=end.reason, error=end.error, recent=())  # it has no rate
        if not end.error:
            return ended
        return replace(ended, last_error=f"{end.reason}: {end.error}", last_error_t=end.t)


def read_counters(path: Path) -> Counters | None:
    """The counters of a journal; None if there are none or they are damaged: then read the whole
    journal."""
    plain, counters = None, None
    with suppress(RunStateError):
        plain = read_control(path)
    if plain is None:
        return None
    with suppress(KeyError, TypeError):  # written by another version, or damaged
        counters = _restored(plain)
    if counters is None:
        with suppress(ValueError):
            counters = from_plain(Counters, plain)
    return counters if counters is not None and _is_sane(counters) else None


def _is_sane(counters: Counters) -> bool:
    """Whether every value has its type; damaged counters are treated as absent."""
    process, changes, spent = counters.process, counters.changes, counters.spent
    texts = (process.host, process.place, counters.device, counters.phase, counters.last_error,
             counters.memory_rung, counters.ended, counters.error)  # fmt: skip
    whole = (counters.commits, process.pid, process.start, changes.ok, changes.failed,
             changes.quarantined, *counters.open_rows, *counters.cleared)  # fmt: skip
    figures = (counters.devices, counters.began, counters.t, counters.last_error_t,
               *counters.recent, spent.load, spent.busy, spent.idle, spent.tail)  # fmt: skip
    return (
        all(type(text) is str for text in texts)
        and all(type(number) is int for number in (counters.offset, *whole))
        and all(type(figure) in (int, float) for figure in figures)
        and counters.offset >= 0
    )


def _restored(plain: dict[str, Any]) -> Counters:
    """Like `from_plain`, but faster, for exactly the fields of this version: `status` reads
    thousands of these."""
    return Counters(
        **plain
        | {
            "process": ProcessId(**plain["process"]),
            "changes": Counts(**plain["changes"]),
            "spent": RankSeconds(**plain["spent"]),
            "open_rows": tuple(plain["open_rows"]),
            "cleared": tuple(plain["cleared"]),
            "recent": tuple(plain["recent"]),
        }
    )
