"""What deciding may look at: a row as it stands before a step, on the leader alone."""

from __future__ import annotations

from torch import Tensor

from batchgen.caches.strategy import SignalKind
from batchgen.engine.replica import Replica
from batchgen.engine.rows.flight import RowState


class RowLook:
    """One branch of a row (`caches.strategy.Look`)."""

    def __init__(self, replica: Replica, row: RowState, branch: int) -> None:
        self.replica, self.row, self.branch = replica, row, branch
        self.step = row.step

    @property
    def latents(self) -> Tensor:
        return self.row.latents.float()

    @property
    def change(self) -> float:
        """See `Look`."""
        assert self.row.cache is not None
        return self.row.cache.probes[self.branch].change

    def signal(self, kind: SignalKind) -> Tensor:
        """The family's, computed here alone."""
        return self.replica.signal(self.row.item(self.branch), kind)
