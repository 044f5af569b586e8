"""How many rows share the ticks of a replica, and which one joins next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from batchgen.engine.encoding.prompts import EncodedRow
from batchgen.engine.packs import Packer
from batchgen.engine.rows.meter import RowMeter
from batchgen.request import Bucket, Loras, Request

AUTO_ROWS = 16  # most rows in flight: what a stopped worker loses


class Room:
    """How many rows share a tick: by count where it is given, else while one tick of all is about
    one forward. One row always has room."""

    def __init__(self, packer: Packer, most: int | Literal["auto"]) -> None:
        self.packer = packer
        self.most = most
        self.rows = 0
        self.tokens = 0
        self.kinds: set[tuple[Bucket, Loras]] = set()

    def takes(self, bucket: Bucket, branches: int) -> bool:
        """Whether there is room for one more row."""
        if self.rows == 0:
            return True
        if self.most != "auto":
            return self.rows < self.most
        tokens = self.packer.tokens(bucket) * branches
        return self.rows < AUTO_ROWS and tokens <= self.packer.tick_tokens - self.tokens

    def add(self, request: Request, branches: int) -> None:
        """The row has joined."""
        self.rows += 1
        self.tokens += self.packer.tokens(request.bucket) * branches
        self.kinds.add(_kind(request))

    def next(self, waiting: Mapping[int, tuple[EncodedRow, RowMeter]]) -> int:
        """The number of the row to join next."""
        for number, (row, _) in waiting.items():
            if row.error is not None or _kind(row.request) in self.kinds:
                return number
        return next(iter(waiting))


def _kind(request: Request) -> tuple[Bucket, Loras]:
    """Only rows of one kind share forwards."""
    return request.bucket, request.lora
