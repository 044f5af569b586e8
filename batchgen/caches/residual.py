"""Branches that leave out all blocks of a forward, and what they remember."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping

from batchgen.caches.blocks import NO_BLOCKS, STACK, Blocks
from batchgen.caches.strategy import Look, Row, Tensor


class Residual:
    """A branch that adds again what all blocks added at its last computed step."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def blocks(self, step: int, computed: bool) -> Blocks:
        return STACK if computed else NO_BLOCKS

    def note(self, step: int, latents: Tensor, value: Tensor) -> None:
        self._tensors["added"] = value

    def predict(self, step: int, latents: Tensor) -> Tensor:
        return self._tensors["added"]

    def tensors(self) -> dict[str, Tensor]:
        return dict(self._tensors)

    def numbers(self) -> dict[str, float]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        self._tensors = dict(tensors)


class Planned(Residual):
    """One whose computed steps are known beforehand."""

    def __init__(self, steps: Collection[int]) -> None:
        super().__init__()
        self._steps = frozenset(steps)

    def computes(self, look: Look) -> bool:
        return look.step in self._steps


class Summing(Residual, ABC):
    """One that adds up how far a signal moves from step to step, and computes where the sum reaches
    a threshold; there it begins anew."""

    def __init__(self, row: Row, threshold: float) -> None:
        super().__init__()
        self._row, self._threshold = row, threshold
        self._sum = 0.0

    @abstractmethod
    def signal(self, look: Look) -> Tensor:
        """What is compared with that of the step before."""

    def distance(self, change: float) -> float:
        """What a relative change of the signal adds to the sum."""
        return change

    def computes(self, look: Look) -> bool:
        if self._decided(look.step) and self._decided(look.step + 1):
            self._sum = 0.0
            return True  # and the next step will not ask what has moved since
        signal = self.signal(look)
        seen, self._tensors["seen"] = self._tensors.get("seen"), signal
        return self.decides(look.step, None if seen is None else relative_change(signal, seen))

    def _decided(self, step: int) -> bool:
        """Whether there is nothing to decide at a step, or no such step."""
        return step >= self._row.steps or self._row.must(step)

    def decides(self, step: int, change: float | None) -> bool:
        """Whether the step is computed, where the signal has changed so much since the one before;
        None: there was none."""
        if change is None or self._row.must(step):
            self._sum = 0.0
            return True
        self._sum += self.distance(change)
        if self._sum < self._threshold:  # neither infinity nor a division by zero is
            return False
        self._sum = 0.0
        return True

    def numbers(self) -> dict[str, float]:
        return {"sum": self._sum}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        super().restore(tensors, numbers)
        self._sum = numbers["sum"]


def relative_change(new: Tensor, old: Tensor) -> float:
    """Mean size of the difference by that of the old one."""
    size = float(old.abs().mean())
    return float((new - old).abs().mean()) / size if size else math.inf
