"""pab: attentions are computed at every so-many-th step, their outputs reused at the others
(Pyramid Attention Broadcast, https://arxiv.org/abs/2408.12588).

Between warm-up and cool-down, attention among the drawn tokens is computed at each
`self_interval`-th step, attention to the text at each `cross_interval`-th, and everything else at
every step. What a row saves is what the attentions cost: less than its ratio.

A ratio gives Chitu's intervals: ten times the ratio, and 5/3 of that for the text. Corrected: there
a small ratio gives an interval of 0, and divides by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchgen.caches.blocks import Attention, Blocks
from batchgen.caches.knobs import whole
from batchgen.caches.strategy import BranchCache, Facts, Keeps, Look, Row, Tensor
from batchgen.request import Range

FACTS = Facts(
    kind="partial",
    reuses="attention",
    keeps=Keeps(attention=("self", "cross")),
    params={"self_interval": Range(1, 1000), "cross_interval": Range(1, 1000)},
)
KINDS: tuple[Attention, ...] = ("self", "cross")


def computed(row: Row, table: Mapping[str, Any] | None) -> tuple[int, ...]:
    """The steps at which all attentions are computed."""
    return tuple(
        step for step in range(row.steps) if all(computes(row, kind, step) for kind in KINDS)
    )


def expected(row: Row, table: Mapping[str, Any] | None) -> float:
    left_out = {
        kind: sum(not computes(row, kind, step) for step in range(row.steps)) for kind in KINDS
    }
    return row.steps - sum(
        share * left_out[kind] for kind, share in zip(KINDS, row.attention, strict=True)
    )


def branch(row: Row, table: Mapping[str, Any] | None) -> BranchCache:
    return Broadcast(row)


def intervals(row: Row) -> dict[Attention, int]:
    """Steps from one computed attention to the next, by its kind."""
    own = whole(row, "self_interval", max(1, int(10 * row.ratio + 0.5)))
    cross = whole(row, "cross_interval", max(1, int(own * 5 / 3 + 0.5)))
    return {"self": own, "cross": cross}


def computes(row: Row, kind: Attention, step: int) -> bool:
    """Whether attentions of a kind are computed at a step."""
    return row.must(step) or (step - row.warmup) % intervals(row)[kind] == 0


class Broadcast:
    """A branch that reuses outputs of attentions."""

    def __init__(self, row: Row) -> None:
        self._row = row
        self._outputs: dict[str, Tensor] = {}  # by kind

    def computes(self, look: Look) -> bool:
        """Whether all attentions are."""
        return all(computes(self._row, kind, look.step) for kind in KINDS)

    def blocks(self, step: int, computed: bool) -> Blocks:
        now = tuple(kind for kind in KINDS if computes(self._row, kind, step))
        return Blocks(attends=now, reuses=tuple(kind for kind in KINDS if kind not in now))

    def note(self, step: int, latents: Tensor, value: Mapping[str, Tensor]) -> None:
        self._outputs |= value

    def predict(self, step: int, latents: Tensor) -> Mapping[str, Tensor]:
        return self._outputs

    def tensors(self) -> dict[str, Tensor]:
        return dict(self._outputs)

    def numbers(self) -> dict[str, float]:
        return {}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        self._outputs = dict(tensors)
