"""Rows in flight: rows at different steps, guidances and solvers share forwards, tick by tick.

A tick packs the branches of all rows by bucket, runs one forward per pack, combines each row's
branches by guidance, and moves each row one solver step. Nothing of a row depends on who shares its
forwards. A row that makes a forward raise fails alone: the pack is run again item by item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from batchgen.engine.contract import Snapshot
from batchgen.engine.family import Condition, Family, Item
from batchgen.engine.isolation import Failed, attempt
from batchgen.engine.kernels import KernelWatch
from batchgen.engine.meter import RowMeter
from batchgen.engine.packs import Packer
from batchgen.engine.snapshot import fits, unpack
from batchgen.engine.solver import History, Schedule, step
from batchgen.records import Request


@dataclass(slots=True, eq=False)
class RowState:
    """All that is known of a row between two ticks."""

    request: Request
    schedule: Schedule
    conditions: tuple[Condition, ...]  # by branch: with the prompt, then without it
    latents: Tensor  # float32 (1, ...)
    meter: RowMeter
    history: History = field(default_factory=History)
    step: int = 0

    @property
    def timestep(self) -> float:
        return float(self.schedule.timesteps[self.step])

    @property
    def done(self) -> bool:
        return self.step == len(self.schedule)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """Rows that left in a tick."""

    done: list[RowState]
    failed: list[tuple[RowState, Exception]]


class Flight:
    """The rows in flight of one replica."""

    def __init__(self, family: Family, packer: Packer, device: torch.device) -> None:
        self.family = family
        self.packer = packer
        self.device = device
        self.kernels = KernelWatch(device)
        self.rows: list[RowState] = []
        self.ticks = 0
        self.forwards = 0
        self.items = 0
        self.syncs = 0

    @property
    def tokens(self) -> int:
        """Video tokens of one tick."""
        return sum(
            self.packer.tokens(row.request.bucket) * len(row.conditions) for row in self.rows
        )

    def open(
        self,
        request: Request,
        conditions: tuple[Condition, ...],
        meter: RowMeter,
        snapshot: Snapshot | None = None,
    ) -> RowState:
        """The state of a row before its first step, or where `snapshot` left it; may raise for
        this row alone."""
        schedule = self.family.schedule(request)
        meter.steps_total = len(schedule) * len(conditions)
        latents = self.family.initial_latents(request)
        if snapshot is None or not fits(snapshot, latents):
            return RowState(request, schedule, conditions, latents.to(self.device), meter)
        meter.restored = snapshot.step
        latents, history = unpack(snapshot, self.device)
        return RowState(request, schedule, conditions, latents, meter, history, snapshot.step)

    def tick(self) -> Outcome:
        """Move every row one step; rows that finished or failed leave."""
        begin = perf_counter()
        velocities: dict[tuple[int, int], Tensor | Failed] = {}
        in_forwards = 0.0
        for pack in self._packs():
            before = perf_counter()
            results = self._forward(pack)
            seconds = perf_counter() - before
            in_forwards += seconds
            for (row, branch), result in zip(pack, results, strict=True):
                velocities[id(row), branch] = result
                row.meter.forwards += 1
                row.meter.mates += len(pack)
                row.meter.attention_kernel = self.kernels.name(row.request.bucket)
                self._charge(row, branch, seconds / len(pack))
        outcome = Outcome([], [])
        for row in self.rows:
            self._advance(
                row, [velocities[id(row), b] for b in range(len(row.conditions))], outcome
            )
        total = perf_counter() - begin
        for row in self.rows:
            row.meter.ticks[-1] += (total - in_forwards) / len(self.rows)
        gone = {id(row) for row in outcome.done} | {id(row) for row, _ in outcome.failed}
        self.rows = [row for row in self.rows if id(row) not in gone]
        self.ticks += 1
        return outcome

    @staticmethod
    def _charge(row: RowState, branch: int, seconds: float) -> None:
        """Branches of one tick add up to one entry."""
        if branch == 0:
            row.meter.ticks.append(seconds)
        else:
            row.meter.ticks[-1] += seconds

    def _packs(self) -> list[Sequence[tuple[RowState, int]]]:
        """(row, branch) items that share a forward, rows in order of joining."""
        groups: dict[tuple[object, int], list[tuple[RowState, int]]] = {}
        for row in self.rows:
            phase = self.family.phase(row.request, row.timestep)
            for branch in range(len(row.conditions)):
                groups.setdefault((row.request.bucket, phase), []).append((row, branch))
        packs: list[Sequence[tuple[RowState, int]]] = []
        for members in groups.values():
            packs += self.packer.chunks(members[0][0].request.bucket, members)
        return packs

    def _forward(self, pack: Sequence[tuple[RowState, int]]) -> Sequence[Tensor | Failed]:
        bucket = pack[0][0].request.bucket
        items = [
            Item(row.request, row.latents, row.timestep, row.conditions[branch])
            for row, branch in pack
        ]
        result = attempt(lambda: self._timed(items))
        if not isinstance(result, Failed):
            return result
        if len(items) == 1:
            return [result]
        if isinstance(result.error, torch.OutOfMemoryError):
            self.packer.shrink(bucket, len(items))
        alone = [attempt(lambda item=item: self._timed([item])[0]) for item in items]  # type: ignore[misc]
        return alone

    def _timed(self, items: list[Item]) -> list[Tensor]:
        bucket = items[0].request.bucket
        watched = self.kernels.name(bucket) != ""  # to watch takes time
        measuring = watched and self.packer.measuring(bucket, len(items))
        if measuring:
            self._wait()
        begin = perf_counter()
        velocities = self.kernels.run(bucket, lambda: self.family.forward(items))
        self.forwards += 1
        self.items += len(items)
        if measuring:
            self._wait()
            self.packer.observe(bucket, len(items), perf_counter() - begin)
        return velocities

    def _wait(self) -> None:
        self.syncs += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _advance(self, row: RowState, branches: list[Tensor | Failed], outcome: Outcome) -> None:
        for result in branches:
            if isinstance(result, Failed):
                outcome.failed.append((row, result.error))
                return
        moved = attempt(lambda: self._step(row, [v for v in branches if isinstance(v, Tensor)]))
        if isinstance(moved, Failed):
            outcome.failed.append((row, moved.error))
        elif row.done:
            outcome.done.append(row)

    def _step(self, row: RowState, velocities: list[Tensor]) -> None:
        """Classifier-free guidance in diffusers' order of operations, then one solver step."""
        velocity = velocities[0]
        if len(velocities) == 2:
            scale = self.family.guidance(row.request, row.timestep)
            velocity = velocities[1] + scale * (velocities[0] - velocities[1])
        coefs = row.schedule.coefs[row.step]
        row.latents, row.history = step(coefs, row.latents, velocity, row.history)
        row.step += 1
