"""For tests: of each two evaluations one is computed, and stands in for the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchgen.caches.strategy import Facts, Look, Row

FACTS = Facts(kind="adaptive", reuses="output", warmup=0, cooldown=0)


def computed(row: Row, table: Mapping[str, Any] | None) -> tuple[int, ...]:
    return tuple(step for step in range(row.steps) if step % 2 == 0 or row.must(step))


def expected(row: Row, table: Mapping[str, Any] | None) -> float:
    return float(len(computed(row, table)))


class branch:
    def __init__(self, row: Row, table: Mapping[str, Any] | None) -> None:
        self.steps, self.last = computed(row, table), None

    def computes(self, look: Look) -> bool:
        return look.step in self.steps

    def note(self, step: int, latents: Any, value: Any) -> None:
        self.last = value

    def predict(self, step: int, latents: Any) -> Any:
        return self.last

    def tensors(self) -> dict[str, Any]:
        return {} if self.last is None else {"last": self.last}

    def numbers(self) -> dict[str, float]:
        return {}

    def restore(self, tensors: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
        self.last = tensors["last"]
