"""The director of a replica: who joins, what shares a forward, what is moved and decoded.

Texts are encoded window by window. With all components resident the next window is encoded as soon
as the last row of this one has joined, so rows in flight are refilled without a pause; with one
component at a time a window is encoded, denoised and decoded to its end before the next begins.
Where a model has two experts and one fits, all rows of a window are drawn by the first up to its
last step, then the experts are swapped, once.

Only the leader of a replica has a director. It does nothing itself but talk to source, sink and
decoder: its script of orders is what the ranks do, and it reads the flight to see what came of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, takewhile
from time import perf_counter

import torch
from torch import Tensor

from batchgen.caches.blocks import PROBE, WHOLE, Blocks
from batchgen.config.schema import Kernel
from batchgen.engine.contract import Sink, Source
from batchgen.engine.isolation import Failed, attempt
from batchgen.engine.ranks.orders import Decode, Join, Orders, Pack, Slot
from batchgen.engine.ranks.team import Lost, uneven
from batchgen.engine.replica import Replica
from batchgen.engine.rows.finish import Broken, Denoised
from batchgen.engine.rows.flight import Flight, Outcome, RowState
from batchgen.engine.rows.lane import Lane
from batchgen.engine.rows.look import RowLook
from batchgen.engine.rows.room import Room
from batchgen.engine.rows.snapshot import pack
from batchgen.errors import RowError
from batchgen.families.family import Stage

AUTO_WINDOW = {True: 8, False: 64}  # small where all are resident: replicas share


class Director:
    """The script of one render."""

    def __init__(
        self,
        replica: Replica,
        flight: Flight,
        lane: Lane[Denoised | Broken],
        source: Source,
        sink: Sink,
        stop: Callable[[], bool],
        postponed: deque[Denoised],
    ) -> None:
        """`postponed`: rows that come back from the lane for want of memory."""
        self.replica = replica
        self.flight = flight
        self.lane = lane
        self.source = source
        self.sink = sink
        self.stop = stop
        self.postponed = postponed
        # wait for the window's end in mode `model`, or for all ranks to decode them
        self.denoised: deque[Denoised] = deque()
        self.decoded: Tensor | None = None  # what the last orders have decoded
        self.expert: str | None = None  # the one on the device, if it is an expert's turn
        self.exhausted = False
        self.full = False  # rows in flight keep as much as they may
        self.stopping = False  # `stop` has said so
        self.uneven: dict[int, str] = {}  # rows that some ranks have lost and others not, and why
        self.taken = 0  # rows so far
        self.windows = 0
        self.swaps = 0
        self.abandoned = 0
        self.saved = 0

    @property
    def resident(self) -> bool:
        return self.replica.residency.plan.resident

    def script(self) -> Iterator[Orders]:
        """Orders until the source is empty or `stop` is true. What came of each has been told to
        `note` before the next is asked for."""
        while not self._stops():
            self.lane.check()
            self._take_back()
            if self.denoised and self.resident:  # who has been told to stop may not wait for all
                yield from self._decode()
                continue
            if self._wants_window():
                yield from self._open_window()
            yield from self._admit()
            yield from self._drop_uneven()
            if self.flight.rows:
                yield from self._tick()
            elif self.exhausted and not self.flight.waiting:
                break
        else:
            self.abandoned = len(self.flight.rows) + len(self.flight.waiting)
            self._save()
        yield from self._decode_window()
        self.lane.drain()
        self._take_back()
        yield from self._decode_window()
        yield Orders(over=True)

    def note(self, outcome: Outcome, others: Sequence[Lost] = ()) -> None:
        """What came of the orders here, and which rows each of the other ranks has lost."""
        if others:
            self.uneven |= uneven([outcome.lost, *others])
        for request, meter, error in outcome.failed:
            self.lane.put(Broken(request, meter, error))
        self.decoded, outcome.decoded = outcome.decoded, None  # held once: they go to the lane
        self._leave(outcome.done)

    def _stops(self) -> bool:
        self.stopping = self.stopping or self.stop()
        return self.stopping

    def save_denoised(self) -> None:
        """Those that wait for their decode, when the ranks cannot go on together: the leader has
        all of them."""
        self._save_rows([job.state for job in self.denoised])

    def _save(self) -> None:
        """Before anything slow: whoever stops a render may not wait for its end."""
        self._save_rows([*self.flight.rows.values(), *(job.state for job in self.denoised)])

    def _save_rows(self, rows: Sequence[RowState]) -> None:
        for state in rows:
            if state.step > 0:
                kept = {} if state.cache is None else state.cache.saved()
                snapshot = pack(state.step, state.latents, state.history, kept, state.meter.busy)
                self.sink.saved(state.request, snapshot)
                self.saved += 1

    # ----------------------------------------------------------------------------------- windows
    def _wants_window(self) -> bool:
        if self.exhausted or self.flight.waiting:
            return False
        return self.resident or not self.flight.rows

    def _open_window(self) -> Iterator[Orders]:
        """Take and encode the next rows, when the window before is decoded."""
        yield from self._decode_window()
        if self.stopping:
            return
        size = self.replica.system.batch.window
        room = AUTO_WINDOW[self.resident] if size == "auto" else size
        requests = self.source.take(room)
        if not requests:
            self.exhausted = True
            return
        self.windows += 1
        window = tuple(enumerate(requests, self.taken))
        self.taken += len(requests)
        use: tuple[str, ...] = ()
        if self.replica.needs_encoder(requests):
            use = self._use("encode")
        yield Orders(use=use, encode=window)
        yield Orders(use=self._use("denoise", self.replica.residency.plan.experts[0]))

    def _use(self, stage: Stage, expert: str | None = None) -> tuple[str, ...]:
        """The components that orders name for a stage, and for a step the expert."""
        self.expert = expert
        if self.resident:
            return ()
        return (expert,) if expert else self.replica.residency.plan.components(stage)

    def _decode_window(self) -> Iterator[Orders]:
        """In mode `model`: bring the autoencoder in once and finish what the window denoised. It
        may take long: told to stop meanwhile, save what is not on its way to the decoder."""
        if not self.denoised:
            return
        yield Orders(use=self._use("decode"))
        while self.denoised:
            if not self.stopping and self._stops():
                self._save()
            if self._divides(self.denoised[0]):
                yield from self._decode()
                continue
            together = self.replica.decodes.size(self.denoised[0].bucket)
            alone = takewhile(lambda job: not self._divides(job), self.denoised)
            count = len([*islice(alone, together)])
            self.lane.put(*(self.denoised.popleft() for _ in range(count)))
        self.lane.drain()

    def _divides(self, job: Denoised) -> bool:
        """Whether all ranks decode it."""
        divided = self.replica.divided
        return divided is not None and divided.takes(job.state.request)

    def _decode(self) -> Iterator[Orders]:
        """The first that waits, by all ranks, and nothing beside it: memory is counted for one
        decode. What is not finite is left to the lane, which says so."""
        self.lane.drain()
        job = self.denoised[0]
        state, meter = job.state, job.state.meter
        self.flight.forwards.syncs += 1
        if torch.isfinite(state.latents).all():
            meter.stop_waiting()
            begin = perf_counter()
            yield Orders(decode=Decode(state.request, state.latents))
            meter.decode += perf_counter() - begin
            meter.waiting_since = perf_counter()
            frames, self.decoded = self.decoded, None
            job = Denoised(state, self._event(), frames)
        self.denoised.popleft()
        self.lane.put(job)

    def _take_back(self) -> None:
        """Rows that were decoded beside forwards, and found no room, wait for the window's end."""
        if self.postponed:
            self.replica.ladder.climb("model", "decode")  # waits for the lane
            while self.postponed:
                self.denoised.append(self.postponed.popleft())

    def _drop_uneven(self) -> Iterator[Orders]:
        """What one rank has lost, no rank goes on with."""
        if not self.uneven:
            return
        lost, self.uneven = self.uneven, {}
        for number, why in lost.items():
            if row := self.flight.rows.get(number):
                self.lane.put(Broken(row.request, row.meter, RowError(why)))
        yield Orders(drop=tuple(lost))

    # ----------------------------------------------------------------------------------- joining
    def _admit(self) -> Iterator[Orders]:
        """Let waiting rows join while there is room, mates of a row in flight first."""
        left, self.full = dict(self.flight.waiting), False
        if not left:
            return
        room, drop, joins = self._room(self._moving()), list[int](), list[Join]()
        while left:
            number = room.next(left)
            row, meter = left[number]
            branches = len(self.replica.family.texts(row.request))
            if not room.takes(row.request, branches):
                self.full = not room.tick.rows
                break
            del left[number]
            self.sink.started(row.request)
            found = None if row.error else attempt(partial(self.source.restore, row.request))
            if isinstance(found, Failed):
                meter.stop_waiting()
                self.lane.put(Broken(row.request, meter, found.error))
                drop.append(number)
                continue
            joins.append(Join(number, found))
            if row.error is None:
                room.add(row.request, branches)
        if drop or joins:
            yield Orders(drop=tuple(drop), joins=tuple(joins))

    def _room(self, moving: Mapping[int, RowState]) -> Room:
        """Beside the rows in flight, of which these move."""
        room = Room(self.replica)
        for number, row in self.flight.rows.items():
            joined = room.add if number in moving else room.rest
            joined(row.request, len(row.branches))
        return room

    # --------------------------------------------------------------------------------------- tick
    def _tick(self) -> Iterator[Orders]:
        """One step of the rows whose turn it is. When nobody needs the expert on the device any
        more, and nobody is left to join or can, the other takes its place."""
        moving = self._moving()
        if not moving and (self.full or not self.flight.waiting):
            needed = {self._expert(row) for row in self.flight.rows.values()}
            first = next(name for name in self.replica.residency.plan.experts if name in needed)
            self.swaps += self.expert is not None
            yield Orders(use=self._use("denoise", first))
            moving = self._moving()
        if probes := self._probes(moving):
            yield Orders(probes=probes)
            yield from self._drop_uneven()
        if moving := {number: row for number, row in moving.items() if number in self.flight.rows}:
            yield self._move(moving)

    def _probes(self, rows: dict[int, RowState]) -> tuple[Pack, ...]:
        """Of the rows that decide behind their first block, and have not been there yet."""
        probed = {
            (number, branch): PROBE
            for number, row in rows.items()
            if row.cache is not None and row.cache.probing
            for branch in range(len(row.branches))
        }
        return tuple(self._packs(probed))

    def _move(self, rows: dict[int, RowState]) -> Orders:
        """One step of these rows; first of those alone that need no blocks for it, so that packs
        stay full."""
        plans = {number: self._plan(row) for number, row in rows.items()}
        resting = [
            number
            for number, plan in plans.items()
            if all(blocks is None or blocks.empty for blocks in plan)
        ]
        forwards, reuses = dict[Slot, Blocks](), list[Slot]()
        for number in resting or rows:
            for branch, blocks in enumerate(plans[number]):
                if blocks is None:
                    reuses.append((number, branch))
                else:
                    forwards[number, branch] = blocks
        return Orders(packs=tuple(self._packs(forwards)), reuses=tuple(reuses))

    def _plan(self, row: RowState) -> tuple[Blocks | None, ...]:
        """What the forward of each branch of the row does at its step; None: it takes none."""
        if row.cache is None:
            return (WHOLE,) * len(row.branches)
        begin = perf_counter()
        with self.flight.clock.on("denoise"):
            found = row.cache.plan(row.step, partial(RowLook, self.replica, row))
        row.meter.ahead += perf_counter() - begin
        return found

    def _moving(self) -> dict[int, RowState]:
        """The rows that the next tick moves, in order of joining: those whose expert is on the
        device, as many as may share a tick."""
        moving: dict[int, RowState] = {}
        room = Room(self.replica)
        for number, row in self.flight.rows.items():
            request, branches = row.request, len(row.branches)
            drawable = self.resident or self._expert(row) == self.expert
            if drawable and room.takes(request, branches):
                room.add(request, branches)
                moving[number] = row
        return moving

    def _expert(self, row: RowState) -> str:
        return self.replica.family.expert(row.request, row.timestep)

    def _packs(self, forwards: Mapping[Slot, Blocks]) -> Iterator[Pack]:
        """(row, branch) items that share a forward."""
        groups: dict[tuple[Hashable, str, Blocks, Kernel], list[Slot]] = {}
        for slot, blocks in forwards.items():
            row = self.flight.rows[slot[0]]
            kernel = self.replica.attention.plan.at(row.step, len(row.schedule))
            key = self.replica.family.group(row.request), self._expert(row), blocks, kernel
            groups.setdefault(key, []).append(slot)
        for (_, _, blocks, kernel), members in groups.items():
            bucket = self.flight.rows[members[0][0]].request.bucket
            for chunk in self.replica.packer.chunks(bucket, members):
                yield Pack(tuple(chunk), blocks, kernel)

    def _leave(self, states: Sequence[RowState]) -> None:
        if not states:
            return
        ready = self._event()
        for state in states:
            state.meter.waiting_since = perf_counter()
        jobs = [Denoised(state, ready) for state in states]
        alone = [job for job in jobs if self.resident and not self._divides(job)]
        self.denoised.extend(job for job in jobs if job not in alone)
        if alone:
            self.lane.put(*alone)

    def _event(self) -> torch.cuda.Event | None:
        """When all is done that the device has been told so far."""
        if self.replica.device.type != "cuda":
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.replica.device))
        return event
