"""How much a run's ledger holds, from names and sizes alone: whether there is more than before."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from os import scandir

from batchgen.ledger.intent import submission_numbers
from batchgen.paths import RunPaths

EXTENT_KEY = b"batchgen.extent"  # in a catalog: the ledger that it was made from


@dataclass(frozen=True, slots=True)
class Extent:
    """Each of these only grows: submissions begin, restarted tasks draw lines, and files of both,
    as the journals, are only ever appended to or added (but for what storage loses)."""

    submission: int = 0  # the last one that has an intent
    files: int = 0  # journals, and lines drawn by restarted tasks
    size: int = 0  # bytes of them all

    @classmethod
    def of(cls, run: RunPaths) -> Extent:
        """As it stands; one look at each file."""
        begun = [n for n in submission_numbers(run) if run.intent(n).exists()]
        blocks = [block for block in run.journal_blocks() if block.is_dir()]
        found = [e for block in blocks for e in scandir(block) if e.is_file()]
        sizes = [e.stat().st_size for e in found if not e.name.startswith(".")]  # no drafts
        return cls(max(begun, default=0), len(sizes), sum(sizes))

    @classmethod
    def parse(cls, text: bytes | None) -> Extent:
        """The inverse of `encode`; nothing at all if it was not recorded."""
        return cls(*json.loads(text)) if text else cls()

    def __str__(self) -> str:
        return f"{self.submission} submission(s) and {self.files} file(s) of {self.size} bytes"

    def encode(self) -> bytes:
        return json.dumps(astuple(self)).encode()

    def is_before(self, other: Extent) -> bool:
        """Whether a catalog of this is older than one of the other. A later submission decides: a
        repair may have written off what was lost."""
        return astuple(self) < astuple(other)

    def exceeds(self, other: Extent) -> bool:
        """Whether anything was added since the other."""
        return any(a > b for a, b in zip(astuple(self), astuple(other), strict=True))
