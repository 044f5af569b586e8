"""runs.parquet: where the device time of each attempt went.

wall = load + compile + warmup + other + move + busy + idle + tail
load     until it could render; of an attempt that did not get so far, as long as it tried
other    further phases that the attempt wrote down, by whatever name
move     components on their way to the device and from it (one at a time in mode `model`)
busy     the rendering thread encoded or denoised; decoding and writing run behind it and have
         columns of their own; busy = useful + retried + saved + lost
idle     it waited: for rows, for its writer, for other ranks (to join the shard's queue, while one
         of them renders a suspect)
tail     the same after its last work, up to the end; all of it in a rank that had no row
useful   its share in the commits that won; of a row that an earlier attempt had saved, this
         attempt's part
retried  its share in tries that failed, and in commits that did not win: failed ones, ones
         another attempt overruled or that came after the attempt was fenced off (fenced: the
         latter alone)
saved    its share in rows that were kept as they stood for another attempt to go on with
lost     its share in rows that were dropped in flight: what it had spent, at its last sign, on rows
         that no line of it has closed
The attempt measures them by one clock (`engine.clock`) and writes them into its lines and counters.
Of an attempt that was killed the last of these signs counts, and the wall time ends there too: what
it did after that is not known. The wall time is by the time of day in the first and the last sign.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.catalog.columns import COUNTERS, LAYOUT, LAYOUT_PREFIX, RUNS, default_of
from batchgen.ledger.commits import commit_column, parse_commits
from batchgen.ledger.intent import Intent, read_intent
from batchgen.ledger.scan import STATUS_CODES, CommitIndex, JournalFacts
from batchgen.ledger.tally import Counters, read_counters
from batchgen.ledger.winners import Winners
from batchgen.paths import RunPaths
from batchgen.records import RankSeconds
from batchgen.runfile import RunFile

_CHUNK = 50_000
_BUSY = ("encode", "denoise")
_PHASES = ("load_s", "compile_s", "warmup_s", "other_s")
_CLOCK = ("load_s", "move_s", "busy_s", "encode_s", "denoise_s", "idle_s", "tail_s", "lost_s")
WALL_PARTS = (*_PHASES, "move_s", "busy_s", "idle_s", "tail_s")
BUSY_PARTS = ("useful_s", "retried_s", "saved_s", "lost_s")


class Spent:
    """Seconds of every commit line: added as the catalog is made, so that lines are parsed once."""

    def __init__(self, index: CommitIndex) -> None:
        self._index = index
        self.busy_s = np.full(len(index.row_index), np.nan)
        self.write_s = np.zeros(len(index.row_index))

    def add(self, lines: np.ndarray, commits: pa.Table) -> None:
        """Commits at places `lines` of the index, as parsed by `table.parse_commits`."""
        self.busy_s[lines] = sum(_seconds(commits, stage) for stage in _BUSY)
        self.write_s[lines] = _seconds(commits, "write")

    def add_rest(self) -> None:
        """Parse the commits that did not win."""
        rest = np.flatnonzero(np.isnan(self.busy_s))
        for begin in range(0, len(rest), _CHUNK):
            lines = rest[begin : begin + _CHUNK]
            self.add(lines, parse_commits(self._index, lines))


def attempt_table(run: RunPaths, found: Winners, spent: Spent, header: RunFile) -> pa.Table:
    """One row an attempt, in schema `RUNS`; `spent` holds the winning commits at least."""
    won = np.zeros(len(found.index.row_index), bool)
    won[found.line[found.line >= 0]] = True
    won &= found.index.status == STATUS_CODES["ok"]
    spent.add_rest()
    intents: dict[int, Intent | None] = {}
    rows = []
    bounds = np.searchsorted(found.index.journal, np.arange(len(found.index.journals) + 1))
    for number, facts in enumerate(found.index.journals):
        submission = facts.journal.attempt.submission
        if submission not in intents:
            intents[submission] = read_intent(run, submission)
        lines = slice(int(bounds[number]), int(bounds[number + 1]))  # a journal's lines adjoin
        counters = read_counters(run.counters(facts.journal.attempt))
        row = _identity(run, facts) | _work(facts, counters)
        row |= _rows_and_seconds(found.index, facts, lines, won, spent)
        row |= _configuration(intents[submission], header) | _layout(intents[submission])
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=RUNS)


def load_seconds(index: CommitIndex) -> list[float]:
    """Of each attempt that loaded its model."""
    found = ([p.seconds for p in facts.phases if p.name == "load"] for facts in index.journals)
    return [sum(seconds) for seconds in found if seconds]


def _clock(facts: JournalFacts, counters: Counters | None) -> dict[str, float]:
    """What the attempt measured, by its last line or, without one, by its last sign."""
    if facts.end is not None:
        return {name: getattr(facts.end, name) for name in _CLOCK}
    spent = facts.spent or RankSeconds()
    if counters is not None and counters.t >= facts.last_t:
        spent = counters.spent
    return {name: getattr(spent, name.removesuffix("_s")) for name in _CLOCK[:-1]} | {
        "lost_s": spent.open
    }


def _last_sign(facts: JournalFacts, counters: Counters | None) -> float:
    return max(facts.last_t, counters.t if counters else 0.0)


def _seconds(commits: pa.Table, stage: str) -> np.ndarray:
    column = commit_column(commits, f"stats.stages.{stage}")
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
    """Wall time, phases and what the last line (or sign) says."""
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
        "wall_s": max(0.0, ended - began),
        **clock,
        **phases,
        **{c.name: getattr(end, c.name) if end else c.default for c in COUNTERS},
        "error": end.error if end else "",
        "exit_reason": end.reason if end else "killed",
    }


def _rows_and_seconds(
    index: CommitIndex, facts: JournalFacts, lines: slice, won: np.ndarray, spent: Spent
) -> dict[str, Any]:
    accepted, status, chosen = index.accepted[lines], index.status[lines], won[lines]
    failed = (status != STATUS_CODES["ok"]) & (status != STATUS_CODES["void"])
    busy = spent.busy_s[lines]
    return {
        "rows_ok": int(chosen.sum()),
        "rows_failed": int((accepted & failed).sum()),
        "rows_wasted": int((~accepted).sum()),
        "rows_saved": len(facts.saved),
        "rows_lost": len(facts.in_flight.rows),
        "useful_s": float(busy[chosen].sum()),
        "retried_s": float(busy[~chosen].sum()) + facts.tried_s,
        "fenced_s": float(busy[~accepted].sum()),
        "saved_s": sum(facts.saved.values(), 0.0),
        "write_s": float(spent.write_s[lines].sum()),
    }


def _configuration(intent: Intent | None, header: RunFile) -> dict[str, Any]:
    """What the attempt's submission ran under; the run's own where that was not recorded."""
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
