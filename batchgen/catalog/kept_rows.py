"""Which line each row of a published part was made from, kept beside the catalog, so that the next
collect parses only lines that are new.

Such a file speaks of a part by its sha256: of a part that is damaged, older or another run's it
says nothing, and that part is made anew. So nothing depends on these files, and a run folder
without them is whole.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

import batchgen
from batchgen.catalog.accounts import Seconds
from batchgen.catalog.totals import Totals
from batchgen.ledger.reading.kept_scan import UNREADABLE
from batchgen.ledger.reading.winners import Winners

FORMAT = 1  # raise it when what is kept changes, or how a line becomes a row of the catalog


@dataclass(frozen=True, slots=True, eq=False)
class RowLines:
    """The line that each of some rows is made from; equal ones have the same place and sum."""

    journal: np.ndarray  # int32, place in a list of journals; -1: there is no line
    offset: np.ndarray  # int64, byte in the journal
    crc: np.ndarray  # uint32, check sum of the line

    @classmethod
    def of(cls, found: Winners, line: np.ndarray) -> RowLines:
        """Of rows with these lines of the index (-1: none)."""
        index, none = found.index, line < 0
        places = line[~none]
        columns = []
        for values, absent in ((index.journal, -1), (index.offset, 0), (index.crc, 0)):
            column = np.full(len(line), absent, values.dtype)
            column[~none] = values[places]
            columns.append(column)
        return cls(*columns)

    def equals(self, other: RowLines) -> np.ndarray:
        """bool, one each: both rows are made from the same line, or from none."""
        same: np.ndarray = self.journal == other.journal
        same &= self.offset == other.offset
        same &= self.crc == other.crc
        return same


@dataclass(frozen=True, slots=True, eq=False)
class KeptPart:
    """A published part: what it was made from, and what came of it."""

    collect: str  # number of the collect that wrote it
    digest: str  # sha256 of its file
    plan: str  # sha256 of the plan
    first: int  # row_index of its first row
    journals: tuple[str, ...]  # that its lines are from, by name
    lines: RowLines
    seconds: Seconds  # of its rows; 0 for an alias and where there is no line
    totals: dict[str, Any]  # as of `Totals.to_json`

    def write(self, path: Path) -> None:
        """OSError if it cannot be written."""
        head = {"format": FORMAT, "version": batchgen.__version__}
        names = ("collect", "digest", "plan", "first", "journals", "totals")
        head |= {name: getattr(self, name) for name in names}
        arrays = {f.name: getattr(part, f.name) for part in self._arrays() for f in fields(part)}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, head=np.array(json.dumps(head)), **arrays)
        path.write_bytes(buffer.getbuffer())

    def _arrays(self) -> tuple[RowLines, Seconds]:
        return self.lines, self.seconds

    @classmethod
    def read(cls, path: Path) -> KeptPart | None:
        """None where nothing is kept, or nothing that can be trusted."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                head = json.loads(str(kept["head"]))
                if (head.pop("format"), head.pop("version")) != (FORMAT, batchgen.__version__):
                    return None
                Totals.from_json(head["totals"])
                lines = RowLines(**{field.name: kept[field.name] for field in fields(RowLines)})
                seconds = Seconds(**{field.name: kept[field.name] for field in fields(Seconds)})
                return cls(**head, lines=lines, seconds=seconds)
        except UNREADABLE:
            return None

    def among(self, journals: dict[str, int]) -> RowLines:
        """Its lines by the places of journals in another list; -2 for one that is not there."""
        places = [journals.get(name, -2) for name in self.journals]
        return RowLines(
            np.array([*places, -1], np.int32)[self.lines.journal],  # -1 is the last one
            self.lines.offset,
            self.lines.crc,
        )
