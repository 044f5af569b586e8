"""What a collect counts in the rows of a catalog."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batchgen.catalog.fidelity import AuditedRows
from batchgen.catalog.timers import Timers
from batchgen.ledger.reading.scan import STATUS_CODES


@dataclass(slots=True)
class Totals:
    """Of some rows, or of some parts."""

    status: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUS_CODES, 0))
    timers: Timers = field(default_factory=Timers)
    audited: AuditedRows = field(default_factory=AuditedRows)

    def add(self, table: pa.Table) -> None:
        """Add rows of the catalog."""
        for entry in pc.value_counts(table["status"].combine_chunks()).to_pylist():
            self.status[entry["values"]] += entry["counts"]
        self.timers.add(table)
        self.audited.add(table)

    def join(self, other: Totals) -> None:
        """Add those of the next rows."""
        for name, count in other.status.items():
            self.status[name] += count
        self.timers.join(other.timers)
        self.audited.join(other.audited)

    def to_json(self) -> dict[str, Any]:
        """All but the audited rows, of which only their number is told."""
        timers = {name: asdict(timer) for name, timer in self.timers.by_name.items()}
        return {"status": self.status, "timers": timers, "audited": self.audited.rows}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Totals:
        """The inverse of `to_json`, to which audited rows are still to be added."""
        return cls(dict(plain["status"]), Timers.from_json(plain["timers"]))
