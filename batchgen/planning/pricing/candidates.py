"""Every layout that a job may have, with its memory and its price for the rows to be drawn."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil

from batchgen.config.degrees import Degrees
from batchgen.config.schema import JobConfig
from batchgen.config.stages import stages_of
from batchgen.families.family import BYTES, family_spec
from batchgen.families.kept import AUTO_ROWS, RowBytes, TickRoom, forward_tokens
from batchgen.families.streaming import (
    STREAMING,
    TEXTS_ABREAST,
    Places,
    places_of,
    read_places,
    weighty,
)
from batchgen.planning.pricing.cost import (
    BucketSeconds,
    cost_of,
    start_up_seconds,
    tiles_of_ranks,
)
from batchgen.planning.pricing.memory import (
    fits,
    most_demanding,
    need_of,
    on_cpu,
    precision_of,
    residencies,
    row_tables,
    weights_of,
)
from batchgen.planning.pricing.timemodel import (
    SharedForward,
    exchange_seconds,
    pieces_seconds,
    shape_of,
    streamed_seconds,
    wires_of,
)
from batchgen.planning.pricing.work import Work
from batchgen.records import MemoryMode
from batchgen.request import Bucket

_WINDOW = 64  # rows that pass from one component to the next together, one component at a time
_ROUNDS = 64  # rows of a replica; of more the tail counts for nothing


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layout with its price."""

    degrees: Degrees
    memory: MemoryMode
    resident_blocks: int  # of a transformer, that do not stream in mode `stream`
    places: str  # as in `Layout`
    items: int  # of the most demanding shape in one forward of a rank
    kept_bytes: int  # of the rows in flight of such forwards, between two steps
    most_kept: int  # of as many rows as an engine may ever have in flight
    peak_bytes: int  # of the rank that takes most, the leader of a replica
    fits: bool
    samples_per_hour: float  # of a device
    last_row_s: float  # until the last row is there, start-up counted
    speed: float  # of a replica, against one rank of it with all resident
    slower: float  # times the seconds of a row with all resident


def all_candidates(
    job: JobConfig, work: Sequence[Work], degrees: Sequence[Degrees]
) -> list[Candidate]:
    """Degrees x residency x items of a forward: the degrees in their order, then what needs the
    most memory, fewest items first."""
    demanding = most_demanding(job, [part.bucket for part in work])
    pricing = _Pricing(job, work, demanding)
    asked = job.system.batch.max_rows_in_flight
    most = max(part.most_branches for part in work) * (AUTO_ROWS if asked == "auto" else asked)
    candidates = [
        pricing.candidate(each, memory, items)
        for each in degrees
        for memory in residencies(job)
        for items in _items(job, demanding, most)
    ]
    if job.system.memory.mode != "auto":
        return candidates
    return [c for c in candidates if c.memory not in STREAMING or _streams(job, c)]


def adapter_bytes(job: JobConfig, work: Sequence[Work]) -> int:
    """Of the plan's LoRA files, on a rank."""
    return max((part.adapted for part in work), default=0) * BYTES[precision_of(job)]


def _streams(job: JobConfig, candidate: Candidate) -> bool:
    """Whether any block does: with all of them there it is `model`."""
    places = places_of(job.model, candidate.memory, read_places(candidate.places))
    layers = family_spec(job.model.family).layers(job.model)
    streaming = [
        part for part in weighty(job.model) if places[part.name] in STREAMING and part.blocks
    ]
    return any(not part.stacks or candidate.resident_blocks < layers for part in streaming)


def _items(job: JobConfig, demanding: Bucket, most: int) -> Iterator[int]:
    """Items of a forward that are worth a price: powers of two up to its most tokens, and up to the
    `most` items that rows in flight have."""
    budget = forward_tokens(job.system.batch.token_budget, on_cpu=False)
    tokens, items = family_spec(job.model.family).tokens(job.model, demanding), 1
    yield items
    while not on_cpu(job) and 2 * items * tokens <= budget and items < most:
        items *= 2
        yield items


# ------------------------------------------------------------------------------------------- price
@dataclass(frozen=True, slots=True)
class _Copies:
    """Seconds for the blocks that are copied for a forward, of an expert and of the encoders."""

    expert: tuple[float, ...] = ()
    encoders: tuple[float, ...] = ()
    tables: float = 0.0  # for what tables of rows that join together are made of


@dataclass(frozen=True, slots=True)
class _Pricing:
    """What all candidates of a job have in common."""

    job: JobConfig
    work: Sequence[Work]
    demanding: Bucket

    def candidate(self, degrees: Degrees, memory: MemoryMode, items: int) -> Candidate:
        job = self.job
        kept, sequence = self._kept(degrees, memory, items), degrees.sequence
        shares = {"sequence": sequence, "items": items, "kept": kept}
        beside = adapter_bytes(job, self.work)
        need = need_of(job, self.demanding, memory, beside=beside, **shares)
        places = places_of(job.model, memory, read_places(need.places))
        copies = self._copies(places, need.resident_blocks)
        seconds = self._rows(degrees, items, copies)
        resident = self._rows(degrees, items)
        alone = self._rows(Degrees(degrees.dp, 1, 1, 1), items)
        last = start_up_seconds(job) + self._moves_s(degrees, places, copies)
        last += makespan(seconds, degrees.dp)
        rows = sum(count for _, count in seconds)
        return Candidate(
            degrees=degrees,
            memory=memory,
            resident_blocks=need.resident_blocks,
            places=need.places,
            items=items,
            kept_bytes=kept,
            most_kept=self._kept(degrees, memory),
            peak_bytes=need.peak_bytes,
            fits=fits(job, memory, need),
            samples_per_hour=3600 * rows / (last * self._devices(degrees, rows)),
            last_row_s=last,
            speed=_total(alone) / _total(seconds),
            slower=_total(seconds) / _total(resident),
        )

    def _copies(self, places: Places, stay: int) -> _Copies:
        """Seconds of each block that is copied for a forward; 0 if it stays."""
        weights, found = weights_of(self.job), _Copies()
        for part in weighty(self.job.model):
            if places[part.name] != "resident" and weights.row_tables(part):
                away = sum(weights.away(part)) / self._rate(places[part.name])
                found = replace(found, tables=away)
            if places[part.name] in STREAMING and part.blocks:
                streamed = weights.streamed(part)
                blocks = streamed.streamed(stay if part.stacks else 0)
                copies = tuple(size / self._rate(places[part.name]) for size in blocks)
                if part.stacks:  # experts are alike
                    found = replace(found, expert=copies)
                else:
                    found = replace(found, encoders=found.encoders + copies)
        return found

    def _kept(self, degrees: Degrees, memory: MemoryMode, items: int | None = None) -> int:
        """Bytes that the rows in flight keep, of the shape that keeps most. `items`: of the most
        demanding shape in a forward; None: as many as an engine may ever take."""
        if "denoise" not in stages_of(self.job):
            return 0
        model = replace(self.job.model, dtype=precision_of(self.job))
        each = RowBytes(model, row_tables(self.job, memory), degrees.cfg, degrees.sequence)
        turns = 0 if items or memory == "resident" else self._taking_turns()
        return max(
            max(turns, self._in_flight(part, degrees, items))
            * each.of(part.bucket, part.most_branches, part.longest, part.caches)
            for part in self.work
        )

    def _in_flight(self, part: Work, degrees: Degrees, items: int | None = None) -> int:
        """Rows of a shape at a time, which join together."""
        family, batch = family_spec(self.job.model.family), self.job.system.batch
        if items is None:
            tokens = forward_tokens(batch.token_budget, on_cpu=on_cpu(self.job))
        else:
            tokens = items * family.tokens(self.job.model, self.demanding)
        row = part.branches * family.tokens(self.job.model, part.bucket)
        return TickRoom(batch.max_rows_in_flight, tokens * degrees.cfg).alike(row)

    def _taking_turns(self) -> int:
        """Rows that are in flight as long as each of two experts draws them: a window."""
        experts = [part for part in weighty(self.job.model) if part.stacks]
        return self._window if len(experts) > 1 else 0

    @property
    def _window(self) -> int:
        asked = self.job.system.batch.window
        return _WINDOW if asked == "auto" else asked

    def _rows(
        self, degrees: Degrees, items: int, copies: _Copies | None = None
    ) -> list[tuple[float, int]]:
        """(seconds that a replica is at work on a row, rows) of each shape."""
        copies = copies or _Copies()
        return [(self._row_s(part, degrees, items, copies), part.rows) for part in self.work]

    def _row_s(self, part: Work, degrees: Degrees, items: int, copies: _Copies) -> float:
        """The leader encodes alone, and decodes alone where no tiles are divided; the cfg ranks
        share the items that are there. Each forward copies its blocks once, however many items it
        has, and so do the texts that are encoded side by side."""
        job, costs = self.job, self._seconds(part.bucket, degrees.replica)
        shape = shape_of(job.model, part.bucket, precision_of(job))
        wires = wires_of(job.slurm.device, job.slurm.ranks_per_node)
        joining = min(self._in_flight(part, degrees, items), ceil(part.rows / degrees.dp))
        together = max(1.0, part.branches * joining)  # items of a tick
        lanes = min(float(degrees.cfg), together)
        packed = max(1, int(min(self._packed(part.bucket, items), together / lanes)))
        shared = SharedForward(shape, costs.forward, degrees.ulysses, degrees.ring, wires)
        forward = self._streamed(shared.seconds(packed), copies.expert)
        evaluation = forward / packed / lanes
        told = exchange_seconds(shape, degrees.cfg, degrees.replica, wires)
        denoise = part.evaluations * evaluation + part.steps * told
        texts = min(TEXTS_ABREAST, ceil(part.rows / degrees.dp))
        encode = self._streamed(texts * costs.encode, copies.encoders) / texts
        images = costs.images * part.illustrated / part.rows
        tiles = pieces_seconds(self._passed(part.bucket), degrees.replica, wires)
        denoise = denoise / part.rows + copies.tables / joining
        return denoise + encode + images + costs.decode + tiles

    def _streamed(self, compute: float, copies: Sequence[float]) -> float:
        """Seconds of a forward whose blocks come to it. A CPU copies before it computes."""
        if not copies:
            return compute
        ahead = 0 if on_cpu(self.job) else self.job.system.memory.prefetch
        return streamed_seconds(compute, copies, 1.0, ahead)

    def _rate(self, place: MemoryMode) -> float:
        """Bytes per second of what comes from there to the device."""
        device = self.job.slurm.device
        from_disk = min(device.disk_gbs, device.h2d_gbs)
        return 1e9 * (from_disk if place == "disk" else device.h2d_gbs)

    def _packed(self, bucket: Bucket, items: int) -> int:
        """Items of a shape that are as many tokens as `items` of the most demanding one."""
        family, model = family_spec(self.job.model.family), self.job.model
        tokens = items * family.tokens(model, self.demanding)
        return max(1, tokens // family.tokens(model, bucket))

    def _seconds(self, bucket: Bucket, ranks: int) -> BucketSeconds:
        return cost_of(self.job, ranks=ranks).bucket(bucket)

    def _passed(self, bucket: Bucket) -> int:
        """Values of the frames that ranks decode together; 0: one decodes them all."""
        pixels = bucket.width * bucket.height * bucket.num_frames
        return 3 * pixels if tiles_of_ranks(self.job) else 0

    def _moves_s(self, degrees: Degrees, places: Places, copies: _Copies) -> float:
        """Components on their way to the device and away, window by window, without the blocks that
        stream; and what tables of timesteps are made of, for each shape."""
        weights = weights_of(self.job)
        moving = [p for p in weighty(self.job.model) if places[p.name] != "resident"]
        each = [weights.held(p, "model") / self._rate(places[p.name]) for p in moving]
        shared = [p for p in moving if not weights.row_tables(p)]
        tables = sum(sum(weights.away(p)) / self._rate(places[p.name]) for p in shared)
        experts = sum(bool(part.stacks) for part in moving)
        streamed = experts * sum(copies.expert) + sum(copies.encoders)
        rows = sum(part.rows for part in self.work)
        windows = ceil(rows / degrees.dp / self._window)
        return windows * (sum(each) - streamed) + len(self.work) * tables

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
