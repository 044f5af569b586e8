"""A row walked through a branch of a step cache, on made-up latents and values, without a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from batchgen.caches.strategy import BranchCache, Facts, Row, SignalKind

SHAPES = {
    "latents": (1, 4, 1, 4, 6),
    "output": (1, 4, 1, 4, 6),
    "stack": (1, 8, 10),
    "embedded": (1, 2, 2, 2, 10),
    "timestep": (1, 12),
    "projected": (1, 72),
}


def sigmas(steps: int, shift: float = 3.0) -> tuple[float, ...]:
    """Of flow matching: from 1 down to 0, steps + 1 of them."""
    even = [1 - i / steps for i in range(steps + 1)]
    return tuple(shift * s / (1 + (shift - 1) * s) for s in even)


def row(steps: int = 50, ratio: float = 0.5, warmup: int = 0, cooldown: int = 0, **others) -> Row:
    """A row of that many steps; `params`, `starts`, `branch` and `layers` may be given."""
    facts = {"params": {}, "layers": 6} | others
    return Row(ratio=ratio, warmup=warmup, cooldown=cooldown, sigmas=sigmas(steps), **facts)


def drawn(what: str, seed: int) -> Tensor:
    return torch.randn(SHAPES[what], generator=torch.Generator().manual_seed(seed))


def smooth(what: str, step: int) -> Tensor:
    """A tensor that changes slowly over the steps, and never alike twice."""
    a, b, c = (drawn(what, seed) for seed in range(3))
    return a + 0.03 * step * b + 0.2 * torch.sin(torch.tensor(0.17 * step)) * c


@dataclass
class Seen:
    """What deciding may look at: a `Look`."""

    step: int
    latents: Tensor
    change: float = math.inf

    def signal(self, kind: SignalKind) -> Tensor:
        return smooth(kind, self.step)


@dataclass
class Walk:
    """The steps of a row, one by one, through one branch after another (one of each expert)."""

    row: Row
    facts: Facts
    branch: Callable[[], BranchCache]
    value: Callable[[int], Tensor] | None = None  # what would be computed at a step
    computed: list[int] = field(default_factory=list)
    predicted: dict[int, Tensor] = field(default_factory=dict)

    def steps(self) -> Iterator[tuple[int, BranchCache]]:
        """Each step and its branch, before it is done."""
        branch = self.branch()
        for step in range(self.row.steps):
            if step in self.row.starts:
                branch = self.branch()
            yield step, branch
            self.step(branch, step)

    def step(self, branch: BranchCache, step: int) -> None:
        latents = smooth("latents", step)
        if branch.computes(Seen(step, latents)):
            self.computed.append(step)
            value = self.value(step) if self.value else smooth(self.facts.reuses, step + 100)
            branch.note(step, latents, value)
        else:
            self.predicted[step] = branch.predict(step, latents)

    def whole(self) -> Walk:
        for _ in self.steps():
            pass
        return self
