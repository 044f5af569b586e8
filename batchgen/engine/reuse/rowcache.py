"""A row under a step cache: its branches, what they decided, and what they keep.

The leader decides and says so in its orders; every rank keeps what later steps are predicted from.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import torch
from torch import Tensor

from batchgen.caches.blocks import PROBE, WHOLE, Blocks
from batchgen.caches.strategy import (
    BlockCache,
    BranchCache,
    Look,
    ProbeCache,
    Row,
    SignalKind,
    Strategy,
)
from batchgen.engine.reuse.blocks import NOTHING, Kept

log = logging.getLogger(__name__)
SAVED_BYTES = 256 << 20  # most that a drained row takes along of its cache
_NUMBER = "#"  # begins the name of a saved number
_DECIDED = "decided"


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """What a branch's first block came to at the step that is to be decided."""

    kept: Kept = NOTHING  # on the ranks that drew it
    change: float = math.inf  # see `caches.strategy.Look`
    velocity: Tensor | None = None  # of that block and what the others had added before


class RowCache:
    """All branches of one row under one strategy, which is not a planned one."""

    def __init__(
        self,
        strategy: Strategy,
        row: Row,
        branches: int,
        table: Any = None,
        *,
        divided: bool = False,
        alike: bool = False,
    ) -> None:
        """`row`: what holds for each of the `branches`; `table`: the entry of its coefficients;
        `divided`: what forwards keep lies on several ranks; `alike`: all branches have the same
        signals, so that what one decides by them, the others would."""
        self.strategy, self.row, self.table = strategy, row, table
        facts = strategy.FACTS
        self.together = facts.together or (alike and facts.signal in get_args(SignalKind))
        self.movable = self.output or not divided  # whether another attempt can go on with it
        self.probes: dict[int, Probe] = {}  # of the step to come, by branch
        self.count = branches
        self.restarts = 0  # that lost what was kept
        self.branches = self._fresh()
        self._decided: tuple[int, tuple[bool, ...]] | None = None  # the step, and of each branch

    @property
    def output(self) -> bool:
        """Whether what is reused is a velocity, which takes no forward."""
        return self.strategy.FACTS.reuses == "output"

    @property
    def probing(self) -> bool:
        """Whether the branches have yet to be probed before they can decide of their step."""
        return self.strategy.FACTS.kind == "probe" and not self.probes

    @property
    def bytes(self) -> int:
        """Kept on this rank now."""
        kept = [tensor for branch in self.branches for tensor in branch.tensors().values()]
        kept += [tensor for probe in self.probes.values() for tensor in probe.kept.tensors]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def plan(self, step: int, look: Callable[[int], Look]) -> tuple[Blocks | None, ...]:
        """What the forward of each branch does at the step; None: it takes none."""
        return tuple(
            self._blocks(step, branch, computed)
            for branch, computed in enumerate(self.computes(step, look))
        )

    def _blocks(self, step: int, branch: int, computed: bool) -> Blocks | None:
        if not computed and (self.output or self.probes):
            return None
        if self.output:
            return WHOLE
        return cast(BlockCache, self.branches[branch]).blocks(step, computed)

    def given(self, step: int, branch: int, latents: Tensor, blocks: Blocks) -> Kept:
        """What the branch's forward takes from before."""
        probe, cache = self.probes.get(branch, Probe()).kept, self.branches[branch]
        if blocks.reuses:
            return Kept(attention=cache.predict(step, latents))
        if blocks.start > 0:
            return Kept(state=cache.predict(step, latents) if probe.state is None else probe.state)
        if blocks.empty or (blocks == PROBE and self.against(branch) is not None):
            return Kept(added=cache.predict(step, latents))
        return NOTHING

    def reused(self, step: int, branch: int, latents: Tensor) -> Tensor:
        """The velocity of a branch that takes no forward, or none behind its probe."""
        if branch in self.probes:
            velocity = self.probes[branch].velocity
            assert velocity is not None
            return velocity
        found: Tensor = self.branches[branch].predict(step, latents)
        return found

    def note(self, step: int, branch: int, latents: Tensor, velocity: Tensor, kept: Kept) -> None:
        """The step was computed, as far as it was: let the branch keep of it what it reuses."""
        cache, first = self.branches[branch], self.probes.get(branch, Probe()).kept.added
        if self.output:  # float32, as it is saved: a row that was stopped predicts the same
            cache.note(step, latents, velocity.float())
        elif kept.tensors:
            cache.note(step, latents, kept.value)
            if first is not None:
                cast(ProbeCache, cache).note_probe(first)

    def against(self, branch: int) -> Tensor | None:
        """What a probe of the branch is compared with, where it is kept."""
        return cast(ProbeCache, self.branches[branch]).against()

    def computes(self, step: int, look: Callable[[int], Look]) -> tuple[bool, ...]:
        """Which branches are computed at the step; each that decides is asked once, with its
        `look`."""
        if self._decided is None or self._decided[0] != step:
            asked = self.branches[:1] if self.together else self.branches
            said = tuple(cache.computes(look(branch)) for branch, cache in enumerate(asked))
            self._decided = step, said * (self.count // len(said))
        return self._decided[1]

    def stepped(self, step: int) -> None:
        """The row is at the step now: another expert begins without a past."""
        self.probes = {}
        if step in self.row.starts:
            self.branches = self._fresh()

    def _fresh(self) -> list[BranchCache]:
        rows = [replace(self.row, branch=branch) for branch in range(self.count)]
        return [self.strategy.branch(row, self.table) for row in rows]

    # ----------------------------------------------------------------------------- save and restore
    def saved(self) -> dict[str, Tensor]:
        """All that is remembered, by name; nothing where that is more than SAVED_BYTES."""
        if self.bytes > SAVED_BYTES or not self.movable:
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
        if saved and self.movable:
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
