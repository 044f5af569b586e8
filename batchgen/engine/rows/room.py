"""How many rows share the ticks of a replica, and which one joins next."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from batchgen.engine.encoding.prompts import EncodedRow
from batchgen.engine.replica import Replica
from batchgen.engine.rows.meter import RowMeter
from batchgen.families.kept import TickRoom
from batchgen.request import Bucket, Loras, Request


class Room:
    """Of the rows of one replica (`TickRoom`)."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        most, tokens = replica.system.batch.max_rows_in_flight, replica.packer.tick_tokens
        self.tick = TickRoom(most, tokens, replica.most_kept or inf)
        self.kinds: set[tuple[Bucket, Loras]] = set()

    def takes(self, request: Request, branches: int) -> bool:
        """Whether there is room for one more row."""
        return self.tick.takes(self._tokens(request, branches), self._kept(request, branches))

    def add(self, request: Request, branches: int) -> None:
        """The row has joined."""
        self.tick.add(self._tokens(request, branches), self._kept(request, branches))
        self.kinds.add(_kind(request))

    def rest(self, request: Request, branches: int) -> None:
        """The row is in flight, and waits for its expert."""
        self.tick.rest(self._kept(request, branches))

    def next(self, waiting: Mapping[int, tuple[EncodedRow, RowMeter]]) -> int:
        """The number of the row to join next."""
        for number, (row, _) in waiting.items():
            if row.error is not None or _kind(row.request) in self.kinds:
                return number
        return next(iter(waiting))

    def _tokens(self, request: Request, branches: int) -> int:
        return self.replica.packer.tokens(request.bucket) * branches

    def _kept(self, request: Request, branches: int) -> int:
        caches = (request.cache_strategy,)
        return self.replica.row_bytes(request.bucket, branches, request.num_steps, caches)


def _kind(request: Request) -> tuple[Bucket, Loras]:
    """Only rows of one kind share forwards."""
    return request.bucket, request.lora
