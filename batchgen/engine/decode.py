"""The engine of rows that were drawn before: it takes their latents, and decodes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import NoReturn

import torch
from torch import nn

from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.engine.clock import Clock
from batchgen.engine.contract import Ascent, EngineReport, Sink, Source, never, unheard
from batchgen.engine.devices import device as devices
from batchgen.engine.isolation import Failed, attempt
from batchgen.engine.ladder import Ladder
from batchgen.engine.loading.weights import load_components, outlined
from batchgen.engine.memory.gauge import Gauge
from batchgen.engine.memory.plan import MemoryPlan, plan_memory
from batchgen.engine.memory.residency import Residency
from batchgen.engine.packs import DecodeSizes
from batchgen.engine.reuse.recall import Recall
from batchgen.engine.rows.finish import Broken, Denoised, Finisher
from batchgen.engine.rows.flight import RowState
from batchgen.engine.rows.lane import Lane
from batchgen.engine.rows.meter import RowMeter, Setting
from batchgen.engine.rows.snapshot import LATENTS
from batchgen.families.family import Component, FamilyModel, Stage, family_code
from batchgen.numerics.solver import Schedule
from batchgen.records import Layout, rows_decoded
from batchgen.request import Request

DECODE: tuple[Stage, ...] = ("decode",)
WINDOW = 8  # rows taken at once: as many as are decoded together at most
_NO_STEPS = Schedule("euler", torch.zeros(0), torch.zeros(1), ())


def _ladder(
    model: ModelSpec, decoders: Mapping[str, nn.Module], device: torch.device, ascent: Ascent
) -> Ladder:
    """Brings what decodes to the device, where it stays: there is nothing else to make room for."""
    whole = plan_memory(model, "resident")
    plan = replace(whole, parts=tuple(part for part in whole.parts if part.name in decoders))
    residency = Residency(decoders, device, plan, _no_feed, Gauge())
    ladder = Ladder(residency, Recall(text_bytes=0), device, ascent, streams=False)
    ladder.places = ()
    ladder.load()
    return ladder


def _no_feed(part: Component, plan: MemoryPlan) -> NoReturn:
    raise AssertionError(f"{part.name}: nothing streams that stays")


class Decoder:
    """An autoencoder at work (`contract.Renderer`). What a source restores of a row is its latents
    behind the last step."""

    def __init__(
        self,
        family: FamilyModel,
        system: SystemConfig,
        device: torch.device,
        sizes: DecodeSizes,
        ladder: Ladder,
    ) -> None:
        self.family, self.system, self.device = family, system, device
        self.decodes, self.ladder = sizes, ladder

    @classmethod
    def load(
        cls,
        model: ModelSpec,
        system: SystemConfig,
        device: str,
        *,
        layout: Layout,
        moved: Callable[[], object] = unheard,
        ascent: Ascent | None = None,
    ) -> Decoder:
        """Load what decodes; of the transformers there is the outline alone. Raises as
        `Engine.load`."""
        where = devices.pick_device(device)
        devices.prepare(where, system)
        own = {n: devices.DTYPES[c.dtype] for n, c in system.components.items() if c.dtype}
        dtype = devices.DTYPES[layout.precision]
        decoders = load_components(model, dtype, moved, DECODE, own)
        components = outlined(model, dtype, own) | decoders
        family = family_code(model.family).build(model, system, components, where)
        sizes = DecodeSizes(partial(rows_decoded, layout.decode_pixels))
        ladder = _ladder(model, decoders, where, ascent or Ascent())
        for bucket, rows in ladder.allowed("decode", alone=True):
            sizes.allow(bucket, rows)
        return cls(family, system, where, sizes, ladder)

    def render(
        self,
        source: Source,
        sink: Sink,
        *,
        stop: Callable[[], bool] = never,
        moved: Callable[[], object] = unheard,
        clock: Clock | None = None,
    ) -> EngineReport:
        """Decode every row of `source` into `sink`; see `contract.Renderer`. Nothing is saved: a
        row that is not delivered is as far as it was."""
        begin, abandoned = perf_counter(), 0
        devices.reset_peak(self.device)
        setting = Setting(devices.device_name(self.device), self.system.determinism)
        finisher = Finisher(self, sink, setting)
        lane: Lane[Denoised | Broken] = Lane(
            finisher, overlap=True, moved=moved, together=finisher.together
        )
        with torch.no_grad(), lane:
            while not stop():
                lane.check()
                requests = source.take(WINDOW)
                if not requests:
                    break
                jobs = [self._taken(request, source, sink) for request in requests]
                if stop():
                    abandoned = len(jobs)
                    break
                lane.put(*jobs)
        return self._report(finisher, abandoned, perf_counter() - begin)

    def _taken(self, request: Request, source: Source, sink: Sink) -> Denoised | Broken:
        sink.started(request)
        meter = RowMeter()
        state = attempt(lambda: self._state(request, source, meter))
        return Broken(request, meter, state.error) if isinstance(state, Failed) else Denoised(state)

    def _state(self, request: Request, source: Source, meter: RowMeter) -> RowState:
        """The row behind its last step; may raise for this row alone."""
        snapshot = source.restore(request)
        if snapshot is None:
            raise ValueError(f"row {request.row_id}: there are no latents to decode")
        latents = torch.from_numpy(snapshot.arrays[LATENTS].copy()).to(self.device)
        latents = latents.to(self.family.state_dtype)
        return RowState(request, _NO_STEPS, (), latents, meter, step=snapshot.step)

    def _report(self, finisher: Finisher, abandoned: int, wall: float) -> EngineReport:
        used = devices.memory(self.device)
        return EngineReport(
            rows_finished=finisher.finished,
            rows_failed=finisher.failed,
            rows_abandoned=abandoned,
            wall_s=wall,
            decode_s=finisher.decode_s,
            deliver_s=finisher.deliver_s,
            memory_rung=self.ladder.rung or "",
            device_syncs=finisher.syncs,
            peak_mem_gib=used.peak_device_gib,
            host_rss_gib=used.host_rss_gib,
        )
