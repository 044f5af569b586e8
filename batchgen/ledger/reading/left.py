"""Which rows are left to render, found band by band."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np

from batchgen.errors import StorageError
from batchgen.ledger.reading.bands import Bands
from batchgen.ledger.reading.kept_scan import recall
from batchgen.ledger.reading.keys import KEY_TYPE
from batchgen.ledger.reading.scan import STATUS_CODES, CommitIndex
from batchgen.ledger.reading.winners import Winners
from batchgen.paths import RunPaths


@dataclass(frozen=True, slots=True, eq=False)
class MissingRows:
    """Rows of the plan (without aliases) that have no ok media, as sorted arrays of row_index."""

    pending: np.ndarray  # never finished
    failed: np.ndarray  # rendered again by a resume
    quarantined: np.ndarray  # rendered again only when asked for

    @property
    def all(self) -> np.ndarray:
        """What a resume renders: pending and failed ones, sorted."""
        return np.sort(np.concatenate([self.pending, self.failed]))


def missing_rows(run: RunPaths, plan: Path | None = None) -> MissingRows:
    """What is left to render, from the journals and the plan (or `plan`, one not installed yet);
    errors are those of `survey`."""
    return missing_of(survey(run, plan))


def missing_of(found: Winners) -> MissingRows:
    """What is left to render, given the winners."""
    own = ~found.plan.alias
    pending = own & (found.status == STATUS_CODES["pending"])
    failed = own & (found.status == STATUS_CODES["failed"])
    quarantined = own & (found.status == STATUS_CODES["quarantined"])
    return MissingRows(*map(np.flatnonzero, (pending, failed, quarantined)))


def survey(run: RunPaths, plan: Path | None = None) -> Winners:
    """The `winners` of all rows, but where there are several bands without the lines that are
    ordinary: those by which a row is ok, unless it is the last one of its band that a journal has
    before its fence. So `line` is -1 for nearly all rows that are ok; `JournalFacts.rendered`
    counts them.

    `plan` may be one that is not installed yet. RunStateError if it cannot be read; StorageError if
    journals cannot be read, or the run folder has no room for the lines of bands.
    """
    try:
        with Bands(run, partial(recall, run), plan=plan) as bands:
            return bands.winners(0) if bands.count == 1 else _joined(bands)
    except OSError as error:
        raise StorageError(f"{run.root}: its journals cannot be taken in: {error}") from error


def _joined(bands: Bands) -> Winners:
    status, key = np.zeros(bands.rows, np.int8), np.zeros(bands.rows, KEY_TYPE)

    def take_in(found: Winners) -> dict[str, np.ndarray]:
        own = slice(found.plan.first, found.plan.first + found.plan.own)
        status[own] = found.status[: found.plan.own]
        key[own] = found.plan.key[: found.plan.own]
        return _telling(found)

    pieces = [take_in(bands.winners(band)) for band in range(bands.count)]  # one at a time
    columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    order = np.lexsort((columns["offset"], columns["journal"]))
    columns = {name: column[order] for name, column in columns.items()}
    chosen, line = np.flatnonzero(columns.pop("chosen")), np.full(bands.rows, -1, np.int32)
    line[columns["row_index"][chosen]] = chosen
    index = CommitIndex(journals=bands.journals, **columns)
    return Winners(index, bands.all_rows(key), status, line)


def _telling(found: Winners) -> dict[str, np.ndarray]:
    """The columns of the lines of a band that are not ordinary, and which of them are `chosen`."""
    index, own = found.index, found.line[: found.plan.own]
    chosen = np.zeros(len(index.row_index), bool)
    chosen[own[own >= 0]] = True
    is_ok, home = index.accepted & (index.status == STATUS_CODES["ok"]), found.home
    ok = np.flatnonzero(is_ok & home)
    telling = home & ~(is_ok & chosen)
    telling[ok[np.flatnonzero(np.diff(index.journal[ok], append=-1))]] = True  # each one's last
    names = [field.name for field in fields(CommitIndex) if field.name != "journals"]
    columns = {name: getattr(index, name)[telling] for name in names} | {"chosen": chosen[telling]}
    inside = columns["row_index"] < found.plan.own
    columns["row_index"][inside] += found.plan.first
    return columns
