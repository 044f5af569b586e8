"""A family's shorter way through a forward in which no block runs.

A transformer's own forward goes on to prepare what only its blocks are given: places of tokens,
texts, modulation of each block. Its plain twin is that forward, with what blocks added before
added in place of them (`caches.blocks.NO_BLOCKS`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from batchgen.engine.reuse.blocks import Stacks


@runtime_checkable
class SkipsBlocks(Protocol):
    """A family's model that has such a way."""

    def without_blocks(self, transformer: Any, added: Tensor, **inputs: Any) -> Tensor | None:
        """What the transformer's forward comes to, with its bits, where `added`, (items, tokens,
        width), is added in place of what all its blocks add. `inputs`: what that forward is given.
        None where it has to be taken."""


def shorten(stacks: Stacks, transformers: Sequence[nn.Module], family: SkipsBlocks) -> None:
    """Let forwards without blocks take the shorter way; on a rank that has all tokens."""
    for transformer in transformers:
        transformer.forward = _shortened(stacks, transformer, family.without_blocks)


def _shortened(
    stacks: Stacks, transformer: nn.Module, short: Callable[..., Tensor | None]
) -> Callable[..., Any]:
    inner: Callable[..., Any] = transformer.forward

    @wraps(inner)
    def forward(**inputs: Any) -> Any:
        added = stacks.passage.stand_in()
        drawn = None if added is None else short(transformer, added, **inputs)
        return inner(**inputs) if drawn is None else (drawn,)

    return forward
