"""Which modules of a transformer see a timestep, or a text, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sees = Literal["timestep", "text"]


@dataclass(frozen=True, slots=True)
class Recalled:
    """Modules whose output follows from an item's timestep alone, or from its text alone: computed
    once and recalled after (`engine/recall.py`). A forward gives each one input of all its items,
    undivided over ranks, and calls it once."""

    modules: str  # a name with `*` for the numbers of blocks
    sees: Sees
    together: int = 1  # items that diffusers' pipeline computes at once: 2 where it stacks branches
