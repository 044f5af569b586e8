"""Which modules of a transformer see a timestep, a text, or both and a guidance, and no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sees = Literal["timestep", "text", "combined"]  # combined: timestep, guidance and text at once
# Of tables by timestep that stand in for weights: 230 timesteps of a Qwen-Image, four schedules of
# 50 and more.
TABLE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Recalled:
    """Modules whose output follows from an item's timestep alone, from its text alone, or from
    these with its guidance: computed once and recalled after (`engine/reuse/recall.py`). A forward
    gives each one input with all its items, undivided over ranks."""

    modules: str  # a name with `*` for the numbers of blocks
    sees: Sees
    # Of modules in blocks, one outside that is given the same and is recalled as they are. Where
    # their component is not resident they wait on the host: tables stand in for them, made from
    # what that one is given.
    like: str = ""
    # They are given texts padded to the longest of their pack, a mask or None, and what else there
    # is of each token, all (items, tokens, ...).
    padded: bool = False
