"""Submissions: which rows each may render, and what counts of the journals before it.

The only lock is `mkdir` of a submission's folder. Everything else follows from who wrote what: each
journal has one writer, and a later submission draws a fence through each earlier journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.anchor import Place
from batchgen.durable import make_folder, open_atomic, sync_folder, write_json
from batchgen.errors import RunStateError, StorageError
from batchgen.failpoints import failpoint
from batchgen.ledger.climbs import steepest
from batchgen.ledger.counts import Counts
from batchgen.ledger.events import (
    from_plain,
    to_plain,
)
from batchgen.ledger.intent import (
    FencedJournal,
    Intent,
    fenced_journals,
    read_intent,
    sealed,
    submission_numbers,
)
from batchgen.ledger.journal import durable_length, whole_length
from batchgen.ledger.reading.plan_rows import PlanRows, read_plan_rows
from batchgen.ledger.reading.scan import STATUS_CODES, STATUS_NAMES, CommitIndex, index_commits
from batchgen.ledger.reading.winners import Winners, choose
from batchgen.ledger.upkeep.losses import highest_number, lost_submissions, refuse_losses
from batchgen.paths import RunPaths
from batchgen.planfile import read_table, reading
from batchgen.processes import ProcessId
from batchgen.records import Climb, Layout
from batchgen.regular import read_control
from batchgen.runfile import read_run

HALF_BEGUN_S = 5.0  # longest time from mkdir to intent.json for a maker that is alive
ELSEWHERE_S = 60.0  # the same for a maker on another machine, which cannot be asked if it is alive
_GROUP_ROWS = 2**20  # of a list of shards, written at a time
_SHARDS = pa.schema(
    [
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("order", pa.int64(), nullable=False),
        pa.field("alone", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class SubmissionRows:
    """Which rows a submission renders: arrays of equal length, one entry a row."""

    row_index: np.ndarray  # int64
    shard: np.ndarray  # int32
    order: np.ndarray  # integers: place inside the shard, ascending
    alone: np.ndarray | None = None  # bool: suspects, rendered one at a time; None = no row


@dataclass(frozen=True, slots=True, eq=False)
class ShardRows:
    """The rows of one shard: row_index (int64) in the order in which to render them."""

    rows: np.ndarray
    suspects: np.ndarray  # further rows: rendered after `rows`, one at a time

    @property
    def all(self) -> np.ndarray:
        """`rows`, then `suspects`."""
        return np.concatenate([self.rows, self.suspects])

    @property
    def size(self) -> int:
        return len(self.rows) + len(self.suspects)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionInfo:
    """What is recorded about a submission beside its rows."""

    kind: str = "render"  # or repair, quarantine
    host: str = ""  # name to show; default: the machine's
    config: dict[str, Any] = field(default_factory=dict)  # resolved
    layout: Layout | None = None  # None: it starts no ranks
    overrides: tuple[str, ...] = ()
    attempt: int = 1  # place in a row of submissions without progress, from 1
    excluded: dict[str, str] = field(default_factory=dict)  # host -> why it gets no work
    pilot: bool = False  # as in `Intent`


def begin_submission(
    run: RunPaths,
    rows: SubmissionRows,
    info: SubmissionInfo,
    *,
    last: int | None = None,
    found: Winners | None = None,
    under_lock: Callable[[], None] = lambda: None,
) -> int:
    """Take the next submission number, fence off all earlier submissions and record the rows to
    render.

    `last` is the latest submission that the caller had seen when it chose the rows (default: look
    now); if another has begun since, this fails. `found` is what the caller read to choose them, by
    the plan that will then be the run's: journals are read again only if they have grown.
    `under_lock` runs as soon as the number is taken and before anything is recorded, for work that
    nobody else may do at the same time.

    Returns the number. RunStateError if another process is about to begin a submission, or if the
    ledger has lost something and this is no repair; StorageError if the run folder cannot be
    written (a later submission then takes the next number).
    """
    if info.kind == "repair":
        last = highest_number(run) if last is None else last
    else:
        refuse_losses(run)
    number = _take_number(run, last)
    failpoint("submission.after_mkdir")
    try:
        maker = to_plain(ProcessId.current(info.host))
        write_json(_maker_file(run, number), {**maker, "run": to_plain(Place.of(run))})
        sync_folder(run.submissions)
        under_lock()
        _write_shards(run.shards(number), rows)
        failpoint("submission.before_intent")
        write_json(run.intent(number), sealed(_draw_intent(run, number, rows, info, found)))
    except OSError as error:
        raise StorageError(f"{run.submission(number)} cannot be written: {error}") from error
    failpoint("submission.after_intent")
    return number


def _take_number(run: RunPaths, last: int | None) -> int:
    """Make the folder of the submission after `last`; only one process can, and it owns the
    number."""
    if last is None:
        last = (submission_numbers(run) or [0])[-1]
    if last:
        _refuse_half_begun(run, last)
    folder = run.submission(last + 1)
    try:
        make_folder(run.submissions, run.root)
        folder.mkdir()
    except FileExistsError as error:
        raise RunStateError(_lost_race(run, last + 1)) from error
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error}") from error
    return last + 1


def read_shard(run: RunPaths, submission: int, shard: int) -> ShardRows:
    """The rows of one shard of a submission; RunStateError if they cannot be read."""
    with _reading_shards(run, submission) as path:
        table = pq.read_table(
            path, filters=[("shard", "=", shard)], page_checksum_verification=True
        )
        rows = _plan_rows(run, table.sort_by("order"))
        if "alone" not in table.column_names:  # runs made before there were suspects
            return ShardRows(rows, rows[:0])
        alone: np.ndarray = table.sort_by("order")["alone"].to_numpy()
        return ShardRows(rows[~alone], rows[alone])


def rows_of(run: RunPaths, submission: int, tasks: Collection[int] | None = None) -> np.ndarray:
    """row_index (int64) of all rows that a submission was to render, or of those of some tasks;
    RunStateError if they cannot be read."""
    with _reading_shards(run, submission) as path:
        table = read_table(path, ["row_index", "shard"])
        rows = _plan_rows(run, table)
        return rows if tasks is None else rows[np.isin(table["shard"].to_numpy(), [*tasks])]


@contextmanager
def _reading_shards(run: RunPaths, submission: int) -> Iterator[Path]:
    path = run.shards(submission)
    with reading(path, "list of shards"):
        yield path


def _plan_rows(run: RunPaths, table: pa.Table) -> np.ndarray:
    """The rows of a list of shards; ValueError if one is not in the plan."""
    rows: np.ndarray = table["row_index"].to_numpy()
    if unknown := rows[(rows < 0) | (rows >= read_run(run).rows)].tolist():
        raise ValueError(f"row_index {unknown[0]} is not in the plan")
    return rows


def _draw_intent(
    run: RunPaths, number: int, rows: SubmissionRows, info: SubmissionInfo, found: Winners | None
) -> Intent:
    accepted = _fence_lengths(run)
    if found is None or _grown(found.index, run, accepted):
        plan = read_plan_rows(run.plan) if found is None else found.plan
        found = choose(_up_to(index_commits(run), run, accepted), plan)
    status, copies = found.status, _copies(found.plan, rows.row_index)
    return Intent(
        number=number,
        kind=info.kind,
        created=time.time(),
        made_by=ProcessId.current(info.host),
        manifest_rows=len(status),
        rows=len(rows.row_index),
        shards=len(np.unique(rows.shard)),
        accepted=accepted,
        before=_count(found),
        reopened=_reopened(status, rows.row_index),
        copies=copies,
        config=info.config,
        layout=info.layout,
        overrides=info.overrides,
        attempt=info.attempt,
        excluded=info.excluded,
        suspects=() if rows.alone is None else tuple(rows.row_index[rows.alone].tolist()),
        lost=lost_submissions(run),
        place=Place.of(run),
        pilot=info.pilot,
        climbs=_climbs(found.index),
    )


def _climbs(index: CommitIndex) -> dict[str, tuple[Climb, ...]]:
    """By the name of the device."""
    found: dict[str, list[Climb]] = {}
    for facts in index.journals:
        if facts.climbs and facts.header is not None:
            found.setdefault(facts.header.device, []).extend(facts.climbs)
    return {device: steepest(climbs) for device, climbs in found.items()}


def _fence_lengths(run: RunPaths) -> dict[str, int]:
    """Journal -> its bytes before the fence, synced to the disk."""
    accepted = {}
    for journal in fenced_journals(run):
        name = _name(run, journal)
        if journal.limit is None:
            accepted[name] = durable_length(journal.path)
        else:
            accepted[name] = min(journal.limit, whole_length(journal.path))
    return accepted


def _grown(index: CommitIndex, run: RunPaths, accepted: dict[str, int]) -> bool:
    """Whether the fence counts more or less of a journal than the index does."""
    read = {}
    for facts in index.journals:
        limit = facts.journal.limit
        length = facts.whole_bytes if limit is None else min(limit, facts.whole_bytes)
        read[_name(run, facts.journal)] = length
    return read != accepted


def _name(run: RunPaths, journal: FencedJournal) -> str:
    return journal.path.relative_to(run.journals).as_posix()


def _up_to(index: CommitIndex, run: RunPaths, accepted: dict[str, int]) -> CommitIndex:
    """The index with just the lines before the fence: commits keep arriving while it is drawn."""
    paths = [_name(run, facts.journal) for facts in index.journals]
    limits = np.array([accepted.get(path, 0) for path in paths], np.int64)
    within = index.offset + index.length <= limits[index.journal] if paths else index.accepted
    return replace(index, accepted=within)


def _count(found: Winners) -> Counts:
    """Of all rows of the manifest; an alias has the status of its original."""
    rows = np.zeros(len(STATUS_CODES), np.int64)
    for begin in range(0, len(found.status), _GROUP_ROWS):
        originals = found.plan.original[begin : begin + _GROUP_ROWS]
        rows += np.bincount(found.status[originals], minlength=len(rows))
    return Counts(**{name: int(rows[STATUS_CODES[name]]) for name in Counts.__slots__})


def _reopened(status: np.ndarray, rows: np.ndarray) -> dict[str, tuple[int, ...]]:
    """Status -> row_index of rows that have it already and are retried."""
    result = {}
    for code in np.unique(status[rows]).tolist() if len(rows) else ():
        if code != STATUS_CODES["pending"]:
            result[STATUS_NAMES[code]] = tuple(rows[status[rows] == code].tolist())
    return result


def _copies(plan: PlanRows, rows: np.ndarray) -> dict[int, int]:
    """row_index -> manifest rows, of those of `rows` that aliases have."""
    originals, aliases = np.unique(plan.original[plan.alias], return_counts=True)
    has_aliases = np.zeros(len(plan.original), bool)
    has_aliases[originals] = True
    several = rows[has_aliases[rows]] if len(rows) else rows
    copies = 1 + aliases[np.searchsorted(originals, several)]
    return dict(zip(several.tolist(), copies.tolist(), strict=True))


def _write_shards(path: Path, rows: SubmissionRows) -> None:
    """Row group by row group, so that they take no memory beside the rows."""
    columns = [rows.row_index, rows.shard, rows.order, rows.alone]
    written = {"compression": "zstd", "write_page_checksum": True}
    with open_atomic(path) as file, pq.ParquetWriter(file, _SHARDS, **written) as writer:
        for begin in range(0, max(1, len(rows.row_index)), _GROUP_ROWS):
            part = slice(begin, begin + _GROUP_ROWS)
            count = len(rows.row_index[part])
            values = [np.zeros(count, bool) if c is None else c[part] for c in columns]
            arrays = [pa.array(v, f.type) for v, f in zip(values, _SHARDS, strict=True)]
            writer.write_table(pa.table(arrays, schema=_SHARDS))


def _maker_file(run: RunPaths, number: int) -> Path:
    return run.submission(number) / "maker.json"


def maker_of(run: RunPaths, number: int) -> ProcessId | None:
    """The process that took a submission's number; None if it left no name, or left it in the
    folder that was copied to this one."""
    with suppress(RunStateError, ValueError):
        maker = read_control(_maker_file(run, number))
        if maker and from_plain(Place, maker.get("run", {})).is_of(run):
            return from_plain(ProcessId, maker)
    return None


def _refuse_half_begun(run: RunPaths, number: int) -> None:
    """Return once the last submission has its intent or its maker is gone; else RunStateError. If
    its maker is still between the two, taking the next number would render the same rows twice."""
    patience = time.monotonic() + HALF_BEGUN_S
    waited = False
    while (intent := read_intent(run, number)) is None:
        maker = maker_of(run, number)
        if maker is not None and (maker.alive() is False or maker == ProcessId.current()):
            return
        if not run.submission(number).exists():
            return  # the folder is lost: a repair takes the number after it
        age = time.time() - run.submission(number).stat().st_mtime
        if age > (HALF_BEGUN_S if maker is None else ELSEWHERE_S) and not (maker and maker.alive()):
            return
        if time.monotonic() > patience:
            raise RunStateError(_lost_race(run, number))
        waited = True
        time.sleep(0.02)
    if waited and intent.made_by != ProcessId.current():
        raise RunStateError(_lost_race(run, number))


def _lost_race(run: RunPaths, number: int) -> str:
    """Message naming who took the number. Waits a second for the winner to write its name."""
    maker = None
    for _ in range(50):
        maker = maker_of(run, number)
        if maker is not None:
            break
        time.sleep(0.02)
    who = f"process {maker.pid} on {maker.host}" if maker else "another process"
    return (
        f"{run.root}: {who} began submission {number} at the same moment; "
        "see `batchgen status`, and resume again if rows are left"
    )
