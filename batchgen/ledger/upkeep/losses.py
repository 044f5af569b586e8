"""What the ledger is known to have held and has lost.

That is journals that are gone, emptied or cut short, submissions whose record is gone, and rows of
the catalog whose lines are gone. The evidence: every submission writes down how long each earlier
journal was, and every restart does so for its task; counters say how much of their journal was
synced; a catalog says what it was made from. After a loss only a repair may begin a submission, and
it records the loss. So the last intent tells all there is to know of the past, and a loss that a
repair has accepted is not reported again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.errors import RunStateError
from batchgen.ledger.counts import read_counters
from batchgen.ledger.intent import (
    damaged_records,
    fences,
    intents,
    last_intent,
    submission_numbers,
)
from batchgen.ledger.reading.keys import KEY_TYPE
from batchgen.ledger.reading.plan_rows import PlanRows, read_keys
from batchgen.ledger.reading.scan import MOST_ROW, STATUS_CODES, CommitIndex, index_commits
from batchgen.ledger.reading.winners import Winners, choose
from batchgen.ledger.upkeep.extent import EXTENT_KEY, Extent
from batchgen.ledger.upkeep.pieces import numbers_of, parts_of, pieces
from batchgen.paths import RunPaths, as_typed, parse_counters
from batchgen.planfile import open_parquet, reading
from batchgen.records import Attempt

SHOWN = 3
UNSEEN_S = 60.0  # how long NFS may take to show another machine's files
GROUP_ROWS = 50_000  # a multiple of 8: bits are packed


@dataclass(frozen=True, slots=True)
class Loss:
    """A file of the ledger that is gone, or shorter than it was."""

    path: str  # relative to the run folder
    detail: str
    needed: bool = True  # which rows count cannot be said without it

    def __str__(self) -> str:
        return f"{self.path} {self.detail}"


def find_losses(run: RunPaths) -> list[Loss]:
    """Lost files, by names and sizes. Evidence is read before the files that it is about, so that
    ranks may write meanwhile. If a record is damaged, only that is reported."""
    if damaged := damaged_records(run):
        return [Loss(_relative(run, path), "is damaged") for path in damaged]
    intent = last_intent(run)
    accepted = set(intent.lost) if intent else set()
    stands, is_settled = collected(run), may_come_s(run) == 0
    lost = [loss for loss in _submissions(run) if loss.path not in accepted]
    lost += _journals(run, _known_lengths(run))
    return lost or (_less_than(run, stands) if is_settled else [])


def wait_for_unseen(run: RunPaths) -> None:
    """Wait, up to UNSEEN_S, for files that seem lost: another machine may have just written
    them."""
    deadline = time.monotonic() + UNSEEN_S
    while time.monotonic() < deadline and any(loss.needed for loss in find_losses(run)):
        time.sleep(1.0)


def lost_submissions(run: RunPaths) -> tuple[str, ...]:
    """Paths of intents and lists of shards that are gone, including those a repair has accepted."""
    return tuple(loss.path for loss in _submissions(run))


def rows_gone(run: RunPaths, found: Winners, said: np.ndarray | None = None) -> np.ndarray:
    """row_index (sorted) of rows of `found` that the catalog calls ok under the plan's key, but of
    which no journal has an ok or void line any more. `said` is what `ok_in_catalog` tells (default:
    look now)."""
    first, own = found.plan.first, found.plan.own
    ok = _unpacked(ok_in_catalog(run) if said is None else said, first, own)
    gone = ok & ~_told(found)[:own]
    if not gone.any():
        return np.zeros(0, np.int64)
    with suppress(RunStateError):  # a catalog that cannot be read is no evidence
        keys = _keys_in_catalog(run, first + np.flatnonzero(gone))
        if len(keys) < gone.sum():  # it has just become another one
            return np.zeros(0, np.int64)
        gone[gone] = keys == found.plan.key[:own][gone]
        if gone.any():  # unless a newer collect has published newer lines: read again
            gone &= ~_told(choose(_index_of(run, found.plan), found.plan))[:own]
        return first + np.flatnonzero(gone)
    return np.zeros(0, np.int64)


def ok_in_catalog(run: RunPaths) -> np.ndarray:
    """Which rows the catalog calls ok, a bit for each (uint8). Empty if there is no catalog, if it
    cannot be read or is not of as many rows as the plan, or if a repair came after it.
    RunStateError if the plan cannot be read."""
    nothing = np.zeros(0, np.uint8)
    if not run.catalog_rows.is_dir() or _repaired_since(run, collected(run).submission):
        return nothing
    with reading(run.plan):
        planned = open_parquet(run.plan).metadata.num_rows
    with suppress(RunStateError):
        rows, bits = 0, [nothing]
        for statuses in _catalog(run, "status"):
            rows += len(statuses)
            bits.append(np.packbits(_is_ok(statuses)))
        if rows == planned:
            return np.concatenate(bits)
    return nothing


def _unpacked(bits: np.ndarray, first: int, rows: int) -> np.ndarray:
    """bool (rows,): the bits from `first` on; False where there are none."""
    flags = np.zeros(rows, bool)
    found = np.unpackbits(bits[first // 8 : (first + rows + 7) // 8])[first % 8 :][:rows]
    flags[: len(found)] = found
    return flags


def _keys_in_catalog(run: RunPaths, rows: np.ndarray) -> np.ndarray:
    """Those (KEY_TYPE) of some rows, ascending."""
    keys, first = [np.zeros(0, KEY_TYPE)], 0
    for column in _catalog(run, "row_key"):
        mine = slice(*np.searchsorted(rows, [first, first + len(column)]))
        keys.append(read_keys(column.chunk(0).take(pa.array(rows[mine] - first))))
        first += len(column)
    return np.concatenate(keys)


def _index_of(run: RunPaths, plan: PlanRows) -> CommitIndex:
    """The journals as they are now, by the places of these rows."""
    index = index_commits(run)
    return replace(index, row_index=plan.places(index.row_index, MOST_ROW))


def _is_ok(statuses: pa.ChunkedArray) -> np.ndarray:
    """bool, one each. By a dictionary: to compare with a text imports pandas (`numbers_of`)."""
    coded = statuses.combine_chunks().dictionary_encode()
    flags = np.array([status == "ok" for status in coded.dictionary.to_pylist()], bool)
    ok: np.ndarray = flags[numbers_of(coded.indices)]
    return ok


def _told(found: Winners) -> np.ndarray:
    """bool (rows,): some journal has an ok line under the plan's key, or a void line, for the row.
    Lines behind a fence count here: they are waste, but not lost."""
    index, rows = found.index, len(found.status)
    told = found.status == STATUS_CODES["ok"]  # where `survey` has left lines out, too
    for begin in range(0, len(index.status), GROUP_ROWS):  # what is in between takes no memory
        row, status, key = (
            column[begin : begin + GROUP_ROWS]
            for column in (index.row_index, index.status, index.key)
        )
        lines = np.flatnonzero((row < rows) & (status == STATUS_CODES["ok"]))
        lines = lines[key[lines] == found.plan.key[row[lines]]]
        void = np.flatnonzero((row < rows) & (status == STATUS_CODES["void"]))
        told[row[lines]] = told[row[void]] = True
    every: np.ndarray = told | told[found.plan.original]  # a replan makes aliases of rows
    return every


def refuse_losses(run: RunPaths, found: Winners | None = None) -> None:
    """RunStateError if the ledger has lost files, or rows of `found`. Going on would silently
    render them again or drop them from the catalog."""
    told = [str(loss) for loss in find_losses(run) if loss.needed]
    if told:
        more = f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
        raise RunStateError(_lost(run, f"{'; '.join(told[:SHOWN])}{more}"))
    if found is not None:
        refuse_gone(run, found)


def refuse_gone(run: RunPaths, found: Winners, said: np.ndarray | None = None) -> None:
    """RunStateError if rows of `found` are gone (`rows_gone`)."""
    if len(gone := rows_gone(run, found, said)):
        catalog = run.catalog_rows.relative_to(run.root)
        told = f"{catalog} has {len(gone)} ok rows whose lines are gone from the journals"
        raise RunStateError(_lost(run, told))


def _lost(run: RunPaths, told: str) -> str:
    return (
        f"{run.root}: {told}. Put what is lost back from a copy, or "
        f"accept it: after `batchgen verify {as_typed(run.root)} --repair` the rows that "
        "nothing else records are left to render"
    )


def collected(run: RunPaths) -> Extent:
    """What the catalog was made from; an empty extent if there is none or it cannot be read."""
    first = _first_part(run)
    with suppress(RunStateError), reading(first, "catalog"):
        metadata = pq.read_schema(first).metadata if first.is_file() else None
        return Extent.parse((metadata or {}).get(EXTENT_KEY))
    return Extent()


def may_come_s(run: RunPaths) -> float:
    """Seconds for which files older than the catalog may still be unseen here."""
    with suppress(OSError):
        age = time.time() - _first_part(run).stat().st_mtime
        return min(max(UNSEEN_S - age, 0.0), UNSEEN_S)
    return 0.0


def _less_than(run: RunPaths, stands: Extent) -> list[Loss]:
    """A loss if the ledger holds less than the catalog was made from. It is not `needed`: files
    that matter to rows that count are reported by name."""
    now = Extent.of(run)
    if now.submission != stands.submission or not now.is_before(stands):
        return []
    detail = f"has {now}; {_relative(run, run.catalog_rows)} was made from {stands}"
    return [Loss(_relative(run, run.journals), detail, needed=False)]


def _first_part(run: RunPaths) -> Path:
    return run.catalog_rows / "part-00000.parquet"  # the first that a collect replaces


def catalog_column(run: RunPaths, name: str) -> pa.ChunkedArray:
    """A column of the catalog, of strings; RunStateError if it cannot be read."""
    chunks = [chunk for column in _catalog(run, name) for chunk in column.chunks]
    return pa.chunked_array(chunks, "string")


def _catalog(run: RunPaths, name: str) -> Iterator[pa.ChunkedArray]:
    """A column of the catalog in pieces of one chunk, as strings; errors as above."""
    parts = parts_of(run.catalog_rows)
    with reading(run.catalog_rows, "catalog"):
        for table in pieces(parts, GROUP_ROWS, [name]):
            yield table[name].cast(pa.string())


def highest_number(run: RunPaths) -> int:
    """The highest submission number that any file mentions."""
    return max([collected(run).submission, *submission_numbers(run)])


def _repaired_since(run: RunPaths, number: int) -> bool:
    later = [n for n in submission_numbers(run) if n > number]
    return any(intent.kind == "repair" for intent in intents(run, later))


def _known_lengths(run: RunPaths) -> dict[str, tuple[int, str]]:
    """Journal (relative to the journal folder) -> (bytes that it had at least, who says so)."""
    known: dict[str, tuple[int, str]] = {}

    def note(name: str, size: int, source: Path) -> None:
        if size > known.get(name, (0, ""))[0]:
            known[name] = size, _relative(run, source)

    intent = last_intent(run)
    current = intent.number if intent else 0
    for name, size in intent.accepted.items() if intent else ():
        note(name, size, run.intent(current))
    for task, (restart, fence) in fences(run, current).items():
        for name, size in fence.accepted.items():
            note(name, size, run.fence(Attempt(current, task, restart, 0)))
    for path in run.counters_files(since=current):
        counters = read_counters(path)
        if counters is not None:
            journal = run.journal(parse_counters(path)).relative_to(run.journals)
            older = 1 if counters.commits else 0  # than `synced`: there was something
            note(journal.as_posix(), counters.synced or older, path)
    return known


def _journals(run: RunPaths, known: dict[str, tuple[int, str]]) -> Iterator[Loss]:
    for name, (size, source) in sorted(known.items()):
        path = run.journals / name
        left = _length(path, size)
        if left is None:
            yield Loss(_relative(run, path), f"is gone; it had {size} bytes by {source}")
        elif left < size:
            yield Loss(_relative(run, path), f"has {left} bytes; it had {size} by {source}")


def _length(path: Path, size: int) -> int | None:
    """Bytes of a journal; None if there is none. A network filesystem may report an old size until
    the file is opened."""
    try:
        length = path.stat().st_size
        if length < size:
            with path.open("rb") as file:
                length = file.seek(0, os.SEEK_END)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    return length


def _submissions(run: RunPaths) -> Iterator[Loss]:
    """Lost intents and lists of shards. Numbers have no gaps. A folder without intent is what a
    crash leaves, and a loss only if ranks were started from it."""
    begun = set(map(run.block_submission, run.journal_blocks()))
    last = last_intent(run)
    for number in range(1, highest_number(run) + 1):
        intent, shards = run.intent(number), run.shards(number)
        needed = last is None or number >= last.number
        was_begun = number in begun or run.jobs(number).exists() or not intent.parent.exists()
        if intent.exists():
            if not shards.exists():
                yield Loss(_relative(run, shards), "is gone", needed)
        elif was_begun:
            yield Loss(_relative(run, intent), "is gone", needed)


def _relative(run: RunPaths, path: Path) -> str:
    return path.relative_to(run.root).as_posix()
