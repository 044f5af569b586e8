"""What a journal says of rows in flight: the one rule, line by line, for all who read journals."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from batchgen.ledger.events import HEAD, LEFT, START


@dataclass(slots=True)
class InFlight:
    """The rows that an attempt has begun and neither committed, saved nor given up."""

    rows: set[int] = field(default_factory=set)
    alone: int = -1  # row of the last start line, if nothing else was in flight then

    @classmethod
    def of(cls, rows: Iterable[int]) -> InFlight:
        """To go on from where somebody else has read to."""
        return cls({*rows})

    @property
    def died_alone(self) -> bool:
        """If this is where the attempt died: whether it was at one row, and at no other."""
        return self.alone in self.rows

    @property
    def suspects(self) -> set[int]:
        """If this is where the attempt died: rows that may have killed it. Beside a row that was
        alone there was none in flight, whatever has no line to say so."""
        return self.rows & {self.alone} if self.alone >= 0 else self.rows

    def heed(self, line: bytes) -> re.Match[bytes] | None:
        """Take in a whole line; the match of START or HEAD if it is a start or a commit (or void),
        so that readers of millions of these need not look twice."""
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
