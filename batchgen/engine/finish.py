"""The end of a row: check, decode, copy to the host, deliver. Runs on the finishing lane."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from batchgen.engine.contract import Sink
from batchgen.engine.devices.device import memory
from batchgen.engine.flight import RowState
from batchgen.engine.isolation import Failed, attempt
from batchgen.engine.meter import RowMeter, Setting
from batchgen.errors import NonFiniteOutput
from batchgen.families.family import DecodesRows, FamilyModel
from batchgen.records import Rendered
from batchgen.request import Request


@dataclass(frozen=True, slots=True, eq=False)
class Denoised:
    """A row that has taken its last step; `ready` is when its latents are valid (CUDA)."""

    state: RowState
    ready: torch.cuda.Event | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Broken:
    """A row that failed before it was denoised."""

    request: Request
    meter: RowMeter
    error: Exception


class Finisher:
    """Turns denoised rows into delivered ones, one at a time."""

    def __init__(
        self, family: FamilyModel, sink: Sink, device: torch.device, setting: Setting
    ) -> None:
        self.family = family
        self.sink = sink
        self.device = device
        self.setting = setting
        self.finished = 0
        self.failed = 0
        self.decode_s = 0.0
        self.deliver_s = 0.0
        self.syncs = 0
        # a stream of its own lets decoding run beside the forwards of the next ticks
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, job: Denoised | Broken) -> None:
        """Finish one row: the sink's `finished` or `failed` is called exactly once."""
        with torch.no_grad(), torch.cuda.stream(self._stream):  # None: no stream is entered
            if isinstance(job, Broken):
                self._fail(job.request, job.meter, job.error)
                return
            request, meter = job.state.request, job.state.meter
            meter.stop_waiting()
            begin = perf_counter()
            frames = attempt(lambda: self._frames(job))
            self.decode_s += perf_counter() - begin
        if isinstance(frames, Failed):
            self._fail(request, meter, frames.error)
            return
        stats = meter.stats(self.setting, memory(self.device))
        self.finished += 1
        begin = perf_counter()
        self.sink.finished(Rendered(request, frames, stats))
        self.deliver_s += perf_counter() - begin

    def _frames(self, job: Denoised) -> np.ndarray:
        """uint8 (frames, height, width, 3) on the host."""
        state, meter = job.state, job.state.meter
        begin = perf_counter()
        if job.ready is not None and self._stream is not None:
            self._stream.wait_event(job.ready)
            state.latents.record_stream(self._stream)
        finite = bool(torch.isfinite(state.latents).all())
        self.syncs += 1
        try:
            if not finite:
                raise NonFiniteOutput(
                    f"row {state.request.row_id}: latents hold NaN or infinity after "
                    f"{state.step} steps (guidance_scale {state.request.guidance_scale:g})"
                )
            pixels = self._decode(state.latents, state.request)
            if self._stream is not None:
                self._stream.synchronize()
                self.syncs += 1
        finally:
            meter.decode += perf_counter() - begin
        begin = perf_counter()
        frames = pixels.cpu().numpy()
        meter.d2h += perf_counter() - begin
        return frames

    def _decode(self, latents: Tensor, request: Request) -> Tensor:
        if isinstance(self.family, DecodesRows):
            return self.family.decode_row(latents, request)
        return self.family.decode(latents, request.bucket)

    def _fail(self, request: Request, meter: RowMeter, error: Exception) -> None:
        stats = meter.stats(self.setting, memory(self.device))
        self.failed += 1
        begin = perf_counter()
        self.sink.failed(request, error, stats)
        self.deliver_s += perf_counter() - begin
