"""How far a run is. Uses the standard library only, so that the answer comes at once on any
machine.

Adds up the counters beside each journal and reads the few journal lines after them, so the figures
are exact right after a kill -9 too. Asks no scheduler.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from batchgen.ledger.counts import ChangedCounts, Counters, Counts, read_counters
from batchgen.ledger.events import (
    HEAD,
    AttemptHeader,
    End,
    decode_line,
    from_plain,
    is_whole,
    spent_of,
    time_of,
)
from batchgen.ledger.intent import (
    FencedJournal,
    Intent,
    changed_counts,
    fenced_journals,
    last_intent,
    last_render,
    read_intent,
    refuse_lost_intent,
    suspects_of,
)
from batchgen.ledger.journal import RECENT, raw_lines, whole_lines
from batchgen.ledger.reading.fold import InFlight, is_death
from batchgen.paths import RunPaths
from batchgen.processes import ProcessId
from batchgen.records import Attempt, Climb, Layout
from batchgen.runfile import read_run
from batchgen.words import Tabled

STALE_S = 60.0  # an attempt on another machine without a heartbeat for this long is taken for dead
State = Literal["planned", "submitted", "running", "stopped", "finished"]
Life = Literal["running", "ended", "dead"]


@dataclass(frozen=True, slots=True)
class AttemptStatus:
    """One attempt as its journal and counters show it."""

    attempt: Attempt
    life: Life  # dead = gone without an end line
    phase: str  # load, then render
    host: str
    process: ProcessId
    device: str
    started: int  # rows
    commits: int  # rows
    wall_s: float
    gpu_s: float  # wall time x devices
    devices: int  # ranks of the replica
    heartbeat_age_s: float
    ended: str  # reason of its end; empty if it did not end by itself
    error: str  # message, where `ended` is the class of an error
    fenced: bool  # what it still appends is waste
    memory_rung: str  # the highest one it has climbed to; empty: none

    @property
    def running(self) -> int:
        """Rows in flight; 0 if the attempt is not alive."""
        return max(0, self.started - self.commits) if self.life == "running" else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus(Tabled):
    """Rows are manifest rows: ok + failed + quarantined + left = rows."""

    run: str
    state: State
    rows: int
    unique_rows: int  # rows that are rendered; the others are aliases of them
    aliases: int
    ok: int
    failed: int
    quarantined: int
    suspects: int  # rows in flight at a death, to be rendered alone, not yet committed
    left: int  # not finished, including those in flight
    running: int  # rows in flight now (each may stand for several manifest rows)
    submission: int  # the last one; 0 = none yet
    shards: int  # of the last submission
    layout: Layout | None  # of the last one that started ranks; None: not recorded
    attempts: tuple[AttemptStatus, ...]
    rate_per_s: float  # rows that live attempts rendered a second, lately; 0 if none is live
    eta_s: float | None  # None = unknown, or nothing left
    gpu_hours: float
    last_error: str
    t: float

    @property
    def alive(self) -> int:
        """Number of attempts that run now."""
        return sum(attempt.life == "running" for attempt in self.attempts)


def read_status(run: RunPaths, now: float | None = None) -> RunStatus:
    """Status of a run from its folder alone; RunStateError if it is not a run folder, or if its
    ledger does not say which rows count."""
    now = time.time() if now is None else now
    header = read_run(run)
    refuse_lost_intent(run)
    intent = last_intent(run)
    views = [_View(run, intent, journal) for journal in fenced_journals(run)]
    attempts = tuple(view.status(now) for view in views)
    current = [v for v in views if intent and v.journal.attempt.submission == intent.number]
    counts = sum((v.counters.changes for v in current), intent.before if intent else Counts())
    rows, render = header.rows, last_render(run)
    rate = sum(v.rate(now) for v, a in zip(views, attempts, strict=True) if a.life == "running")
    todo = max(0, intent.rows - sum(v.counters.commits for v in current)) if intent else 0
    errors = [(v.counters.last_error_t, v.counters.last_error) for v in views]
    return RunStatus(
        run=str(run.root),
        state=_state(intent, attempts, rows - counts.total, todo),
        rows=rows,
        unique_rows=header.unique_rows,
        aliases=rows - header.unique_rows,
        ok=counts.ok,
        failed=counts.failed,
        quarantined=counts.quarantined,
        suspects=_suspects(run, intent, views, attempts),
        left=rows - counts.total,
        running=sum(attempt.running for attempt in attempts),
        submission=intent.number if intent else 0,
        shards=intent.shards if intent else 0,
        layout=render.layout if render else None,
        attempts=attempts,
        rate_per_s=rate,
        eta_s=todo / rate if rate > 0 and todo else None,
        gpu_hours=sum(attempt.gpu_s for attempt in attempts) / 3600,
        last_error=max(errors, default=(0.0, ""))[1],
        t=now,
    )


def live_attempts(run: RunPaths) -> list[AttemptStatus]:
    """Attempts that run now. One on another machine counts if its heartbeat is recent."""
    now = time.time()
    intent = last_intent(run)
    views = [_View(run, intent, journal) for journal in fenced_journals(run)]
    return [s for s in (view.status(now) for view in views) if s.life == "running"]


def _state(intent: Intent | None, attempts: Iterable[AttemptStatus], left: int, todo: int) -> State:
    """`todo`: rows of the last submission that it has not committed; some may be rendered again, so
    that none is `left`."""
    if intent is None:
        return "planned"
    lives = [a.life for a in attempts if a.attempt.submission == intent.number]
    if "running" in lives:
        return "running"
    if left == 0 and (todo == 0 or intent.kind != "render"):
        return "finished"
    return "stopped" if lives or intent.kind != "render" else "submitted"


def _suspects(
    run: RunPaths, intent: Intent | None, views: Iterable[_View], attempts: Iterable[AttemptStatus]
) -> int:
    """Rows of the last submission that were in flight at a death and are not committed since."""
    if intent is None:
        return 0
    rows, cleared = set(intent.suspects), set()
    for view, status in zip(views, attempts, strict=True):
        if status.attempt.submission == intent.number:
            rows |= suspects_of(run, intent, status.attempt)
            died = status.life != "running" and is_death(status.ended)
            rows |= {*view.counters.open_rows} if died else set()
            cleared |= {*view.counters.cleared}
    return len(rows - cleared)


class _View:
    """The counters of a journal, brought up to date with the lines after them."""

    def __init__(self, run: RunPaths, intent: Intent | None, journal: FencedJournal) -> None:
        self.run, self.journal = run, journal
        counters = read_counters(run.counters(journal.attempt))
        current = intent is not None and journal.attempt.submission == intent.number
        if counters is None:
            counters = _from_header(journal)
        elif counters.ended and (journal.limit is None or counters.offset <= journal.limit):
            current = False  # an ended attempt's counters are complete: no lines to follow
        elif current and counters.offset > _length(journal):
            counters = replace(
                _from_header(journal),
                process=counters.process,
                ended=counters.ended,
                error=counters.error,
            )
        if current:
            counters = _follow(run, intent, journal, counters)
        self.counters = counters

    def status(self, now: float) -> AttemptStatus:
        """The attempt at time `now` (unix seconds)."""
        counters = self.counters
        age = max(0.0, now - counters.t)
        life = "ended" if counters.ended else _life(counters.process, age)
        if life == "running" and _is_of_another(self.run, self.journal.attempt.submission):
            life = "dead"
        wall = counters.wall_s + (age if life == "running" else 0.0)
        return AttemptStatus(
            attempt=self.journal.attempt,
            life=life,
            phase=counters.phase,
            host=counters.process.host,
            process=counters.process,
            device=counters.device,
            started=counters.commits + len(counters.open_rows),
            commits=counters.commits,
            wall_s=wall,
            gpu_s=wall * counters.devices,
            devices=counters.devices,
            heartbeat_age_s=age,
            ended=counters.ended,
            error=counters.error,
            fenced=self.journal.limit is not None,
            memory_rung=counters.memory_rung,
        )

    def rate(self, now: float) -> float:
        """Rows a second over the last RECENT commits; over all, where the clock was set in
        between."""
        recent, counters = self.counters.recent, self.counters
        if not recent:
            return 0.0
        wall = counters.wall_s + max(0.0, now - counters.t)
        if len(recent) == RECENT and 0 < (lately := now - recent[0]) <= wall:
            return len(recent) / max(1e-3, lately)
        return counters.commits / max(1e-3, wall)


def _life(process: ProcessId, age_s: float) -> Life:
    """Whether an attempt without an end line lives; `age_s` is the age of its heartbeat."""
    alive = process.alive()
    return "running" if alive or (alive is None and age_s < STALE_S) else "dead"


def _is_of_another(run: RunPaths, submission: int) -> bool:
    """Whether the submission was begun in the folder of which this one is a copy."""
    intent = read_intent(run, submission)
    return intent is not None and not intent.place.is_of(run)


def _length(journal: FencedJournal) -> int:
    """Bytes of the journal that count. Counters may be ahead of them: a fenced-off attempt counts
    on, and a power cut may take lines."""
    size = journal.path.stat().st_size
    return size if journal.limit is None else min(size, journal.limit)


def _from_header(journal: FencedJournal) -> Counters:
    """Counters at the first line, for an attempt that was killed before it wrote any counters."""
    unknown = Counters(offset=0, process=ProcessId("", 0, "", 0))
    _, first = next(raw_lines(journal.path), (0, b""))
    event = decode_line(first) if first.endswith(b"\n") and is_whole(first) else None
    if not isinstance(event, AttemptHeader):
        return unknown
    return replace(
        unknown,
        process=event.process,
        device=event.device,
        devices=event.devices,
        began=event.t,
        t=event.t,
    )


def _follow(
    run: RunPaths, intent: Intent | None, journal: FencedJournal, counters: Counters
) -> Counters:
    """Counters after the whole lines beyond `counters.offset`. These are few, but if counters were
    lost it is the whole journal; so ok commits and starts are not parsed as JSON."""
    changed: ChangedCounts | None = None
    suspects: frozenset[int] = frozenset()
    cleared = list(counters.cleared)
    in_flight, last = InFlight.of(counters.open_rows), b""
    tail = deque[bytes](maxlen=RECENT)
    for line in whole_lines(journal.path, journal.limit, counters.offset):
        found = in_flight.take_in(line)
        if found is None:
            counters = _with_event(counters, line)
        elif found.re is HEAD:
            if changed is None:
                changed = changed_counts(run, intent, journal.attempt)
                suspects = suspects_of(run, intent, journal.attempt)
            row = int(found[2])
            changed.add(row, found[3].decode())
            if row in suspects:
                cleared.append(row)
            if found[1] == b"commit":
                tail.append(line)
            if found[3] != b"ok":
                counters = _with_error(counters, line)
        last = line
    times = (*counters.recent, *(json.loads(line)["ended"] for line in tail))
    if in_flight.rows or tail:
        counters = replace(counters, phase="render")
    return replace(
        counters,
        open_rows=tuple(in_flight.rows),
        commits=counters.commits + (changed.commits if changed else 0),
        changes=counters.changes + (changed.counts if changed else Counts()),
        t=time_of(last) or counters.t,
        spent=spent_of(last) or counters.spent,
        recent=times[-RECENT:],
        cleared=tuple(cleared),
    )


def _with_event(counters: Counters, line: bytes) -> Counters:
    plain = json.loads(line)
    if plain["kind"] == "device":
        return replace(counters, device=plain["name"])
    if plain["kind"] == "phase":
        return replace(counters, phase="render")
    if plain["kind"] == "climbed":
        climb = from_plain(Climb, plain["climb"])
        return replace(counters, memory_rung=climb.above(counters.memory_rung))
    if plain["kind"] == "end":
        return counters.after_end(from_plain(End, plain))
    return counters


def _with_error(counters: Counters, line: bytes) -> Counters:
    plain = json.loads(line)
    if not plain.get("error_type"):
        return counters
    text = f"{plain['error_type']}: {plain.get('error', '')}"
    return replace(counters, last_error=text, last_error_t=plain["ended"])
