"""What a journal asks of whoever measures the attempt that writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from batchgen.records import RankSeconds


class Meter(Protocol):
    """What this attempt has spent so far."""

    def read(self) -> RankSeconds:
        """All of it."""

    def share(self, rows: Mapping[int, float]) -> None:
        """Undo `close` for these rows (row_index -> seconds)."""

    def close(self, row_index: int) -> float:
        """Close a row as its line is written; returns its open busy seconds."""


class Unmetered:
    """The meter of a process that measures nothing."""

    def read(self) -> RankSeconds:
        return RankSeconds()

    def share(self, rows: Mapping[int, float]) -> None:
        return

    def close(self, row_index: int) -> float:
        return 0.0
