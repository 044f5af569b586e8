"""What the ranks of a replica are told to do next: frozen messages, made by the director alone.

Rows are named by their number in the render, in the order they were taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchgen.caches.blocks import WHOLE, Blocks
from batchgen.config.schema import Kernel
from batchgen.engine.contract import Snapshot
from batchgen.request import Request

if TYPE_CHECKING:
    from torch import Tensor

Slot = tuple[int, int]  # number of the row, its branch


@dataclass(frozen=True, slots=True, eq=False)
class Join:
    """An encoded row joins the rows in flight, from its first step or where a snapshot left it."""

    number: int
    snapshot: Snapshot | None


@dataclass(frozen=True, slots=True)
class Pack:
    """Items that share a forward, what it does with the blocks, and what attends."""

    slots: tuple[Slot, ...]
    blocks: Blocks = WHOLE
    kernel: Kernel = "sdpa"


@dataclass(frozen=True, slots=True, eq=False)
class Decode:
    """A denoised row that all ranks decode together. They get the leader's latents, and keep none
    of their own."""

    request: Request
    latents: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Orders:
    """To be done in the order of the fields; what is empty is not done."""

    use: tuple[str, ...] = ()  # components that have to be on the device
    encode: tuple[tuple[int, Request], ...] = ()  # a window of rows
    drop: tuple[int, ...] = ()  # rows that will not go on, wherever they are
    joins: tuple[Join, ...] = ()
    probes: tuple[Pack, ...] = ()  # of rows that decide behind their first block
    packs: tuple[Pack, ...] = ()  # one forward each
    reuses: tuple[Slot, ...] = ()  # need none; packs and reuses hold every branch of a moving row
    decode: Decode | None = None
    over: bool = False  # the render ends
