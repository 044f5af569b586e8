"""One loaded model at work on one device: what all renders of an engine share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from batchgen.caches.blocks import NO_BLOCKS, Blocks
from batchgen.caches.strategy import SignalKind
from batchgen.caches.tables import Tables
from batchgen.config.schema import SystemConfig
from batchgen.engine.adapters import Adapters
from batchgen.engine.attention.choice import Attention
from batchgen.engine.compiled import Compiled
from batchgen.engine.contract import unheard
from batchgen.engine.devices.kernels import KernelWatch
from batchgen.engine.encoding.pictures import PictureBook
from batchgen.engine.encoding.prompts import EncodedRow, PromptBook
from batchgen.engine.isolation import Failed, is_short
from batchgen.engine.ladder import Ladder
from batchgen.engine.memory.residency import Residency
from batchgen.engine.packs import DecodeSizes, Packer
from batchgen.engine.parallel.split import Split
from batchgen.engine.parallel.tiles import DividedDecodes
from batchgen.engine.ranks.team import Team
from batchgen.engine.reuse.blocks import Stacks
from batchgen.engine.reuse.recall import Ahead, Memo, Recall
from batchgen.families.family import Condition, FamilyModel, Item
from batchgen.request import Bucket, Request


@dataclass(frozen=True, slots=True, eq=False)
class RowAhead:
    """What the tables of a row are made from."""

    request: Request
    dtype: torch.dtype  # of its latents, before its next step
    timesteps: Sequence[float]  # that are left
    conditions: Sequence[Condition]  # of its branches, on the device


@dataclass(frozen=True, slots=True, eq=False)
class Replica:
    """The family's modules with their places, the texts encoded so far, the sizes of packs."""

    system: SystemConfig
    family: FamilyModel
    device: torch.device
    residency: Residency
    ladder: Ladder  # when it is out of memory
    prompts: PromptBook
    pictures: PictureBook
    packer: Packer
    decodes: DecodeSizes
    team: Team
    stacks: Stacks  # its experts' blocks
    attention: Attention  # its kernels
    kernels: KernelWatch  # what ran, watched once for all renders: that takes as long as a forward
    compiled: Compiled  # and those blocks as torch compiles them
    recall: Recall  # of their modules that see a timestep or a text alone
    adapters: Adapters  # beside their weights
    tables: Tables  # coefficients of step caches
    split: Split | None  # of forwards over several ranks
    divided: DividedDecodes | None  # and of decodes
    layers: int  # blocks of a forward
    smallest: Bucket
    share: Callable[[Bucket, Blocks], float]  # what such a forward computes of a whole one
    # what a row keeps by shape, branches, steps and step caches, and all rows at most; 0: any
    row_bytes: Callable[[Bucket, int, int, tuple[str, ...]], int]
    most_kept: int
    overlap: bool  # decode and deliver on a background thread

    def encoded(
        self, requests: Sequence[Request], moved: Callable[[], object] = unheard
    ) -> list[EncodedRow]:
        """The rows of a window with their texts and images, or with their errors."""
        rows = []
        for row in self.prompts.encode(requests, moved):
            rows.append(self.pictures.illustrated(row))
            moved()
        self.pictures.forget()
        return rows

    def needs_encoder(self, requests: Sequence[Request]) -> bool:
        """Whether a text or an image of these rows is still to be encoded."""
        return any(book.needs_encoder(requests) for book in (self.prompts, self.pictures))

    def signal(self, item: Item, kind: SignalKind) -> Tensor:
        """The family's, computed by this rank alone; it looks into the first block, too."""
        expert = self.family.expert(item.request, item.timestep)
        self.residency.ensure(expert)
        first = self.residency.first_block(expert)
        with self.split.whole() if self.split else nullcontext(), first:
            return self.family.signal(item, kind)

    def tabulate(self, rows: Sequence[RowAhead]) -> list[tuple[Memo, ...] | Failed]:
        """Make the tables of rows that join together, where they stand in for weights; each has to
        hold its own. Where there is no room, their forwards make them as they need them; what
        fails for all is tried for each alone."""
        if not rows or not self.recall.away:
            return [()] * len(rows)
        made = self.ladder.retry(lambda: self._tabulate(rows))
        if not isinstance(made, Failed):
            return [*made]
        if is_short(made):
            return [()] * len(rows)
        return [made] if len(rows) == 1 else [self.tabulate([row])[0] for row in rows]

    def _tabulate(self, rows: Sequence[RowAhead]) -> list[tuple[Memo, ...]]:
        request, size = rows[0].request, self.smallest
        expert = self.family.expert(request, rows[0].timesteps[0])
        self.residency.ensure(expert)
        like = self.family.random_item(size, 0, expert)
        ahead = [Ahead(self._items(row, like), len(row.conditions)) for row in rows]
        found: dict[int, tuple[Memo, ...]] = {}
        whole = self.split.whole() if self.split else nullcontext()
        with whole, self.stacks.told(NO_BLOCKS):
            for loras in dict.fromkeys(row.request.lora for row in rows):
                these = [at for at, row in enumerate(rows) if row.request.lora == loras]
                forward = lambda one: self.family.forward([one])  # noqa: E731
                made = self.recall.tabulate(forward, [ahead[at] for at in these])
                found |= zip(these, made, strict=True)
        return [found[at] for at in range(len(rows))]

    def _items(self, row: RowAhead, like: Item) -> list[Item]:
        """Of the steps that are left, as small as they can be."""
        size = self.smallest
        request = replace(
            row.request, width=size.width, height=size.height, num_frames=size.num_frames
        )
        conditions = row.conditions if self.recall.sees_combined else [like.condition]
        now, later = (like.latents.to(d) for d in (row.dtype, self.family.state_dtype))
        return [
            replace(
                like,
                request=request,
                timestep=timestep,
                condition=condition,
                latents=later if step else now,
            )
            for condition in conditions
            for step, timestep in enumerate(row.timesteps)
        ]
