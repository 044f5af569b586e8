"""What a family does around its blocks, in Python: outside of graphs that are made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

Run = Callable[..., Any]
_MARK = "_around"


def surround(block: nn.Module, around: Callable[[Run], Run]) -> None:
    """Let stacks run what `around` makes of a block, or of what it is compiled to."""
    setattr(block, _MARK, around)


def surrounded(block: nn.Module, run: Run) -> Run:
    """What a stack runs of a block; `run`: it, or what it is compiled to."""
    around: Callable[[Run], Run] | None = getattr(block, _MARK, None)
    return run if around is None else around(run)
