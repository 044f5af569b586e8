"""Failed rows, grouped by what seems to be one reason."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from batchgen.report.data import Failure
from batchgen.report.text import cut

SHOWN = 25  # groups
KEPT = 1000  # groups while reading; later ones are counted as one
FIRST_ROWS = 5
_MESSAGE_BYTES, _TRACEBACK_BYTES = 1000, 6000
# What differs between rows that failed alike: numbers, addresses, what stands in quotes.
_OWN = re.compile(r"0x[0-9a-f]+|\d+|'[^']*'|\"[^\"]*\"", re.I)
_OTHERS = "others"
_COLUMNS = ["row_id", "status", "host", "error_type", "error", "traceback"]


@dataclass(slots=True)
class _Group:
    kind: str
    message: str
    rows: int = 0
    quarantined: int = 0
    first: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)
    traceback: str = ""


@dataclass(slots=True)
class Failures:
    """Groups of failed rows; memory grows with the kinds of errors alone."""

    _groups: dict[tuple[str, str], _Group] = field(default_factory=dict)

    def add(self, rows: pa.Table) -> None:
        """Add rows of `Source.pieces`."""
        statuses = pa.array(["failed", "quarantined"], pa.large_string())
        failed = rows.select(_COLUMNS).filter(pc.is_in(rows["status"], statuses))
        for row in failed.to_pylist():
            group = self._group_of(row["error_type"], row["error"])
            group.rows += 1
            group.quarantined += row["status"] == "quarantined"
            group.hosts.add(row["host"])
            group.traceback = group.traceback or row["traceback"]
            if len(group.first) < FIRST_ROWS:
                group.first.append(row["row_id"])

    def _group_of(self, kind: str, message: str) -> _Group:
        key = (kind, _OWN.sub("#", message))
        if key not in self._groups and len(self._groups) >= KEPT:
            key, message = (_OTHERS, ""), ""
        return self._groups.setdefault(key, _Group(key[0], message))

    def groups(self) -> tuple[Failure, ...]:
        """The largest first, at most SHOWN."""
        found = sorted(self._groups.values(), key=lambda group: -group.rows)
        return tuple(
            Failure(
                kind=cut(group.kind, 200),
                message=cut(group.message, _MESSAGE_BYTES),
                rows=group.rows,
                quarantined=group.quarantined,
                first=tuple(group.first),
                hosts=len(group.hosts),
                traceback=cut(group.traceback, _TRACEBACK_BYTES, end=True),
            )
            for group in found[:SHOWN]
        )

    @property
    def kinds(self) -> int:
        return len(self._groups)
