"""What a submission or a restarted task wrote down before it began: the fence around the past.

`submissions/<n>/intent.json` holds the accepted byte length of every earlier journal. What an older
attempt appends after that, however late, is waste and is never published. A restarted task draws
the same line before the journals of its own earlier starts. A submission folder without an intent
(a crash in between) counts as empty.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from batchgen.anchor import Place
from batchgen.config.build import build
from batchgen.config.schema import JobConfig, SlurmConfig
from batchgen.errors import ConfigError, RunStateError
from batchgen.ledger.events import from_plain, to_plain
from batchgen.ledger.tally import Counts, Tally
from batchgen.paths import RunPaths, as_typed, parse_journal
from batchgen.processes import ProcessId
from batchgen.records import Attempt, Layout
from batchgen.regular import Damaged, read_control

T = TypeVar("T")
SCHEMA = 1
_SEAL = "sha256"
INTENT_UNSEEN_S = 5.0  # a submission's journals may be seen so long before its intent
_FENCES = ".accept.json"
_FENCE_NAME = re.compile(r"(\d+)-r(\d+)\.accept\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """One submission: what it is to do, and how much of the past it accepts."""

    number: int
    kind: str  # render, or one that renders nothing: repair, quarantine
    created: float  # unix seconds
    made_by: ProcessId
    manifest_rows: int
    rows: int  # rows to render now
    shards: int
    accepted: dict[str, int]  # journal, relative to the journal folder -> bytes
    before: Counts  # manifest rows by status at that moment
    reopened: dict[str, tuple[int, ...]] = field(default_factory=dict)  # status -> its row_index
    copies: dict[int, int] = field(default_factory=dict)  # row_index -> manifest rows, where > 1
    config: dict[str, Any] = field(default_factory=dict)  # resolved; see `config_of`, `profile_of`
    layout: Layout | None = None  # what its ranks obey; None: it starts none, or is older than it
    overrides: tuple[str, ...] = ()
    attempt: int = 1  # this many submissions in a row, this one too, without progress before it
    excluded: dict[str, str] = field(default_factory=dict)  # host -> why it gets no work
    suspects: tuple[int, ...] = ()  # rows to be rendered alone
    lost: tuple[str, ...] = ()  # files of submissions that were gone by then, in the run folder
    place: Place = field(default_factory=Place)  # of the run folder: its jobs are not of a copy
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """What one restart of a task accepts of the earlier starts of the same task."""

    accepted: dict[str, int]
    statuses: dict[int, str]  # row_index -> status of the rows that they committed
    suspects: tuple[int, ...] = ()  # other rows, which were in flight when one of them died
    withheld: tuple[int, ...] = ()  # of these who was alone: left to the next submission to judge
    created: float = 0.0  # unix seconds; 0 = not recorded
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class AcceptedJournal:
    """A journal of the run and how many of its bytes count (None: all of it)."""

    path: Path
    attempt: Attempt
    limit: int | None


def submission_numbers(run: RunPaths) -> list[int]:
    """Numbers taken so far, with or without an intent, in order; also those whose folder is gone
    but not their journals."""
    folders = run.submissions.iterdir() if run.submissions.is_dir() else ()
    numbers = {int(p.name) for p in folders if p.name.isdecimal()}
    return sorted(numbers.union(map(run.block_submission, run.journal_blocks())))


def read_intent(run: RunPaths, number: int) -> Intent | None:
    """The intent of a submission; None if a crash came before it was written."""
    return _read(Intent, run.intent(number))


def intents(run: RunPaths, numbers: Iterable[int]) -> Iterator[Intent]:
    """Those of these submissions that there are, each read when it is asked for."""
    return filter(None, (read_intent(run, number) for number in numbers))


def config_of(run: RunPaths, intent: Intent) -> JobConfig:
    """The configuration that a submission was begun under; RunStateError if it is none, or one
    that this version does not read."""
    profile_of(run, intent)
    try:
        return build(JobConfig, intent.config)
    except ConfigError as error:
        path = run.intent(intent.number)
        raise RunStateError(f"{path}: its configuration is of another version: {error}") from error


def profile_of(run: RunPaths, intent: Intent) -> SlurmConfig:
    """The cluster profile of a submission, also where the rest of its configuration is of another
    version; RunStateError if it has none."""
    with suppress(ValueError, TypeError, KeyError):
        slurm = intent.config["slurm"]
        if isinstance(slurm["executor"], str):
            return from_plain(SlurmConfig, slurm)
    raise RunStateError(f"{run.intent(intent.number)} is damaged: its config is no configuration")


def last_intent(run: RunPaths) -> Intent | None:
    """The intent of the last submission that has one."""
    return next(intents(run, reversed(submission_numbers(run))), None)


def last_render(run: RunPaths) -> Intent | None:
    """The intent of the last submission that started tasks (repairs and verdicts start none)."""
    latest_first = intents(run, reversed(submission_numbers(run)))
    return next((intent for intent in latest_first if intent.kind == "render"), None)


def own_render(run: RunPaths) -> Intent | None:
    """`last_render`, unless it is of the folder that this one is a copy of: then nothing that it
    started is at work here."""
    intent = last_render(run)
    return intent if intent is not None and intent.place.is_of(run) else None


def lost_intent(run: RunPaths) -> int:
    """The last submission that has a folder of journals, if its intent is gone and no later one
    stands in for it; else 0. What counts of the ledger is unknown then."""
    blocks = [block for block in run.journal_blocks() if block.is_dir()]
    number = max(map(run.block_submission, blocks), default=0)
    later = [n for n in submission_numbers(run) if n >= number]
    return 0 if any(run.intent(n).exists() for n in later) else number


def refuse_lost_intent(run: RunPaths) -> None:
    """RunStateError if the ledger has no answer to how far the run is. Of a submission that another
    machine has just begun the journals may be seen first: then look again."""
    while number := lost_intent(run):
        begun = max(path.stat().st_mtime for path in run.journal_blocks(number))
        if 0 <= time.time() - begun < INTENT_UNSEEN_S:
            time.sleep(0.5)
            continue
        raise RunStateError(
            f"{run.intent(number)} is gone, though submission {number} has journals: what counts "
            f"of them is unknown; put it back, or `batchgen verify {as_typed(run.root)} --repair` "
            "takes them as they are"
        )


def read_fence(run: RunPaths, attempt: Attempt) -> Fence | None:
    """What this restart of a task wrote down; None for a first start."""
    return _read(Fence, run.fence(attempt))


def sealed(value: Intent | Fence) -> dict[str, Any]:
    """As JSON values, with a check sum over them."""
    plain: dict[str, Any] = to_plain(value)
    return plain | {_SEAL: _seal(plain)}


def _seal(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _read(kind: type[T], path: Path) -> T | None:
    """Damaged, with the way on, if it is not as it was written."""
    way = _way_on(path.parents[2])
    try:
        plain = read_control(path)
    except Damaged as error:
        raise Damaged(f"{error}; {way}") from None
    if plain is None:
        return None
    seal = plain.pop(_SEAL, None)
    if seal not in (None, _seal(plain)):  # none: of a run that is older than it
        raise Damaged(f"{path} cannot be read: its check sum is another: it was changed; {way}")
    try:
        return from_plain(kind, _as_now(plain))
    except (ValueError, TypeError, AttributeError) as error:
        if seal is None:
            raise Damaged(f"{path} cannot be read: {error}; {way}") from error
        raise RunStateError(f"{path} cannot be read by this version: {error}") from error


def _as_now(plain: dict[str, Any]) -> dict[str, Any]:
    """Fields as this version writes them: older intents hold their configuration as JSON text."""
    if not isinstance(text := plain.get("config"), str):
        return plain
    config = None
    with suppress(ValueError):
        config = json.loads(text)
    return plain | {"config": config if isinstance(config, dict) else {}}


def _way_on(root: Path) -> str:
    repair = f"`batchgen verify {as_typed(root)} --repair`"
    return f"put it back from a copy, or {repair} goes on without it"


def damaged_records(run: RunPaths) -> list[Path]:
    """Intents and lines drawn by restarts that are not as they were written, and what has the name
    of one, or of a journal, and is no file."""
    intents = (run.intent(number) for number in submission_numbers(run))
    damaged = [path for path in intents if _is_damaged(Intent, path)]
    for block in run.journal_blocks():
        if not block.is_dir():
            damaged.append(block)
            continue
        for path in sorted(block.iterdir()):
            is_fence = path.name.endswith(_FENCES)
            if not (is_fence or path.name.endswith(".jsonl")):
                continue
            if not path.is_file() or (is_fence and _is_damaged(Fence, path)):
                damaged.append(path)
    return damaged


def _is_damaged(kind: type[Intent | Fence], path: Path) -> bool:
    try:
        _read(kind, path)
    except Damaged:
        return True
    return False


def journal_files(run: RunPaths) -> list[tuple[Attempt, Path]]:
    """Every journal of the run in the order of attempts. RunStateError for what has the name of one
    and is no file, or no folder of them: nobody opens a pipe."""
    found = []
    for path in _files(run, ".jsonl"):
        with suppress(ValueError):  # somebody's copy: no attempt writes it
            found.append((parse_journal(path), path))
    return sorted(found, key=lambda item: seniority(item[0]))


def _files(run: RunPaths, ending: str, submission: int | None = None) -> Iterator[Path]:
    """Journals or fences, of one submission or all."""
    for block in run.journal_blocks(submission):
        if not block.is_dir():
            raise Damaged(f"{block} is not a folder; {_way_on(run.root)}")
        with os.scandir(block) as entries:
            for entry in entries:
                if not entry.name.endswith(ending):
                    continue
                if not entry.is_file():
                    raise Damaged(f"{entry.path} is not a regular file; {_way_on(run.root)}")
                yield Path(entry.path)


def seniority(attempt: Attempt) -> tuple[int, int, int, int]:
    """Sort key of attempts: a later submission, then a later restart, overrules."""
    return attempt.submission, attempt.restart, attempt.task, attempt.replica


def accepted_journals(run: RunPaths) -> list[AcceptedJournal]:
    """Every journal of the run in the order of attempts, with its limit."""
    intent = last_intent(run)
    current = intent.number if intent else 0
    accepted = intent.accepted if intent else {}
    files = journal_files(run)
    drawn = fences(run, current)
    result = []
    for attempt, path in files:
        name = f"{path.parent.name}/{path.name}"
        if attempt.submission < current:
            limit: int | None = accepted.get(name, 0)  # absent: begun after it was fenced off
        else:
            limit = _limit_of_restart(drawn.get(attempt.task), attempt, name)
        result.append(AcceptedJournal(path, attempt, limit))
    return result


def tally_for(run: RunPaths, intent: Intent | None, attempt: Attempt) -> Tally:
    """An empty tally of what `attempt` changes, given how its rows stood before it began."""
    if intent is None:
        return Tally({}, {})
    known = {row: status for status, rows in intent.reopened.items() for row in rows}
    fence = read_fence(run, attempt) if attempt.restart else None
    for row, status in fence.statuses.items() if fence else ():
        known[row] = "ok" if known.get(row) == "ok" else status
    return Tally(known, intent.copies)


def suspects_of(run: RunPaths, intent: Intent | None, attempt: Attempt) -> frozenset[int]:
    """Rows that `attempt` renders alone, as far as it is up to it."""
    fence = read_fence(run, attempt) if attempt.restart else None
    return frozenset((*(intent.suspects if intent else ()), *(fence.suspects if fence else ())))


@dataclass(frozen=True, slots=True)
class FenceTimes:
    """When the attempts of one submission were fenced off, in unix seconds."""

    restarts: dict[int, list[tuple[int, float]]]  # task -> (restart, when it took over)
    later: float  # when the next submission did; infinite while there is none

    def of(self, attempt: Attempt) -> float:
        """The first time that another attempt drew the line before this one; infinite if none."""
        drawn = self.restarts.get(attempt.task, [])
        return min([t for restart, t in drawn if restart > attempt.restart] + [self.later])


def fence_times(run: RunPaths, submission: int) -> FenceTimes:
    """Read them; fences of older runs, which do not tell, count as never drawn."""
    restarts: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for path in _files(run, _FENCES, submission):
        if match := _FENCE_NAME.fullmatch(path.name):
            task, restart = int(match[1]), int(match[2])
            fence = read_fence(run, Attempt(submission, task, restart, 0))
            if fence is not None and fence.created:
                restarts[task].append((restart, fence.created))
    later = [n for n in submission_numbers(run) if n > submission]
    intent = next(intents(run, later), None)
    return FenceTimes(restarts, intent.created if intent else math.inf)


def fences(run: RunPaths, submission: int) -> dict[int, tuple[int, Fence]]:
    """task -> its highest restart in `submission` that wrote a fence, and the fence."""
    result: dict[int, tuple[int, Fence]] = {}
    for path in _files(run, _FENCES, submission):
        match = _FENCE_NAME.fullmatch(path.name)
        if match is None:
            continue
        task, restart = int(match[1]), int(match[2])
        fence = read_fence(run, Attempt(submission, task, restart, 0))
        if fence is not None and restart > result.get(task, (0,))[0]:
            result[task] = (restart, fence)
    return result


def _limit_of_restart(fence: tuple[int, Fence] | None, attempt: Attempt, name: str) -> int | None:
    if fence is None or attempt.restart >= fence[0]:
        return None
    return fence[1].accepted.get(name, 0)
