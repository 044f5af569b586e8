"""Every layout that a job may have, with its memory and its price for the rows to be drawn."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

from batchgen.config.degrees import Degrees
from batchgen.config.schema import JobConfig
from batchgen.families.family import component_bytes, family_spec
from batchgen.planning.cost import BucketSeconds, CostModel, start_up_seconds
from batchgen.planning.timemodel import SharedForward, exchange_seconds, shape_of, wires_of
from batchgen.planning.work import Work
from batchgen.records import MemoryMode, Precision
from batchgen.request import Bucket

GIB = 1024**3
_USABLE = 0.92  # of device memory: the rest is fragmentation and the driver's own
_MOST_TOKENS = 65_536  # of a forward, where the engine ends its search for the size of packs
_WINDOW = 64  # rows that pass from one component to the next together, one component at a time
_ROUNDS = 64  # rows of a replica; of more the tail counts for nothing


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layout with its price."""

    degrees: Degrees
    memory: MemoryMode
    items: int  # of the most demanding shape in one forward of a rank
    peak_bytes: int  # of the rank that takes most, the leader of a replica
    fits: bool
    samples_per_hour: float  # of a device
    last_row_s: float  # until the last row is there, start-up counted
    speed: float  # of a replica, against one rank of it


def all_candidates(
    job: JobConfig, work: Sequence[Work], degrees: Sequence[Degrees]
) -> list[Candidate]:
    """Degrees x residency x items of a forward: the degrees in their order, then what needs the
    most memory, fewest items first."""
    demanding = most_demanding(job, [part.bucket for part in work])
    pricing = _Pricing(job, work, demanding)
    return [
        pricing.candidate(each, memory, items)
        for each in degrees
        for memory in residencies(job)
        for items in _items(job, demanding)
    ]


# ------------------------------------------------------------------------------------------ memory
def most_demanding(job: JobConfig, buckets: Sequence[Bucket]) -> Bucket:
    """The shape that needs the most memory; at least one has to be given."""
    family = family_spec(job.model.family)

    def needs(bucket: Bucket) -> int:
        asked = (family.forward_bytes, family.decode_bytes)
        return max(ask(job.model, bucket) for ask in asked)

    return max(buckets, key=needs)


def on_cpu(job: JobConfig) -> bool:
    return job.slurm.device.name == "cpu"


def precision_of(job: JobConfig) -> Precision:
    return "float32" if on_cpu(job) else job.model.dtype


def residencies(job: JobConfig) -> tuple[MemoryMode, ...]:
    """Legal ones, the one that takes the least memory last. A CPU computes where all components
    are anyway."""
    mode = job.system.memory.mode
    if mode == "resident" or mode == "model":
        return (mode,)
    return ("resident",) if on_cpu(job) else ("resident", "model")


def peak_bytes(
    job: JobConfig, bucket: Bucket, memory: MemoryMode, *, sequence: int = 1, items: int = 1
) -> int:
    """Of the leader of a replica, the rank that takes most: weights and activations. `sequence`
    ranks share the tokens; the leader decodes alone, row by row."""
    model = replace(job.model, dtype=precision_of(job))
    family, weights = family_spec(model.family), component_bytes(model)
    all_there = memory == "resident" or on_cpu(job)
    forward = items * -(-family.forward_bytes(model, bucket) // sequence)
    held = weights.total if all_there else weights.largest
    return held + max(forward, family.decode_bytes(model, bucket))


def room_bytes(job: JobConfig) -> float:
    """What a rank may take."""
    usable, limit = job.slurm.device.memory_gib * _USABLE, job.system.memory.vram_limit
    return GIB * (usable if limit is None else min(usable, limit))


def _items(job: JobConfig, demanding: Bucket) -> Iterator[int]:
    """Items of a forward that are worth a price: powers of two up to the most tokens."""
    budget = job.system.batch.token_budget
    most = _MOST_TOKENS if budget == "auto" else budget
    tokens, items = family_spec(job.model.family).tokens(job.model, demanding), 1
    yield items
    while not on_cpu(job) and 2 * items * tokens <= most:
        items *= 2
        yield items


# ------------------------------------------------------------------------------------------- price
@dataclass(frozen=True, slots=True)
class _Pricing:
    """What all candidates of a job have in common."""

    job: JobConfig
    work: Sequence[Work]
    demanding: Bucket

    def candidate(self, degrees: Degrees, memory: MemoryMode, items: int) -> Candidate:
        job = self.job
        peak = peak_bytes(job, self.demanding, memory, sequence=degrees.sequence, items=items)
        seconds = self._rows(degrees, items)
        alone = self._rows(Degrees(degrees.dp, 1, 1, 1), items)
        last = start_up_seconds(job) + self._moves_s(degrees, memory)
        last += makespan(seconds, degrees.dp)
        rows = sum(count for _, count in seconds)
        return Candidate(
            degrees=degrees,
            memory=memory,
            items=items,
            peak_bytes=peak,
            fits=peak <= room_bytes(job),
            samples_per_hour=3600 * rows / (last * self._devices(degrees, rows)),
            last_row_s=last,
            speed=_total(alone) / _total(seconds) if degrees.replica > 1 else 1.0,
        )

    def _rows(self, degrees: Degrees, items: int) -> list[tuple[float, int]]:
        """(seconds that a replica is at work on a row, rows) of each shape."""
        return [(self._row_s(part, degrees, items), part.rows) for part in self.work]

    def _row_s(self, part: Work, degrees: Degrees, items: int) -> float:
        """The leader encodes and decodes alone; the cfg ranks share the items that are there."""
        job, costs = self.job, self._seconds(part.bucket)
        shape = shape_of(job.model, part.bucket, precision_of(job))
        wires = wires_of(job.slurm.device, job.slurm.ranks_per_node)
        together = max(1.0, part.branches * ceil(part.rows / degrees.dp))  # items of a tick
        lanes = min(float(degrees.cfg), together)
        packed = max(1, int(min(self._packed(part.bucket, items), together / lanes)))
        forward = SharedForward(shape, costs.forward, degrees.ulysses, degrees.ring, wires)
        evaluation = forward.seconds(packed) / packed / lanes
        told = exchange_seconds(shape, degrees.cfg, degrees.replica, wires)
        denoise = part.evaluations * evaluation + part.steps * told
        return denoise / part.rows + costs.encode + costs.decode

    def _packed(self, bucket: Bucket, items: int) -> int:
        """Items of a shape that are as many tokens as `items` of the most demanding one."""
        family, model = family_spec(self.job.model.family), self.job.model
        tokens = items * family.tokens(model, self.demanding)
        return max(1, tokens // family.tokens(model, bucket))

    def _seconds(self, bucket: Bucket) -> BucketSeconds:
        return CostModel(self.job.model, self.job.slurm.device).bucket(bucket)

    def _moves_s(self, degrees: Degrees, memory: MemoryMode) -> float:
        """Components on their way to the device and away, window by window."""
        if memory == "resident":
            return 0.0
        asked = self.job.system.batch.window
        window = _WINDOW if asked == "auto" else asked
        rows = sum(part.rows for part in self.work)
        windows = ceil(rows / degrees.dp / window)
        return (
            windows * component_bytes(self.job.model).total / (1e9 * self.job.slurm.device.h2d_gbs)
        )

    def _devices(self, degrees: Degrees, rows: int) -> int:
        """That are held: of nodes that have a row to draw, all."""
        slurm = self.job.slurm
        nodes = ceil(min(rows, degrees.dp) * degrees.replica / slurm.ranks_per_node)
        return slurm.ranks_per_node * min(slurm.nodes, nodes)


def _total(seconds: Sequence[tuple[float, int]]) -> float:
    return sum(each * count for each, count in seconds)


def makespan(rows: Sequence[tuple[float, int]], replicas: int) -> float:
    """Seconds until the last row is drawn, the longest begun first. `rows`: (seconds, how many)."""
    count = sum(number for _, number in rows)
    if count > _ROUNDS * replicas:
        return _total(rows) / replicas
    free = [0.0] * replicas
    for seconds, number in sorted(rows, reverse=True):
        for _ in range(number):
            heapq.heapreplace(free, free[0] + seconds)
    return max(free)
