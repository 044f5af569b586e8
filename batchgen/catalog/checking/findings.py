"""What `verify` can find, and the comparison of the collected catalog with the journals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.catalog.source import are_together
from batchgen.errors import RunStateError
from batchgen.ledger.upkeep.pieces import parts_of, pieces
from batchgen.media.stored import file_of
from batchgen.paths import RunPaths

Kind = Literal[
    "missing", "size", "sha256", "undecodable", "frames", "outside", "duplicate",
    "lost", "journal", "catalog", "stale", "orphan", "temporary", "unchecked", "input",
]  # fmt: skip
WASTE: tuple[Kind, ...] = ("orphan", "temporary")
HARMLESS: tuple[Kind, ...] = (*WASTE, "stale", "unchecked")
MOST = 1000  # findings of a kind that are kept
_REPEATED: tuple[Kind, ...] = ("stale", "catalog")  # a new collect mends them all at once
_COLUMNS = ["row_id", "status", "media_path", "media_sha256"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    kind: Kind
    path: str  # relative to the run folder
    detail: str
    row_index: int = -1  # -1: about no single row
    row_id: str = ""


class Findings:
    """What was found: all are counted, and the first MOST of each kind kept; with `every`, as a
    repair needs them, all that it deals with one by one."""

    def __init__(self, *, every: bool = False) -> None:
        self._every = every
        self.kept: list[Finding] = []
        self.counts = Counter[str]()

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.counts[finding.kind] += 1
            needed = self._every and finding.kind not in _REPEATED
            if needed or self.counts[finding.kind] <= MOST:
                self.kept.append(finding)


class Collected:
    """The parts of `catalog/rows`, read in step with the rows that they should hold."""

    def __init__(self, run: RunPaths, gone: Collection[int] = ()) -> None:
        """`gone`: row_index of rows whose lines were lost after the collect
        (`losses.rows_gone`)."""
        self._run, self._gone = run, gone
        self._folder = run.catalog_rows.relative_to(run.root).as_posix()
        self._rows: pa.Table | None = None  # read but not yet compared
        self._broken = False
        self._parts: list[Path] = []
        self.first: list[Finding] = []  # findings made before any row is compared
        try:
            self._parts = parts_of(run.catalog_rows)
            if not are_together([pq.read_schema(part).metadata for part in self._parts]):
                self.first = [self._damage("has parts of different collects: collect again")]
        except (OSError, ValueError, RunStateError) as error:
            self._broken = True
            self.first = [self._damage(str(error))]
        self._pieces = pieces(self._parts, 10_000, _COLUMNS)

    def _damage(self, detail: str) -> Finding:
        return Finding("catalog", self._folder, detail)

    def compare(self, expected: pa.Table) -> list[Finding]:
        """Differences of the next rows from the rows that the journals give; none without a
        catalog."""
        if not self._parts or self._broken:
            return []
        try:
            rows = self._take(len(expected))
        except RunStateError as error:
            self._broken = True
            return [Finding("catalog", self._folder, f"cannot be read: {error}")]
        if len(rows) != len(expected):
            self._broken = True
            return [Finding("catalog", self._folder, "has fewer rows than the plan")]
        wanted = expected.select(_COLUMNS)
        return [] if rows.equals(wanted) else list(self._differences(rows, wanted, expected))

    def rest(self) -> list[Finding]:
        """Findings after the last row of the plan."""
        if not self._parts or self._broken:
            return []
        try:
            extra = len(self._take(1))
        except RunStateError as error:
            return [Finding("catalog", self._folder, f"cannot be read: {error}")]
        return [Finding("catalog", self._folder, "has more rows than the plan")] if extra else []

    def _take(self, rows: int) -> pa.Table:
        held = [self._rows] if self._rows is not None else []
        while sum(map(len, held)) < rows:
            piece = next(self._pieces, None)
            if piece is None:
                break
            held.append(piece.replace_schema_metadata())
        if not held:
            return pa.table({name: pa.array([], pa.large_string()) for name in _COLUMNS})
        table = pa.concat_tables(held)
        self._rows = table.slice(rows)
        return table.slice(0, rows)

    def _differences(
        self, rows: pa.Table, wanted: pa.Table, expected: pa.Table
    ) -> Iterator[Finding]:
        pairs = zip(rows.to_pylist(), wanted.to_pylist(), strict=True)
        for row_index, (old, new) in zip(expected["row_index"].to_pylist(), pairs, strict=True):
            if old == new:
                continue
            detail = (
                f"says {old['row_id']} {old['status']} {old['media_path']!r}, the journals say "
                f"{new['row_id']} {new['status']} {new['media_path']!r}: collect again"
            )
            if row_index in self._gone:
                lost = f"ok by {self._folder}, but its line is gone from the journals"
                yield Finding("lost", old["media_path"], lost, row_index, new["row_id"])
                continue
            file = file_of(old["media_path"])
            there = file == "" or (self._run.root / file).exists()
            kind: Kind = "stale" if there and old["row_id"] == new["row_id"] else "catalog"
            yield Finding(kind, self._folder, detail, row_index, new["row_id"])
