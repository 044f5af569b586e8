"""Rows that take the same steps together, outside of any flight: for calibrating."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from batchgen.caches.blocks import WHOLE, Blocks
from batchgen.engine.encoding.prompts import EncodedRow
from batchgen.engine.isolation import Failed
from batchgen.engine.replica import Replica
from batchgen.engine.reuse.blocks import Kept
from batchgen.engine.rows.caching import expert_starts
from batchgen.engine.rows.forwards import Forwards, Work
from batchgen.errors import ConfigError
from batchgen.families.family import DrawsFromImages, Item, Stage
from batchgen.numerics.diffusion import Draw
from batchgen.numerics.solver import noise_of
from batchgen.request import Request


class Lockstep:
    """Encoded rows of one schedule, and their forwards."""

    def __init__(self, replica: Replica, requests: Sequence[Request], *, guided: bool) -> None:
        """Encodes the rows' texts; raises the error of a row that cannot be drawn, or ConfigError
        for rows that do not share schedule and branches. `guided`: `fitted` is the guided velocity,
        not each branch's."""
        self.replica, self.family, self.guided = replica, replica.family, guided
        self.forwards = Forwards(replica)
        self.rows = encoded(replica, requests)
        for row in self.rows:
            if row.error is not None:
                raise row.error
        if len({_kind(row) for row in self.rows}) != 1:
            raise ConfigError(
                "rows that are calibrated together share solver, sigma_shift, num_steps and "
                "whether they are guided"
            )
        self.schedule = self.family.schedule(requests[0])
        self.times = [float(time) for time in self.schedule.timesteps]
        self.branches = 1 if guided else len(self.rows[0].conditions)
        experts = [self.family.expert(requests[0], time) for time in self.times]
        self.starts = expert_starts(experts)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def together(self) -> int:
        """Rows that fill a forward."""
        limits = [self.replica.packer.limit(row.request.bucket) for row in self.rows]
        return max(1, min(limits) // len(self.rows[0].conditions))

    def noise(self, row: int) -> Tensor:
        """Where the row begins, on the device."""
        latents = self.family.initial_latents(self.rows[row].request)
        return latents.to(self.replica.device, self.family.state_dtype)

    def draw(self, row: int, latents: Tensor) -> Draw | None:
        """Gives what the row's solver draws from its first step on, if it does."""
        noise = noise_of(self.schedule, latents, self.rows[row].request.seed)
        return noise.draw if noise else None

    def end(self, row: int, latents: Tensor) -> Tensor:
        """The latents after the row's last step, with what its images say about them."""
        shared = tuple(tensor.to(latents.device) for tensor in self.rows[row].shared)
        if shared and isinstance(self.family, DrawsFromImages):
            return self.family.put_back(latents, shared)
        return latents

    def velocities(
        self, some: Sequence[int], latents: Sequence[Tensor], step: int
    ) -> list[tuple[Tensor, ...]]:
        """Of each branch of some rows, whose latents these are."""
        pairs = zip(some, latents, strict=True)
        items = [item for row, x in pairs for item in self.items(row, x, step)]
        answers = iter(self.forward(items))
        return [tuple(next(answers)[0] for _ in self.rows[row].conditions) for row in some]

    def items(self, row: int, latents: Tensor, step: int) -> list[Item]:
        """One of each branch, with the expert on the device that draws them."""
        time, shared = self.times[step], self.rows[row].shared
        self.replica.residency.use(self.family.expert(self.rows[0].request, time))
        return [
            Item(
                self.rows[row].request,
                latents,
                time,
                *(tuple(t.to(latents.device) for t in part) for part in (each, shared)),
            )
            for each in self.rows[row].conditions
        ]

    def forward(self, items: Sequence[Item], blocks: Blocks = WHOLE) -> list[tuple[Tensor, Kept]]:
        """Of each item its velocity and what `blocks` keeps, in the order of the items, whatever
        shares a forward. Out of memory, the replica takes less; raises the error of an item that
        cannot be drawn."""
        groups: dict[Hashable, list[int]] = {}
        for place, item in enumerate(items):
            groups.setdefault(self.family.group(item.request), []).append(place)
        found: dict[int, tuple[Tensor, Kept]] = {}
        for places in groups.values():
            for chunk in self.replica.packer.chunks(items[places[0]].request.bucket, places):
                drawn = self.forwards.run(Work([items[place] for place in chunk], blocks))
                for place, one in zip(chunk, drawn, strict=True):
                    if isinstance(one, Failed):
                        raise one.error
                    found[place] = one.velocity, one.kept
        return [found[place] for place in range(len(items))]

    def combine(self, row: int, step: int, velocities: Sequence[Tensor]) -> Tensor:
        """The guided velocity."""
        return self.family.combine(self.rows[row].request, self.times[step], velocities)

    def fitted(self, row: int, step: int, velocities: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What leaps are fitted on."""
        return (self.combine(row, step, velocities),) if self.guided else tuple(velocities)


def encoded(replica: Replica, requests: Sequence[Request]) -> list[EncodedRow]:
    """The rows with their texts, or with the error for which one cannot be drawn."""
    replica.residency.use(*_here(replica, "encode"))
    with torch.no_grad():
        return replica.encoded(requests)


def _here(replica: Replica, stage: Stage) -> list[str]:
    """The components of a stage that this replica has."""
    return [
        name for name in replica.residency.plan.components(stage) if name in replica.family.modules
    ]


def _kind(row: EncodedRow) -> Hashable:
    request: Request = row.request
    return request.solver, request.sigma_shift, request.num_steps, len(row.conditions)
