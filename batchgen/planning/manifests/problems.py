"""Offending rows of a manifest: all are counted, the first ones are kept to be shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from batchgen.errors import ManifestError

SHOWN = 20
_LONGEST_VALUE = 60  # characters of an offending value


def row_place(row: int) -> str:
    """A row as messages name it: its position in the manifest."""
    return f"row {row}"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One illegal value: where it is, what it is, what is legal."""

    row: int  # 0-based position in the manifest
    column: str
    value: str
    reason: str

    def __str__(self) -> str:
        return self.at(row_place)

    def at(self, place: Callable[[int], str]) -> str:
        """The problem in one line; `place` names its row."""
        return f"{place(self.row)}, {self.column} = {self.value}: {self.reason}"


@dataclass(slots=True)
class Problems:
    """Collects problems batch by batch."""

    keep: int = SHOWN
    first: list[Problem] = field(default_factory=list)
    count: int = 0
    in_batch: list[int] = field(default_factory=list)  # rows of the batch that is being checked

    def add(
        self, rows: np.ndarray | Sequence[int], column: str, values: Sequence[object], reason: str
    ) -> None:
        """Note that `values[i]` of `column` is illegal in row `rows[i]`."""
        self.count += len(rows)
        self.in_batch.extend(map(int, rows))
        shown = [
            Problem(int(row), column, shorten(value), reason)
            for row, value in zip(rows[: self.keep], values[: self.keep], strict=False)
        ]
        self.first = sorted(self.first + shown)[: self.keep]

    def message(self, manifest: Path, place: Callable[[int], str] = row_place) -> str:
        """All that is kept, one line each, under a heading with the count."""
        more = "" if self.count <= len(self.first) else f" (the first {len(self.first)} are shown)"
        noun = "value" if self.count == 1 else "values"
        lines = [f"{manifest}: {self.count} illegal {noun}{more}"]
        return "\n".join(lines + [f"  {problem.at(place)}" for problem in self.first])

    def raise_if_any(self, manifest: Path, place: Callable[[int], str] = row_place) -> None:
        """Raise ManifestError with the message when there is a problem."""
        if self.count:
            raise ManifestError(self.message(manifest, place))


def shorten(value: object) -> str:
    """A value as it may stand in a message: quoted, escaped, not too long."""
    if value is None:
        return "null"
    if not isinstance(value, str):
        return repr(value)
    if len(value) > _LONGEST_VALUE:
        return f"{value[:_LONGEST_VALUE]!r}... ({len(value)} characters)"
    return repr(value)
