"""The end of a row: check, decode, copy to the host, deliver. Runs on the finishing lane."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile
from time import perf_counter
from typing import NoReturn, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from batchgen.engine.contract import Sink
from batchgen.engine.devices.device import let_go, memory
from batchgen.engine.isolation import Failed, attempt, is_short
from batchgen.engine.ladder import Ladder
from batchgen.engine.packs import DecodeSizes
from batchgen.engine.rows.flight import RowState, decoded_row
from batchgen.engine.rows.meter import RowMeter, Setting
from batchgen.errors import NonFiniteOutput
from batchgen.failpoints import failpoint
from batchgen.families.family import DecodesPacks, FamilyModel
from batchgen.records import Climb, Rendered, RowStats
from batchgen.request import Bucket, Request


@dataclass(frozen=True, slots=True, eq=False)
class Denoised:
    """A row that has taken its last step; `ready` is when its latents are valid (CUDA), or its
    `frames`, where it is decoded already."""

    state: RowState
    ready: torch.cuda.Event | None = None
    frames: Tensor | None = None  # uint8 (frames, height, width, 3) on the device

    @property
    def bucket(self) -> Bucket:
        return self.state.request.bucket


@dataclass(frozen=True, slots=True, eq=False)
class Broken:
    """A row that failed before it was denoised."""

    request: Request
    meter: RowMeter
    error: Exception


class Decodes(Protocol):
    """What decodes: a replica."""

    @property
    def family(self) -> FamilyModel: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def decodes(self) -> DecodeSizes: ...
    @property
    def ladder(self) -> Ladder: ...


class Finisher:
    """Turns denoised rows into delivered ones, one at a time or, where that is faster and nobody
    asked for every bit, some of a bucket together."""

    def __init__(self, replica: Decodes, sink: Sink, setting: Setting) -> None:
        self.family, self.device = replica.family, replica.device
        self.sizes, self.ladder = replica.decodes, replica.ladder
        self.postponed = deque[Denoised]()  # found no room, and there is a rung that makes some
        self.sink = sink
        self.setting = setting
        packs = setting.determinism != "strict" and isinstance(self.family, DecodesPacks)
        self.packs = cast(DecodesPacks, self.family) if packs else None
        self.finished = 0
        self.failed = 0
        self.decode_s = 0.0
        self.deliver_s = 0.0
        self.syncs = 0
        # a stream of its own lets decoding run beside the forwards of the next ticks
        cuda = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if cuda else None

    def together(self, waiting: Sequence[Denoised | Broken]) -> int:
        """How many of the rows that wait are finished at once, from the first on."""
        first = waiting[0]
        if isinstance(first, Broken) or self.packs is None:
            return 1
        if first.state.request.undecoded or first.frames is not None:
            return 1
        mates = takewhile(lambda job: _to_decode(job) == first.bucket, waiting)
        return len([*islice(mates, self.sizes.size(first.bucket))])

    def __call__(self, jobs: Sequence[Denoised | Broken]) -> None:
        """Finish what is `together`, in its order: the sink's `finished` or `failed` is called
        exactly once for each row, but for one that is `postponed`."""
        rows = deque[Denoised]()
        for job in jobs:
            if isinstance(job, Broken):
                self._fail(job.request, job.meter, job.error)
            else:
                rows.append(job)
        for row in rows:
            row.state.meter.stop_waiting()
        begin = perf_counter()
        with torch.no_grad(), torch.cuda.stream(self._stream):  # None: no stream is entered
            self._await(rows)
            decoded = deque(self._decoded_or_failed([*rows]) if rows else ())
        self.decode_s += perf_counter() - begin
        while rows:
            row, found = rows.popleft(), decoded.popleft()
            if is_short(found) and self.ladder.left == "model":
                row.state.meter.waiting_since = perf_counter()
                self.postponed.append(row)
            else:
                self._deliver(row.state, found)

    def _await(self, rows: Iterable[Denoised]) -> None:
        """What follows on the stream finds their latents."""
        for row in rows:
            if row.ready is not None and self._stream is not None:
                self._stream.wait_event(row.ready)
                (row.state.latents if row.frames is None else row.frames).record_stream(
                    self._stream
                )

    # ------------------------------------------------------------------------------------- decode
    def _decoded_or_failed(self, rows: Sequence[Denoised]) -> list[Tensor | Failed]:
        """What each row comes to, or has come to already. One that makes a decode raise fails
        alone, since the others are decoded again one by one, or by halves where memory is short.
        """
        if (frames := rows[0].frames) is not None:
            self.decode_s += rows[0].state.meter.decode
            return [frames]
        found = attempt(lambda: self._decoded(rows))
        if is_short(found):
            let_go(self.device)
            self.ladder.reach(Climb("free", "decode"))
            found = attempt(lambda: self._decoded(rows))
        if not isinstance(found, Failed):
            return found
        if len(rows) == 1:
            return [found]
        each = len(rows) // 2 if is_short(found) else 1
        if is_short(found):
            fitting = self.sizes.shrink(rows[0].bucket, len(rows))
            self.ladder.reach(Climb("smaller", "decode", str(rows[0].bucket), fitting))
        parts = (rows[at : at + each] for at in range(0, len(rows), each))
        return [one for part in parts for one in self._decoded_or_failed(part)]

    def _decoded(self, rows: Sequence[Denoised]) -> list[Tensor | Failed]:
        """Their frames, on the device; those that are not finite have failed."""
        failpoint("memory.decode")
        begin = perf_counter()
        try:
            finite = self._finite([row.state for row in rows])
            frames = iter(
                self._frames([row for row, fine in zip(rows, finite, strict=True) if fine])
            )
            return [
                next(frames) if fine else attempt(partial(_refuse, row.state))
                for row, fine in zip(rows, finite, strict=True)
            ]
        finally:
            share = (perf_counter() - begin) / len(rows)
            for row in rows:
                row.state.meter.decode += share

    def _finite(self, states: Sequence[RowState]) -> list[bool]:
        checks = [torch.isfinite(state.latents).all() for state in states]
        self.syncs += 1
        return [bool(fine) for fine in torch.stack(checks).tolist()]

    def _frames(self, rows: Sequence[Denoised]) -> list[Tensor]:
        """uint8 (frames, height, width, 3) of each of some rows of a bucket; of a row that is not
        decoded its latents."""
        if not rows:
            return []
        if rows[0].state.request.undecoded:
            return [row.state.latents for row in rows]
        bucket = rows[0].bucket
        begin = perf_counter()
        if self.packs is not None:
            frames = self.packs.decode_pack([row.state.latents for row in rows], bucket)
        else:
            states = [row.state for row in rows]
            frames = [decoded_row(self.family, s.latents, s.request) for s in states]
        if self._stream is not None:
            self._stream.synchronize()
            self.syncs += 1
        self.sizes.observe(bucket, len(rows), perf_counter() - begin)
        return frames

    # ------------------------------------------------------------------------------------ deliver
    def _deliver(self, state: RowState, decoded: Tensor | Failed) -> None:
        request, meter = state.request, state.meter
        frames = (
            decoded if isinstance(decoded, Failed) else attempt(lambda: self._host(decoded, meter))
        )
        if isinstance(frames, Failed):
            self._fail(request, meter, self.ladder.told(frames, "decode").error)
            return
        stats = self._stats(meter)
        self.finished += 1
        begin = perf_counter()
        self.sink.finished(Rendered(request, frames, stats))
        self.deliver_s += perf_counter() - begin

    def _host(self, frames: Tensor, meter: RowMeter) -> np.ndarray:
        begin = perf_counter()
        plain = frames.view(torch.uint16) if frames.dtype == torch.bfloat16 else frames
        copied = plain.cpu().numpy()
        seconds = perf_counter() - begin
        meter.d2h += seconds
        self.decode_s += seconds
        return copied

    def _fail(self, request: Request, meter: RowMeter, error: Exception) -> None:
        stats = self._stats(meter)
        self.failed += 1
        begin = perf_counter()
        self.sink.failed(request, error, stats)
        self.deliver_s += perf_counter() - begin

    def _stats(self, meter: RowMeter) -> RowStats:
        return meter.stats(self.setting, memory(self.device), self.ladder.rung or "")


def _to_decode(job: Denoised | Broken) -> Bucket | None:
    """The shape of a row that is still to be decoded."""
    if isinstance(job, Broken) or job.frames is not None:
        return None
    return job.bucket


def _refuse(state: RowState) -> NoReturn:
    raise NonFiniteOutput(
        f"row {state.request.row_id}: latents hold NaN or infinity after "
        f"{state.step} steps (guidance_scale {state.request.guidance_scale:g})"
    )
