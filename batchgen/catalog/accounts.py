"""runs.parquet: where the device time of each attempt went, in seconds.

wall = load + compile + warmup + other + move + busy + shared decode + idle + tail
load     until the attempt could render, or until it ended if it never could
other    further phases that the attempt wrote down, whatever their names
move     moving components to the device and back (one at a time in mode `model`)
busy     the rendering thread encoded or denoised; decoding and writing run behind it and have
         columns of their own; busy = useful + retried + saved + lost
shared decode  all ranks of a replica decoded a row together, each some of its tiles
idle     waiting: for rows, for the writer, or for other ranks (until they join the shard's queue,
         or while one of them renders a suspect)
tail     idle time after the last work; all idle time of a rank that had no row
useful   part of busy in commits that won, with what their audits took; of a row that an earlier
         attempt had saved, only what this attempt spent on it
retried  part of busy in tries that failed and in commits that did not win: failed ones, and ones
         that were overruled or came after the attempt was fenced off (fenced: the latter alone)
saved    part of busy in rows that were saved in flight for another attempt
lost     part of busy in rows that were dropped in flight: those without a closing line
The attempt measures all of them by one clock (`engine.clock`) and writes them into its lines and
counters. For a killed attempt the last line or counters file counts, and the wall time ends there,
since nobody knows what it did later. The wall time is taken from the time of day of the first and
the last of these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.catalog.columns import COUNTERS, LAYOUT, LAYOUT_PREFIX, RUNS, default_of
from batchgen.ledger.counts import Counters, read_counters
from batchgen.ledger.intent import Intent, read_intent
from batchgen.ledger.reading.commits import commit_column, parse_commits
from batchgen.ledger.reading.scan import STATUS_CODES, CommitIndex, JournalFacts
from batchgen.ledger.reading.winners import Winners
from batchgen.paths import RunPaths
from batchgen.records import RankSeconds
from batchgen.runfile import RunFile

_CHUNK = 50_000
_NS = 1e9
_BUSY = ("stages.encode", "stages.denoise", "audit.busy")
_PHASES = ("load_s", "compile_s", "warmup_s", "other_s")
_CLOCK = (
    *("load_s", "move_s", "busy_s", "encode_s", "denoise_s", "shared_decode_s"),
    *("idle_s", "tail_s", "lost_s"),
)
WALL_PARTS = (*_PHASES, "move_s", "busy_s", "shared_decode_s", "idle_s", "tail_s")
BUSY_PARTS = ("useful_s", "retried_s", "saved_s", "lost_s")


class Spent:
    """What the commit lines of each journal say, added up. Those that count for a row are added
    part by part while the catalog is made, so that no line is parsed for this alone."""

    def __init__(self, journals: int) -> None:
        """`journals`: how many there are."""
        # whole nanoseconds: their sums are the same in whatever order they are added
        self._useful, self._retried, self._fenced, self._write = np.zeros((4, journals))
        self.ok, self.failed, self.wasted = np.zeros((3, journals), np.int64)  # lines

    def add(
        self, index: CommitIndex, lines: np.ndarray, seconds: Seconds, counts: bool = True
    ) -> None:
        """Add lines of an index with their seconds; `counts`: each for a row of the plan."""
        ok = (index.status[lines] == STATUS_CODES["ok"]) & counts
        fenced = ~index.accepted[lines]
        busy, write = (np.rint(each * _NS) for each in (seconds.busy, seconds.write))
        self._useful += self._by_journal(index, lines[ok], busy[ok])
        self._retried += self._by_journal(index, lines[~ok], busy[~ok])
        self._fenced += self._by_journal(index, lines[fenced], busy[fenced])
        self._write += self._by_journal(index, lines, write)

    def add_rest(self, found: Winners) -> None:
        """Once the lines that count for rows of a band are added: its others, which are parsed for
        it, and how many lines of each kind there are."""
        index, own = found.index, slice(found.plan.own)
        won = np.zeros(len(index.row_index), bool)
        won[found.line[own][~found.plan.alias[own] & (found.line[own] >= 0)]] = True
        home = found.home
        rest = np.flatnonzero(home & ~won)
        for begin in range(0, len(rest), _CHUNK):
            lines = rest[begin : begin + _CHUNK]
            self.add(index, lines, Seconds.of(parse_commits(index, lines)), counts=False)
        is_ok, void = (index.status == STATUS_CODES[name] for name in ("ok", "void"))
        self.ok += self._count(index, won & is_ok)
        self.failed += self._count(index, home & index.accepted & ~is_ok & ~void)
        self.wasted += self._count(index, home & ~index.accepted)

    def seconds(self, journal: int) -> dict[str, float]:
        """Of the journal of that number."""
        names = ("useful_s", "retried_s", "fenced_s", "write_s")
        sums = (self._useful, self._retried, self._fenced, self._write)
        return {name: float(ns[journal]) / _NS for name, ns in zip(names, sums, strict=True)}

    def _by_journal(self, index: CommitIndex, lines: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.bincount(index.journal[lines], weights=weights, minlength=len(self.ok))

    def _count(self, index: CommitIndex, flags: np.ndarray) -> np.ndarray:
        return np.bincount(index.journal[flags], minlength=len(self.ok))


@dataclass(frozen=True, slots=True, eq=False)
class Seconds:
    """What some lines say of the time that their rows took; float64, one each."""

    busy: np.ndarray
    write: np.ndarray

    @classmethod
    def of(cls, commits: pa.Table) -> Seconds:
        """Those of commits as parsed by `parse_commits`."""
        busy = sum((_seconds(commits, part) for part in _BUSY), np.zeros(len(commits)))
        return cls(busy, _seconds(commits, "stages.write"))


def attempt_table(
    run: RunPaths, journals: Sequence[JournalFacts], spent: Spent, header: RunFile
) -> pa.Table:
    """One row for each attempt, in schema `RUNS`; `spent` must hold all lines."""
    intents: dict[int, Intent | None] = {}
    rows = []
    for number, facts in enumerate(journals):
        submission = facts.journal.attempt.submission
        if submission not in intents:
            intents[submission] = read_intent(run, submission)
        counters = read_counters(run.counters(facts.journal.attempt))
        row = _identity(run, facts) | _work(facts, counters)
        row |= _rows(spent, facts, number) | _seconds_of(spent, facts, number)
        row |= _configuration(intents[submission], header) | _layout(intents[submission])
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=RUNS)


def load_seconds(journals: Sequence[JournalFacts]) -> list[float]:
    """Seconds to load the model, of each attempt that did so."""
    found = ([p.seconds for p in facts.phases if p.name == "load"] for facts in journals)
    return [sum(seconds) for seconds in found if seconds]


def _clock(facts: JournalFacts, counters: Counters | None) -> dict[str, float]:
    """What the attempt measured, by its end line or, without one, by its last line or counters."""
    if facts.end is not None:
        return {name: getattr(facts.end, name) for name in _CLOCK}
    spent = facts.spent or RankSeconds()
    if counters is not None and counters.t >= facts.last_t:
        spent = counters.spent
    return {name: getattr(spent, name.removesuffix("_s")) for name in _CLOCK[:-1]} | {
        "lost_s": spent.open
    }


def _measured(clock: dict[str, float]) -> float:
    """All seconds of an attempt; encoding and denoising are in `busy_s`. 0 in old runs."""
    return sum(clock[f"{n}_s"] for n in ("load", "move", "busy", "shared_decode", "idle", "tail"))


def _last_sign(facts: JournalFacts, counters: Counters | None) -> float:
    return max(facts.last_t, counters.t if counters else 0.0)


def _seconds(commits: pa.Table, part: str) -> np.ndarray:
    column = commit_column(commits, f"stats.{part}")
    seconds: np.ndarray = pc.fill_null(column, 0.0).to_numpy()
    return seconds


def _identity(run: RunPaths, facts: JournalFacts) -> dict[str, Any]:
    attempt, header = facts.journal.attempt, facts.header
    return {
        "run": run.root.name,
        "attempt": attempt.tag,
        "submission": attempt.submission,
        "task": attempt.task,
        "restart": attempt.restart,
        "replica": attempt.replica,
        "rank": header.rank if header else 0,
        "world_size": header.world_size if header else 1,
        "host": header.host or header.process.host if header else "",
        "job_id": header.job_id if header else "",
        "device": header.device if header else "",
        "devices": header.devices if header else 1,
        "versions": json.dumps(dict(header.versions) if header else {}),
    }


def _work(facts: JournalFacts, counters: Counters | None) -> dict[str, Any]:
    """Wall time, phases, and what the end line (or the last line or counters) says."""
    end, header = facts.end, facts.header
    began = header.t if header else facts.first_start_t
    ended = end.t if end else _last_sign(facts, counters)
    clock, phases = _clock(facts, counters), dict.fromkeys(_PHASES, 0.0)
    for phase in facts.phases:
        name = f"{phase.name}_s"
        phases[name if name in phases else "other_s"] += phase.seconds
    phases["load_s"] = phases["load_s"] or clock["load_s"]
    return {
        "started": began,
        "ended": ended,
        "wall_s": _measured(clock) or max(0.0, ended - began),  # clocks are set
        **clock,
        **phases,
        **{c.name: getattr(end, c.name) if end else c.default for c in COUNTERS},
        "error": end.error if end else "",
        "exit_reason": end.reason if end else "killed",
    }


def _rows(spent: Spent, facts: JournalFacts, number: int) -> dict[str, Any]:
    """Of the journal of that number."""
    return {
        "rows_ok": int(spent.ok[number]),
        "rows_failed": int(spent.failed[number]),
        "rows_wasted": int(spent.wasted[number]),
        "rows_saved": len(facts.saved),
        "rows_lost": len(facts.in_flight.rows),
    }


def _seconds_of(spent: Spent, facts: JournalFacts, number: int) -> dict[str, Any]:
    """Of the journal of that number."""
    seconds = spent.seconds(number)
    seconds["retried_s"] += facts.tried_s
    return seconds | {"saved_s": sum(facts.saved.values(), 0.0)}


def _configuration(intent: Intent | None, header: RunFile) -> dict[str, Any]:
    """Of the attempt's submission, or of the run if that was not recorded."""
    if intent is not None and intent.config:
        return {"config": json.dumps(intent.config), "overrides": json.dumps(intent.overrides)}
    return {"config": json.dumps(header.config), "overrides": json.dumps(header.overrides)}


def _layout(intent: Intent | None) -> dict[str, Any]:
    """What the attempt was to obey; defaults of their kind where that was not recorded."""
    layout = intent.layout if intent is not None else None
    if layout is None:
        return {field.name: default_of(field.type) for field in LAYOUT}
    return {"layout": str(layout)} | {
        field.name: getattr(layout, field.name.removeprefix(LAYOUT_PREFIX)) for field in LAYOUT[1:]
    }
