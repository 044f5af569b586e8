"""How much a run's ledger holds, from names and sizes of files alone."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from os import scandir

from batchgen.ledger.intent import submission_numbers
from batchgen.paths import RunPaths
from batchgen.words import counted

EXTENT_KEY = b"batchgen.extent"  # key in a catalog's metadata: the extent that it was made from


@dataclass(frozen=True, slots=True)
class Extent:
    """How much a ledger holds. Each number only grows, unless storage loses files."""

    submission: int = 0  # the last one that has an intent
    files: int = 0  # journals, and fences of restarted tasks
    size: int = 0  # bytes of all these files

    @classmethod
    def of(cls, run: RunPaths) -> Extent:
        """As it is now; looks once at each file."""
        begun = [n for n in submission_numbers(run) if run.intent(n).exists()]
        blocks = [block for block in run.journal_blocks() if block.is_dir()]
        found = [e for block in blocks for e in scandir(block) if e.is_file()]
        sizes = [e.stat().st_size for e in found if not e.name.startswith(".")]  # no drafts
        return cls(max(begun, default=0), len(sizes), sum(sizes))

    @classmethod
    def parse(cls, text: bytes | None) -> Extent:
        """The inverse of `encode`; an empty extent for None."""
        return cls(*json.loads(text)) if text else cls()

    def __str__(self) -> str:
        submissions, files = counted(self.submission, "submission"), counted(self.files, "file")
        return f"{submissions} and {files} of {self.size} bytes"

    def encode(self) -> bytes:
        return json.dumps(astuple(self)).encode()

    def is_before(self, other: Extent) -> bool:
        """Whether a catalog of this extent is older than one of the other. A later submission is
        newer even with fewer files: a repair may have written off losses."""
        return astuple(self) < astuple(other)

    def exceeds(self, other: Extent) -> bool:
        """Whether any number is higher than in the other."""
        return any(a > b for a, b in zip(astuple(self), astuple(other), strict=True))
