"""easycache: computes when the velocity is thought to have changed (https://arxiv.org/abs/2507.02860).

How fast the velocity changes with the latents is measured between the last two computed steps. From
then on each step adds what its latents' change amounts to, relative to the velocity; at `threshold`
the step is computed and the sum begins anew. Until then velocity - latents is reused.

Published: threshold 0.05 for Wan, which a ratio of 0.5 gives; the first 10 steps and the last one
computed; the first branch decides for both. So it does here: branches that decide apart are wrong
at different steps, which guidance multiplies (7 dB less on tiny-wan at 25 of 50 evaluations).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from batchgen.caches.knobs import ratio, threshold
from batchgen.caches.spread import spread
from batchgen.caches.strategy import BranchCache, Facts, Keeps, Look, Row, Tensor, computed_count
from batchgen.request import Range

PER_RATIO = 0.1
FACTS = Facts(
    kind="adaptive",
    reuses="output",
    keeps=Keeps(latents=3),
    signal="latents",
    together=True,
    table="used",
    warmup=10,
    cooldown=1,
    params={"threshold": Range(0, 10)},
)


def computed(row: Row, table: Mapping[str, Any] | None) -> tuple[int, ...] | None:
    return tuple(range(row.steps)) if row.ratio == 0 else None


def expected(row: Row, table: Mapping[str, Any] | None) -> float:
    """A guess: what the ratio promises, but no fewer than must be computed."""
    return float(len(spread(row, computed_count(row.steps, ratio(row, table, PER_RATIO)))))


def branch(row: Row, table: Mapping[str, Any] | None) -> BranchCache:
    return Measured(row, threshold(row, table, PER_RATIO))


class Measured:
    """A branch that computes by the measured rate of change."""

    def __init__(self, row: Row, threshold: float) -> None:
        self._row = row
        self._threshold = threshold
        self._tensors: dict[str, Tensor] = {}  # seen: latents of the last step asked;
        # latents, value: of the last computed one
        self._rate = math.inf  # of the velocity's change by the latents'; unknown: compute
        self._sum = 0.0

    def computes(self, look: Look) -> bool:
        seen = self._tensors.get("seen")
        self._tensors["seen"] = look.latents
        if seen is None or self._row.must(look.step):
            return True
        self._sum += self._rate * _mean(look.latents - seen, self._tensors["value"])
        return not self._sum < self._threshold  # so are infinity and a division by zero

    def note(self, step: int, latents: Tensor, value: Tensor) -> None:
        if "value" in self._tensors:
            moved = latents - self._tensors["latents"]
            self._rate = _mean(value - self._tensors["value"], moved)
        self._sum = 0.0
        self._tensors |= {"latents": latents, "value": value}

    def predict(self, step: int, latents: Tensor) -> Tensor:
        return latents + (self._tensors["value"] - self._tensors["latents"])

    def tensors(self) -> dict[str, Tensor]:
        return dict(self._tensors)

    def numbers(self) -> dict[str, float]:
        known = {"rate": self._rate} if math.isfinite(self._rate) else {}
        return {"sum": self._sum} | known

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        self._tensors = dict(tensors)
        self._sum = numbers["sum"]
        self._rate = numbers.get("rate", math.inf)


def _mean(part: Tensor, whole: Tensor) -> float:
    """Mean size of one tensor by that of another; infinite or no number if that is 0."""
    return float(part.abs().mean() / whole.abs().mean())
