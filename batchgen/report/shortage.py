"""Rows whose replica was short of device memory by then, by device and by the rung it was on."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from batchgen.records import RUNGS
from batchgen.report.data import Shortage

_FIRST_ROWS = 5
_COLUMNS = ["row_id", "device", "memory_rung", "attempt"]
_MEANINGS = {
    "free": "what was merely kept was let go, and the same work done again",
    "smaller": "fewer items shared a forward, or fewer rows a decode",
    "model": "components were on the device for their stage alone",
    "stream": "their blocks came around their forwards",
}


@dataclass(slots=True)
class _Group:
    rows: int = 0
    first: list[str] = field(default_factory=list)
    attempts: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Shortages:
    """Takes rows from pieces of the catalog."""

    _groups: dict[tuple[str, str], _Group] = field(default_factory=dict)

    def add(self, rows: pa.Table) -> None:
        """Add rows of `Source.pieces`; those that share another row's media were not drawn."""
        rung, other = rows["memory_rung"], pc.fill_null(rows["alias_of"], "")
        short = pc.and_(pc.not_equal(pc.fill_null(rung, ""), ""), pc.equal(other, ""))
        for row in rows.select(_COLUMNS).filter(short).to_pylist():
            group = self._groups.setdefault((row["device"] or "", row["memory_rung"]), _Group())
            group.rows += 1
            group.attempts.add(row["attempt"])
            if len(group.first) < _FIRST_ROWS:
                group.first.append(row["row_id"])

    def groups(self) -> tuple[Shortage, ...]:
        """By device, the lowest rung first."""
        order = sorted(self._groups, key=lambda key: (key[0], RUNGS.index(key[1])))
        return tuple(
            Shortage(
                device=device,
                rung=rung,
                meaning=_MEANINGS[rung],
                rows=self._groups[device, rung].rows,
                attempts=len(self._groups[device, rung].attempts),
                first=tuple(self._groups[device, rung].first),
            )
            for device, rung in order
        )
