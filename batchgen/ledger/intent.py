"""What a submission or a restarted task wrote down before it began: its fence.

`submissions/<n>/intent.json` holds the length in bytes of every earlier journal at that moment.
What an older attempt appends after that is waste and is never published. A restarted task draws the
same fence before the journals of its own earlier starts. A submission folder without an intent,
left by a crash, counts as empty.
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
from batchgen.ledger.counts import ChangedCounts, Counts
from batchgen.ledger.events import from_plain, to_plain
from batchgen.paths import RunPaths, as_typed, parse_journal
from batchgen.processes import ProcessId
from batchgen.records import Attempt, Climb, Layout
from batchgen.regular import Damaged, read_control

T = TypeVar("T")
SCHEMA = 1
_SEAL = "sha256"
INTENT_UNSEEN_S = 5.0  # another machine may see a submission's journals so long before its intent
_FENCES = ".accept.json"
_FENCE_NAME = re.compile(r"(\d+)-r(\d+)\.accept\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """One submission: which rows it is to render, and how much of each earlier journal counts."""

    number: int
    kind: str  # render; repair or quarantine (they render nothing)
    created: float  # unix seconds
    made_by: ProcessId
    manifest_rows: int
    rows: int  # rows to render now
    shards: int
    accepted: dict[str, int]  # journal, relative to the journal folder -> bytes that count
    before: Counts  # manifest rows by status when the submission began
    # status -> row_index of the rows to render again
    reopened: dict[str, tuple[int, ...]] = field(default_factory=dict)
    copies: dict[int, int] = field(default_factory=dict)  # row_index -> manifest rows, where > 1
    config: dict[str, Any] = field(default_factory=dict)  # resolved; see `config_of`, `profile_of`
    layout: Layout | None = None  # what its ranks obey; None: it starts none, or is older than it
    overrides: tuple[str, ...] = ()
    attempt: int = 1  # place of this submission in a row of submissions without progress, from 1
    excluded: dict[str, str] = field(default_factory=dict)  # host -> why it gets no work
    suspects: tuple[int, ...] = ()  # rows to be rendered alone
    lost: tuple[str, ...] = ()  # paths in the run folder of submission files that were gone by then
    place: Place = field(default_factory=Place)  # of the run folder, to tell it from a copy
    pilot: bool = False  # it renders the plan's pilots and fits the strategies of other rows
    climbs: dict[str, tuple[Climb, ...]] = field(default_factory=dict)  # as of `climbs.steepest`
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """What counts, for one restart of a task, of the earlier starts of the same task."""

    accepted: dict[str, int]
    statuses: dict[int, str]  # row_index -> status of the rows that the earlier starts committed
    suspects: tuple[int, ...] = ()  # other rows, in flight when an earlier start died
    withheld: tuple[int, ...] = ()  # suspects that died alone: left to the next submission
    created: float = 0.0  # unix seconds; 0 = not recorded
    climbs: dict[str, tuple[Climb, ...]] = field(default_factory=dict)  # of the earlier starts
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class FencedJournal:
    """A journal of the run and how many of its bytes count (None: all of it)."""

    path: Path
    attempt: Attempt
    limit: int | None


def submission_numbers(run: RunPaths) -> list[int]:
    """Numbers of all submissions in order, with or without an intent, also those of which only the
    journals are left."""
    folders = run.submissions.iterdir() if run.submissions.is_dir() else ()
    numbers = {int(p.name) for p in folders if p.name.isdecimal()}
    return sorted(numbers.union(map(run.block_submission, run.journal_blocks())))


def read_intent(run: RunPaths, number: int) -> Intent | None:
    """The intent of a submission; None if a crash came before it was written."""
    return _read(Intent, run.intent(number))


def intents(run: RunPaths, numbers: Iterable[int]) -> Iterator[Intent]:
    """The intents of these submissions, each read when it is asked for; those without one are left
    out."""
    return filter(None, (read_intent(run, number) for number in numbers))


def config_of(run: RunPaths, intent: Intent) -> JobConfig:
    """The configuration of a submission; RunStateError if it is damaged or of another version."""
    profile_of(run, intent)
    try:
        return build(JobConfig, intent.config)
    except ConfigError as error:
        path = run.intent(intent.number)
        raise RunStateError(f"{path}: its configuration is of another version: {error}") from error


def profile_of(run: RunPaths, intent: Intent) -> SlurmConfig:
    """The Slurm profile of a submission, readable even if the rest of its configuration is of
    another version; RunStateError if it has none."""
    with suppress(ValueError, TypeError, KeyError):
        slurm = intent.config["slurm"]
        if isinstance(slurm["executor"], str):
            return from_plain(SlurmConfig, slurm)
    raise RunStateError(
        f"{run.intent(intent.number)} is damaged: its config is not a configuration"
    )


def last_intent(run: RunPaths) -> Intent | None:
    """The intent of the last submission that has one."""
    return next(intents(run, reversed(submission_numbers(run))), None)


def last_render(run: RunPaths) -> Intent | None:
    """The intent of the last submission that started tasks (repairs and verdicts start none)."""
    latest_first = intents(run, reversed(submission_numbers(run)))
    return next((intent for intent in latest_first if intent.kind == "render"), None)


def own_render(run: RunPaths) -> Intent | None:
    """`last_render`, or None if that was begun in the folder that was copied to this one."""
    intent = last_render(run)
    return intent if intent is not None and intent.place.is_of(run) else None


def lost_intent(run: RunPaths) -> int:
    """Number of the last submission with journals if its intent is gone and no later submission has
    one; else 0. Without that intent nobody knows which commits count."""
    blocks = [block for block in run.journal_blocks() if block.is_dir()]
    number = max(map(run.block_submission, blocks), default=0)
    later = [n for n in submission_numbers(run) if n >= number]
    return 0 if any(run.intent(n).exists() for n in later) else number


def refuse_lost_intent(run: RunPaths) -> None:
    """RunStateError if the intent that says which commits count is lost. Waits a little first,
    since the journals of a submission on another machine may be seen before its intent."""
    while number := lost_intent(run):
        begun = max(path.stat().st_mtime for path in run.journal_blocks(number))
        if 0 <= time.time() - begun < INTENT_UNSEEN_S:
            time.sleep(0.5)
            continue
        raise RunStateError(
            f"{run.intent(number)} is gone, though submission {number} has journals: which of "
            f"their lines count is unknown; put it back, or `batchgen verify {as_typed(run.root)} "
            "--repair` counts them as they are"
        )


def read_fence(run: RunPaths, attempt: Attempt) -> Fence | None:
    """The fence that this restart of a task wrote; None for a first start."""
    return _read(Fence, run.fence(attempt))


def sealed(value: Intent | Fence) -> dict[str, Any]:
    """An intent or fence as JSON values, with a check sum over them."""
    plain: dict[str, Any] = to_plain(value)
    return plain | {_SEAL: _seal(plain)}


def _seal(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _read(kind: type[T], path: Path) -> T | None:
    """The record in a file, None without a file; Damaged, with the way on, if it was changed."""
    way = _way_on(path.parents[2])
    try:
        plain = read_control(path)
    except Damaged as error:
        raise Damaged(f"{error}; {way}") from None
    if plain is None:
        return None
    seal = plain.pop(_SEAL, None)
    if seal not in (None, _seal(plain)):  # None: runs made before there was a seal
        raise Damaged(
            f"{path} cannot be read: its check sum does not fit, so it was changed; {way}"
        )
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
    """Intents and fences that are not as they were written, and anything with the name of an
    intent, fence or journal that is not a file."""
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
    """Every journal of the run in the order of attempts. RunStateError if something named like a
    journal or its folder is not one: opening a pipe would block."""
    found = []
    for path in _files(run, ".jsonl"):
        with suppress(ValueError):  # a copy that a person made: no attempt has such a name
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


def fenced_journals(run: RunPaths) -> list[FencedJournal]:
    """Every journal of the run in the order of attempts, with the bytes before its fence."""
    intent = last_intent(run)
    current = intent.number if intent else 0
    accepted = intent.accepted if intent else {}
    files = journal_files(run)
    drawn = fences(run, current)
    result = []
    for attempt, path in files:
        name = f"{path.parent.name}/{path.name}"
        if attempt.submission < current:
            limit: int | None = accepted.get(name, 0)  # absent: begun after the fence was drawn
        else:
            limit = _limit_of_restart(drawn.get(attempt.task), attempt, name)
        result.append(FencedJournal(path, attempt, limit))
    return result


def changed_counts(run: RunPaths, intent: Intent | None, attempt: Attempt) -> ChangedCounts:
    """Counts of what `attempt` changes, still empty, from how its rows stood before it began."""
    if intent is None:
        return ChangedCounts({}, {})
    known = {row: status for status, rows in intent.reopened.items() for row in rows}
    fence = read_fence(run, attempt) if attempt.restart else None
    for row, status in fence.statuses.items() if fence else ():
        known[row] = "ok" if known.get(row) == "ok" else status
    return ChangedCounts(known, intent.copies)


def suspects_of(run: RunPaths, intent: Intent | None, attempt: Attempt) -> frozenset[int]:
    """Rows that `attempt` must render alone."""
    fence = read_fence(run, attempt) if attempt.restart else None
    return frozenset((*(intent.suspects if intent else ()), *(fence.suspects if fence else ())))


@dataclass(frozen=True, slots=True)
class FenceTimes:
    """When the attempts of one submission were fenced off (unix seconds)."""

    restarts: dict[int, list[tuple[int, float]]]  # task -> (restart, when it drew its fence)
    later: float  # when the next submission drew its fence; infinite while there is none

    def of(self, attempt: Attempt) -> float:
        """When this attempt was first fenced off; infinite if it was not."""
        drawn = self.restarts.get(attempt.task, [])
        return min([t for restart, t in drawn if restart > attempt.restart] + [self.later])


def fence_times(run: RunPaths, submission: int) -> FenceTimes:
    """Read the fence times of a submission. Fences of older runs have no time and are left out."""
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
    """Task -> (its highest restart in `submission` that wrote a fence, that fence)."""
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
