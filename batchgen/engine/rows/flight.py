"""Rows in flight: rows at different steps, guidances and solvers share forwards, tick by tick.

Every rank of a replica keeps the same flight and applies the same orders. A tick runs one forward
per pack, combines each row's branches as its family does, and moves each row one solver step.
Nothing of a row depends on who shares its forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from torch import Tensor

from batchgen.caches.blocks import Blocks
from batchgen.engine.clock import Clock
from batchgen.engine.encoding.prompts import EncodedRow
from batchgen.engine.isolation import Failed, attempt
from batchgen.engine.ranks.orders import Decode, Join, Orders, Pack, Slot
from batchgen.engine.ranks.team import Lost
from batchgen.engine.replica import Replica, RowAhead
from batchgen.engine.reuse.blocks import NOTHING, Kept
from batchgen.engine.reuse.recall import Memo
from batchgen.engine.reuse.rowcache import Probe, RowCache
from batchgen.engine.rows.caching import under_cache
from batchgen.engine.rows.forwards import Drawn, Forwards, Work
from batchgen.engine.rows.meter import RowMeter
from batchgen.engine.rows.snapshot import fits, unpack
from batchgen.failpoints import failpoint
from batchgen.families.family import Condition, DecodesRows, DrawsFromImages, FamilyModel, Item
from batchgen.numerics.noise import SeededNoise
from batchgen.numerics.solver import (
    History,
    Leap,
    Schedule,
    StepCoefs,
    leap,
    noise_of,
    step,
)
from batchgen.request import Request


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """What belongs to one branch of a row (with or without the prompt) between two ticks."""

    condition: Condition
    memo: Memo  # of its text, for as long as the row is in flight


@dataclass(slots=True, eq=False)
class RowState:
    """All that is known of a row between two ticks."""

    request: Request
    schedule: Schedule
    branches: tuple[Branch, ...]  # with the prompt, then without it
    latents: Tensor  # (1, ...) in the family's `state_dtype`
    meter: RowMeter
    history: History = field(default_factory=History)
    step: int = 0
    cache: RowCache | None = None
    noise: SeededNoise | None = None  # that its solver draws, if it does
    shared: Condition = ()  # what its images come to
    tables: tuple[Memo, ...] = ()  # in place of weights

    @property
    def timestep(self) -> float:
        return float(self.schedule.timesteps[self.step])

    @property
    def done(self) -> bool:
        return self.step == len(self.schedule)

    def let_go(self) -> None:
        """Of all that further steps alone would need: a row may wait long for its decode, and many
        with it."""
        self.branches, self.tables, self.cache, self.history = (), (), None, History()

    def item(self, branch: int) -> Item:
        """Its next evaluation."""
        condition = self.branches[branch].condition
        return Item(self.request, self.latents, self.timestep, condition, self.shared)


@dataclass(slots=True, eq=False)
class Outcome:
    """Rows that left as orders were applied."""

    done: list[RowState] = field(default_factory=list)
    failed: list[tuple[Request, RowMeter, Exception]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)  # of those that failed, in that order
    decoded: Tensor | None = None  # frames; of a follower its own tiles alone

    def fail(self, number: int, request: Request, meter: RowMeter, error: Exception) -> None:
        self.failed.append((request, meter, error))
        self.numbers.append(number)

    @property
    def lost(self) -> Lost:
        """What the ranks of a replica tell each other of it."""
        whys = (f"{type(error).__name__}: {error}" for _, _, error in self.failed)
        return tuple(zip(self.numbers, whys, strict=True))


def decoded_row(family: FamilyModel, latents: Tensor, request: Request) -> Tensor:
    """The frames of a row by itself, uint8 (frames, height, width, 3) on the device."""
    if isinstance(family, DecodesRows):
        return family.decode_row(latents, request)
    return family.decode(latents, request.bucket)


class Flight:
    """The rows in flight of one replica, on one of its ranks."""

    def __init__(self, replica: Replica, clock: Clock, moved: Callable[[], object]) -> None:
        self.replica = replica
        self.family = replica.family
        self.forwards = Forwards(replica)
        self.clock = clock
        self.moved = moved
        self.waiting: dict[int, tuple[EncodedRow, RowMeter]] = {}  # encoded, not joined yet
        self.rows: dict[int, RowState] = {}  # in order of joining
        self.ticks = 0
        self.decoding = False

    def apply(self, orders: Orders) -> Outcome:
        """Do what the orders say; rows that finished or failed leave."""
        outcome, self.decoding = Outcome(), orders.decode is not None
        if orders.use:
            self._use(orders.use)
        if orders.encode:
            self._encode(orders.encode)
        for number in orders.drop:  # another rank may have lost it already
            self.waiting.pop(number, None)
            self.rows.pop(number, None)
        for join in orders.joins:
            self._join(join, outcome)
        self._tabulate([join.number for join in orders.joins], outcome)
        if orders.probes or orders.packs or orders.reuses:
            flying = [*self.rows.values()]
            with self.clock.on("denoise"):
                if orders.probes:
                    self._probe(orders.probes, outcome)
                else:
                    self._tick(orders, outcome)
            self.clock.share({row.request.row_index: row.meter.busy for row in flying})
        if orders.decode:
            outcome.decoded = self._decode(orders.decode)
        return outcome

    def leave_word(self) -> bool:
        """A rank was out of memory in what all do together: see `Ladder.leave_word`."""
        if self.decoding:
            return self.replica.ladder.leave_word("decode")
        return self.forwards.leave_word()

    def _use(self, components: tuple[str, ...]) -> None:
        """No row's seconds: they are moved for a window, however many rows that has. A follower
        lacks some; those that it has stay where no other is to be used."""
        if here := [name for name in components if name in self.family.modules]:
            residency = self.replica.residency
            stage = residency.plan.stage(here[0])
            with self.clock.on("move"):
                self.replica.ladder.require(lambda: residency.use(*here), stage)

    def _encode(self, window: Sequence[tuple[int, Request]]) -> None:
        requests = [request for _, request in window]
        meters = [RowMeter() for _ in requests]
        with self.clock.on("encode"):
            rows = self.replica.team.result(lambda: self.replica.encoded(requests, self.moved))
        self.clock.share({row.request.row_index: row.seconds for row in rows})
        for (number, _), row, meter in zip(window, rows, meters, strict=True):
            meter.note_texts(row)
            meter.waiting_since = perf_counter()
            self.waiting[number] = row, meter

    def _decode(self, order: Decode) -> Tensor:
        """Frames of a row."""
        replica, divided = self.replica, self.replica.divided
        assert divided is not None
        row_id, clock, team = order.request.row_id, self.clock, replica.team
        with clock.on("shared_decode"), team.together(lambda: f"decoding row {row_id}"):
            failpoint(f"decode.{replica.team.rank}")
            failpoint("memory.decode")
            replica.residency.ensure(*replica.residency.of("decode"))
            frames = decoded_row(divided.family, order.latents.to(replica.device), order.request)
            self.forwards.wait()
        return frames

    # ------------------------------------------------------------------------------------ joining
    def _join(self, join: Join, outcome: Outcome) -> None:
        row, meter = self.waiting.pop(join.number)
        meter.stop_waiting()
        state = (
            Failed(row.error, 0.0) if row.error else attempt(lambda: self._open(row, meter, join))
        )
        if isinstance(state, Failed):
            outcome.fail(join.number, row.request, meter, state.error)
        elif state.done:
            state.let_go()
            outcome.done.append(state)
        else:
            self.rows[join.number] = state

    def _open(self, row: EncodedRow, meter: RowMeter, join: Join) -> RowState:
        """The row before its first step, or where its snapshot left it; may raise for this row
        alone."""
        request, device = row.request, self.replica.device
        self.replica.adapters.check(request.lora)
        whole = self.family.schedule(request)
        branches = tuple(self._branch(condition) for condition in row.conditions)
        shared = tuple(tensor.to(device) for tensor in row.shared)
        meter.steps_total = len(whole) * len(branches)
        latents = self.family.initial_latents(request)
        schedule, cache = under_cache(self.replica, request, whole, len(branches))
        if join.snapshot is None or not fits(join.snapshot, latents):
            noise = noise_of(schedule, latents, request.seed)
            latents = latents.to(device)
            own = History(), 0, cache, noise, shared
            return RowState(request, schedule, branches, latents, meter, *own)
        step = meter.restored = join.snapshot.step
        latents, history, kept = unpack(join.snapshot, device)
        latents = latents.to(self.family.state_dtype)
        if cache is not None:
            cache.restore(step, kept)
            meter.cache_restarts = cache.restarts
        noise = noise_of(schedule, latents, request.seed, step)
        own = history, step, cache, noise, shared
        return RowState(request, schedule, branches, latents, meter, *own)

    def _tabulate(self, numbers: Sequence[int], outcome: Outcome) -> None:
        """Make what stands in for weights that are not on the device, once for all rows that have
        just joined."""
        rows = {number: self.rows[number] for number in numbers if number in self.rows}
        made = self.replica.tabulate(
            [
                RowAhead(
                    row.request,
                    row.latents.dtype,
                    row.schedule.timesteps[row.step :].tolist(),
                    [branch.condition for branch in row.branches],
                )
                for row in rows.values()
            ]
        )
        for (number, row), tables in zip(rows.items(), made, strict=True):
            if isinstance(tables, Failed):
                outcome.fail(number, row.request, row.meter, tables.error)
                del self.rows[number]
            else:
                row.tables = tables

    def _branch(self, condition: Condition) -> Branch:
        here = tuple(tensor.to(self.replica.device) for tensor in condition)
        return Branch(here, self.replica.recall.text(here[0]))

    # --------------------------------------------------------------------------------------- tick
    def _tick(self, orders: Orders, outcome: Outcome) -> None:
        """Move every row that the orders name one step."""
        begin = perf_counter()
        moving = self._moving(orders)
        velocities: dict[Slot, Tensor | Failed] = {
            slot: self._reused(slot) for slot in orders.reuses
        }
        in_forwards = 0.0
        for pack in orders.packs:
            drawn, seconds = self._run(pack)
            in_forwards += seconds
            self._charge(pack, seconds)
            for slot, result in zip(pack.slots, drawn, strict=True):
                velocities[slot] = result if isinstance(result, Failed) else result.velocity
                if isinstance(result, Drawn):
                    self._note(slot, result)
        for number, row in moving.items():
            branches = [velocities[number, branch] for branch in range(len(row.branches))]
            self._advance(number, row, branches, outcome)
        total = perf_counter() - begin
        for row in moving.values():
            row.meter.note_tick((total - in_forwards) / len(moving))
        self.ticks += 1

    def _moving(self, orders: Orders) -> dict[int, RowState]:
        """In order of joining."""
        slots = [*orders.reuses, *(slot for pack in orders.packs for slot in pack.slots)]
        numbers = {number for number, _ in slots}
        return {number: row for number, row in self.rows.items() if number in numbers}

    def _reused(self, slot: Slot) -> Tensor | Failed:
        """What the branch's cache has in place of a velocity."""
        row, cache = self.rows[slot[0]], self._cache(slot[0])
        return attempt(lambda: cache.reused(row.step, slot[1], row.latents.float()))

    def _probe(self, packs: Sequence[Pack], outcome: Outcome) -> None:
        """Run the first block of some branches, and see how far each has moved."""
        lost: dict[int, Failed] = {}
        for pack in packs:
            drawn, seconds = self._run(pack)
            self._charge(pack, seconds)
            kept = [NOTHING if isinstance(result, Failed) else result.kept for result in drawn]
            begin = perf_counter()
            changes = self.forwards.changes(
                [
                    (one.added, self._cache(number).against(branch))
                    for (number, branch), one in zip(pack.slots, kept, strict=True)
                ]
            )
            each = (perf_counter() - begin) / len(pack.slots)
            for at, ((number, branch), result) in enumerate(zip(pack.slots, drawn, strict=True)):
                self.rows[number].meter.ahead += each
                velocity = None if isinstance(result, Failed) else result.velocity
                probe = Probe(kept[at], changes[at], velocity)
                self._cache(number).probes[branch] = probe
                if isinstance(result, Failed):
                    lost[number] = result
        for number, failed in lost.items():
            row = self.rows.pop(number)
            outcome.fail(number, row.request, row.meter, failed.error)

    def _cache(self, number: int) -> RowCache:
        """Of a row that has one."""
        cache = self.rows[number].cache
        assert cache is not None
        return cache

    def _note(self, slot: Slot, drawn: Drawn) -> None:
        """Let the row's cache keep of it what it wants."""
        row = self.rows[slot[0]]
        if row.cache is not None:
            velocity = drawn.velocity
            if row.cache.output:
                velocity = velocity.clone()  # a view would keep its whole pack
            row.cache.note(row.step, slot[1], row.latents.float(), velocity, drawn.kept)

    def _run(self, pack: Pack) -> tuple[Sequence[Drawn | Failed], float]:
        """What the items of a pack come to, and the seconds that took."""
        begin = perf_counter()
        homes = [self.forwards.home(*slot) for slot in pack.slots]
        given = [
            self._given(slot, pack.blocks) if self.forwards.keeps(home) else NOTHING
            for slot, home in zip(pack.slots, homes, strict=True)
        ]
        items = [self.rows[number].item(branch) for number, branch in pack.slots]
        drawn = self.forwards.run(Work(items, pack.blocks, given, homes, pack.kernel))
        return drawn, perf_counter() - begin

    def _given(self, slot: Slot, blocks: Blocks) -> Kept:
        row = self.rows[slot[0]]
        if row.cache is None:
            return NOTHING
        return row.cache.given(row.step, slot[1], row.latents.float(), blocks)

    def _charge(self, pack: Pack, seconds: float) -> None:
        """Book each item's share of a forward."""
        items, bucket = len(pack.slots), self.rows[pack.slots[0][0]].request.bucket
        share = self.replica.share(bucket, pack.blocks)
        ran = self.forwards.kernels.name((bucket, pack.kernel))
        for number, branch in pack.slots:
            row = self.rows[number]
            row.meter.note_forward(items, seconds / items, ran)
            row.meter.note_computed(branch, len(row.branches), share)

    def _advance(
        self, number: int, row: RowState, branches: list[Tensor | Failed], outcome: Outcome
    ) -> None:
        failed = next((result for result in branches if isinstance(result, Failed)), None)
        moved = failed or attempt(
            lambda: self._step(row, [v for v in branches if isinstance(v, Tensor)])
        )
        if isinstance(moved, Failed):
            outcome.fail(number, row.request, row.meter, moved.error)
        elif row.done:
            row.let_go()
            outcome.done.append(row)
        else:
            return
        del self.rows[number]

    def _step(self, row: RowState, velocities: list[Tensor]) -> None:
        """Guidance, then one solver step, or a leap over several."""
        latents, schedule = row.latents.float(), row.schedule
        coefs = schedule.leaps[row.step] if schedule.leaps else schedule.coefs[row.step]
        if isinstance(coefs, StepCoefs) or coefs.branches < len(velocities):
            velocities = [self.family.combine(row.request, row.timestep, velocities)]
        if isinstance(coefs, Leap):
            latents, row.history = leap(coefs, latents, velocities, row.history)
            row.meter.cache_bytes = max(row.meter.cache_bytes, row.history.bytes)
        else:
            latents = row.latents if coefs.diffusion else latents  # in its own precision
            draw = row.noise.draw if row.noise else None
            latents, row.history = step(coefs, latents, velocities[0], row.history, draw)
        row.latents = latents.to(self.family.state_dtype)
        row.step += 1
        if row.done and row.shared and isinstance(self.family, DrawsFromImages):
            row.latents = self.family.put_back(row.latents, row.shared)
        if row.cache is not None:
            row.meter.cache_bytes = max(row.meter.cache_bytes, row.cache.bytes)
            row.cache.stepped(row.step)
