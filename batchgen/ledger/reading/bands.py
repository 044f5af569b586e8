"""The ledger in bands of rows, so that what is known of each line is in memory for one band alone.

Journals are read once. Of a plan of several bands each line goes to a file of its band as its
journal is read, and also to those of other bands that have an alias of its row. A band taken from
its file is then chosen from like a small run of its own, in which rows are known by their places
(`PlanRows`). All bands are of the same moment, however long the journals grow meanwhile.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from batchgen.ledger.reading.keys import KEY_TYPE
from batchgen.ledger.reading.plan_rows import PlanRows, read_aliases, read_band
from batchgen.ledger.reading.scan import (
    LINE_COLUMNS,
    MOST_ROW,
    CommitIndex,
    JournalFacts,
    Known,
    Lines,
    accepted_of,
    index_commits,
    scan_all,
)
from batchgen.ledger.reading.winners import Winners, choose
from batchgen.paths import RunPaths
from batchgen.planfile import own_parquet, reading

BAND_ROWS = 1 << 22  # some 200 MB with one line for each
PIECE = 1 << 16  # lines on their way to a file or from it
_LINE = np.dtype(
    [
        ("row_index", np.int32), ("status", np.int8), ("key", KEY_TYPE), ("journal", np.int32),
        ("offset", np.int64), ("length", np.int32), ("crc", np.uint32), ("accepted", bool),
    ]
)  # fmt: skip


class Bands:
    """The commits of a run that count, for one band of rows after another. Close it."""

    def __init__(
        self, run: RunPaths, known: Known, unit: int = 1, plan: Path | None = None
    ) -> None:
        """Read the plan (or `plan`) and journals; `known` may spare some of these. A band has some
        BAND_ROWS, a multiple of `unit`. RunStateError if the plan cannot be read; OSError if
        several bands are needed and there is no room for their lines in the run folder (34 bytes
        each)."""
        self._path, self._size = plan or run.plan, max(1, BAND_ROWS // unit) * unit
        with reading(self._path):
            self._plan = own_parquet(self._path)  # open from now on: of one plan, whatever comes
            self._aliases = read_aliases(self._plan)
        self.rows: int = self._plan.metadata.num_rows
        self.count = max(1, -(-self.rows // self._size))
        self._files = ExitStack()
        self._spread: _Spread | None = None
        self._index: CommitIndex | None = None
        if self.count == 1:
            self._index = index_commits(run, known)
            self.journals = self._index.journals
        else:
            guests = [self._aliases.guests(*self._bounds(band)) for band in range(self.count)]
            self._spread = _Spread(run, guests, self._size, self._files)
            self.journals = tuple(self._spread.take_in_all(run, known))

    def __enter__(self) -> Bands:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def _bounds(self, band: int) -> tuple[int, int]:
        return band * self._size, min(self.rows, (band + 1) * self._size)

    def winners(self, band: int) -> Winners:
        """Which commits count for the rows of a band, by its number. RunStateError if the plan
        cannot be read any more, OSError if that is so of the lines."""
        begin, end = self._bounds(band)
        with reading(self._path):
            plan = self._aliases.band(begin, read_band(self._plan, begin, end))
        if self._spread is None:
            assert self._index is not None
            return choose(self._index, plan)
        columns = self._spread.columns(band)
        rows = columns["row_index"]
        columns["row_index"] = np.where(rows < self.rows, plan.places(rows, MOST_ROW), rows)
        return choose(CommitIndex(journals=self.journals, **columns), plan)

    def all_rows(self, key: np.ndarray) -> PlanRows:
        """What the plan says of all its rows, given all keys (KEY_TYPE)."""
        return self._aliases.band(0, key)


class _Spread:
    """Files of lines, one for each band."""

    def __init__(
        self, run: RunPaths, guests: list[np.ndarray], size: int, files: ExitStack
    ) -> None:
        """`guests`: for each band, the rows (ascending) of others whose lines it needs, too."""
        self._size, self._guests = size, guests
        self._anywhere = np.unique(np.concatenate(guests))
        self._files: list[IO[bytes]] = [
            files.enter_context(tempfile.TemporaryFile(dir=run.root))  # noqa: SIM115
            for _ in guests
        ]

    def take_in_all(self, run: RunPaths, known: Known) -> Iterator[JournalFacts]:
        """Read all journals and put their lines into the files."""
        for number, (facts, lines) in enumerate(scan_all(run, known)):
            accepted = accepted_of(facts, lines)
            for begin in range(0, len(accepted), PIECE):
                part = slice(begin, begin + PIECE)
                self._take_in(_lines(lines, number, accepted, part))
            yield facts

    def _take_in(self, lines: np.ndarray) -> None:
        rows = lines["row_index"]
        band = np.minimum(rows // self._size, len(self._files) - 1)  # rows of no plan: the last
        for each in np.unique(band).tolist():
            self._files[each].write(lines[band == each].tobytes())
        visiting = lines[np.isin(rows, self._anywhere)] if len(self._anywhere) else lines[:0]
        for file, guests in zip(self._files, self._guests, strict=True) if len(visiting) else ():
            file.write(visiting[np.isin(visiting["row_index"], guests)].tobytes())

    def columns(self, band: int) -> dict[str, np.ndarray]:
        """The lines of a band, in the order of attempts. OSError if they cannot be read."""
        file = self._files[band]
        count, begin = file.seek(0, 2) // _LINE.itemsize, 0
        file.seek(0)
        columns = {name: np.empty(count, _LINE[name]) for name in _LINE.names or ()}
        while part := file.read(PIECE * _LINE.itemsize):
            lines = np.frombuffer(part, _LINE)
            for name, column in columns.items():
                column[begin : begin + len(lines)] = lines[name]
            begin += len(lines)
        if begin != count:
            raise OSError(f"only {begin} of {count} lines of a band can be read")
        return columns


def _lines(lines: Lines, journal: int, accepted: np.ndarray, part: slice) -> np.ndarray:
    """Some lines of a journal, as they lie in a file (_LINE)."""
    made = np.empty(len(accepted[part]), _LINE)
    for name in LINE_COLUMNS:
        made[name] = getattr(lines, name)[part]
    made["journal"], made["accepted"] = journal, accepted[part]
    return made
