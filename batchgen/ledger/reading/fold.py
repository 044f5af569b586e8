"""Which rows are in flight after each line of a journal: the one rule for all readers of
journals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from batchgen.errors import ReplicaFailed
from batchgen.ledger.events import HEAD, LEFT, START


def is_death(reason: str) -> bool:
    """Whether an attempt that ended so has died: without a last line (an empty reason), or by the
    loss of a rank of its replica, which its leader still says."""
    return reason in ("", ReplicaFailed.__name__)


@dataclass(slots=True)
class InFlight:
    """The rows that an attempt has begun and not yet committed, saved or given up."""

    rows: set[int] = field(default_factory=set)
    alone: int = -1  # row of the last start line if it was alone; else -1

    @classmethod
    def of(cls, rows: Iterable[int]) -> InFlight:
        """Start from rows in flight that another reader has found."""
        return cls({*rows})

    @property
    def died_alone(self) -> bool:
        """Whether a death at this point had just one row in flight, a suspect rendered alone."""
        return self.alone in self.rows

    @property
    def suspects(self) -> set[int]:
        """Rows that may have killed the attempt if it died at this point. Beside a row that was
        alone there can be no other, so rows whose closing line is missing are left out."""
        return self.rows & {self.alone} if self.alone >= 0 else self.rows

    def take_in(self, line: bytes) -> re.Match[bytes] | None:
        """Take in a whole line. Returns the match of START or HEAD for a start, commit or void
        line, so that readers of millions of lines need not match again."""
        if start := START.match(line):
            row = int(start[1])
            self.alone = row if start[2] == b"true" else -1
            self.rows.add(row)
            return start
        if head := HEAD.match(line):
            self.rows.discard(int(head[2]))
            return head
        if left := LEFT.match(line):
            self.rows.discard(int(left[1]))
        return None

    def take_in_all(self, rows: Sequence[int], is_start: Sequence[bool]) -> None:
        """Take in many starts and commits, in their order, none of a row that is alone."""
        last = dict(zip(rows, is_start, strict=True))
        self.rows -= last.keys()
        self.rows |= {row for row, started in last.items() if started}
        if any(is_start):
            self.alone = -1
