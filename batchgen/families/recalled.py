"""Which modules of a transformer see a timestep, or a text, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sees = Literal["timestep", "text"]


@dataclass(frozen=True, slots=True)
class Recalled:
    """Modules whose output follows from an item's timestep alone, or from its text alone: computed
    once and recalled after (`engine/recall.py`). A forward gives each one input with all its items,
    undivided over ranks."""

    modules: str  # a name with `*` for the numbers of blocks
    sees: Sees
