"""A row under a step cache: its branches, what they decided, and what they keep.

The leader decides and says so in its orders; every rank keeps what later steps are predicted from.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from batchgen.caches.strategy import BranchCache, Look, Row, Strategy

log = logging.getLogger(__name__)
SAVED_BYTES = 256 << 20  # most that a drained row takes along of its cache
_NUMBER = "#"  # begins the name of a saved number
_DECIDED = "decided"


class RowCache:
    """All branches of one row under one strategy, which is not a planned one."""

    def __init__(self, strategy: Strategy, row: Row, branches: int, table: Any = None) -> None:
        """`row`: what holds for each of the `branches`; `table`: the entry of its coefficients."""
        self.strategy, self.row, self.table = strategy, row, table
        self.count = branches
        self.restarts = 0  # that lost what was kept
        self.branches = self._fresh()
        self._decided: tuple[int, tuple[bool, ...]] | None = None  # the step, and of each branch

    @property
    def reuses(self) -> str:
        return self.strategy.FACTS.reuses

    @property
    def bytes(self) -> int:
        """Kept on this rank now."""
        kept = [tensor for branch in self.branches for tensor in branch.tensors().values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def computes(self, step: int, look: Callable[[int], Look]) -> tuple[bool, ...]:
        """Which branches are computed at the step; each is asked once, with its `look`."""
        if self._decided is None or self._decided[0] != step:
            asked = enumerate(self.branches)
            self._decided = step, tuple(cache.computes(look(branch)) for branch, cache in asked)
        return self._decided[1]

    def stepped(self, step: int) -> None:
        """The row is at the step now: another expert begins without a past."""
        if step in self.row.starts:
            self.branches = self._fresh()

    def _fresh(self) -> list[BranchCache]:
        rows = [replace(self.row, branch=branch) for branch in range(self.count)]
        return [self.strategy.branch(row, self.table) for row in rows]

    # ----------------------------------------------------------------------------- save and restore
    def saved(self) -> dict[str, Tensor]:
        """All that is remembered, by name; nothing where that is more than SAVED_BYTES."""
        if self.bytes > SAVED_BYTES:
            return {}
        found: dict[str, Tensor] = {}
        if self._decided is not None:  # and not done yet: to ask again would count twice
            step, decided = self._decided
            found[_DECIDED] = torch.tensor([step, *decided], dtype=torch.float64)
        for number, branch in enumerate(self.branches):
            found |= {f"{number}.{name}": kept for name, kept in branch.tensors().items()}
            found |= {
                f"{number}.{_NUMBER}{name}": torch.tensor(value, dtype=torch.float64)
                for name, value in branch.numbers().items()
            }
        return found

    def restore(self, step: int, saved: Mapping[str, Tensor]) -> None:
        """Go on at the step with what was `saved`; without it the cache begins anew there."""
        if saved:
            if _DECIDED in saved:
                at, *decided = saved[_DECIDED].tolist()
                self._decided = int(at), tuple(map(bool, decided))
            for number, branch in enumerate(self.branches):
                mine = _below(f"{number}.", saved)
                tensors = {k: v for k, v in mine.items() if not k.startswith(_NUMBER)}
                numbers = {k: v.item() for k, v in _below(_NUMBER, mine).items()}
                branch.restore(tensors, numbers)
        elif step > 0:
            self.restarts += 1
            self.row = replace(self.row, starts=(*self.row.starts, step))
            self.branches = self._fresh()
            log.warning("a saved row goes on without what its cache had kept")


def _below(prefix: str, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)
    }


def expert_starts(experts: Sequence[str]) -> tuple[int, ...]:
    """The steps at which another expert begins than drew the step before; `experts`: of each."""
    return tuple(i for i, name in enumerate(experts) if i == 0 or name != experts[i - 1])
