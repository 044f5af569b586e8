"""The engine of family `null`: every row takes its predicted time. Needs no torch.

A row hashes its seed once a step and turns the last digest into noise, so a row resumed from a
wrong state gives other pixels. `BATCHGEN_NULL_SLOW="node2=2.0,node3=1.5"` makes hosts slow (`*`:
all others; 0: rows take no time).
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable

import numpy as np

from batchgen.config.schema import SystemConfig
from batchgen.engine.clock import Clock
from batchgen.engine.contract import EngineReport, Sink, Snapshot, Source, never, unheard
from batchgen.engine.singly import Drawn, Singly
from batchgen.errors import ConfigError
from batchgen.records import RowStats, StageSeconds
from batchgen.request import Request

SLOW = "BATCHGEN_NULL_SLOW"


def renderer(system: SystemConfig, host: str) -> NullEngine:
    """The family's engine for a rank on `host`."""
    return NullEngine(system, host)


class NullEngine:
    """An engine without a model (`batchgen.engine.contract.Renderer`); one row in flight."""

    def __init__(self, system: SystemConfig, host: str) -> None:
        """ConfigError if the variable that makes hosts slow cannot be read."""
        self.determinism = system.determinism
        self.pace = pace_of(host, os.environ.get(SLOW, ""))

    def render(
        self,
        source: Source,
        sink: Sink,
        *,
        stop: Callable[[], bool] = never,
        moved: Callable[[], object] = unheard,
        clock: Clock | None = None,
    ) -> EngineReport:
        """Render one row after the other; a background thread delivers finished rows."""
        return Singly(self, source, sink, stop, moved, clock or Clock()).run()

    def draw(self, request: Request, snapshot: Snapshot | None, stop: Callable[[], bool]) -> Drawn:
        """Take the remaining steps, each in its predicted time (see `singly.Drawer`)."""
        step, digest = 0, request.seed.to_bytes(8, "big")
        if snapshot is not None and "digest" in snapshot.arrays:
            step, digest = snapshot.step, snapshot.arrays["digest"].tobytes()
        restored, step_s = step, request.cost_s / request.num_steps * self.pace
        due = time.monotonic()
        while step < request.num_steps:
            if stop():
                state = {"digest": np.frombuffer(digest, np.uint8)}
                return Drawn(step, restored, state=state)
            due += step_s  # counted from the last due time, so late wake-ups do not add up
            time.sleep(max(0.0, due - time.monotonic()))
            digest = hashlib.sha256(digest).digest()
            step += 1
        return Drawn(step, restored, frames=_noise(request, digest))

    def stats(self, request: Request, drawn: Drawn, seconds: float) -> RowStats:
        """All its seconds are denoising."""
        computed = drawn.steps - drawn.restored
        step_s = seconds / computed if computed else 0.0
        branches = 1 + (request.guidance_scale > 1.0)
        return RowStats(
            stages=StageSeconds(denoise=seconds),
            steps_total=request.num_steps * branches,
            steps_computed=float(computed * branches),
            steps_restored=drawn.restored,
            step_p50_s=step_s,
            step_p95_s=step_s,
            batch_size_mean=1.0,
            determinism=self.determinism,
            attention_kernel="none",
            device="cpu",
        )


def _noise(request: Request, digest: bytes) -> np.ndarray:
    dice = np.random.default_rng(int.from_bytes(digest, "big"))
    shape = (request.num_frames, request.height, request.width, 3)
    return dice.integers(0, 256, shape, np.uint8)


def pace_of(host: str, text: str) -> float:
    """Factor by which rows on `host` take longer than predicted, from `host=factor,...`."""
    paces: dict[str, float] = {}
    for entry in filter(None, text.split(",")):
        name, _, factor = entry.partition("=")
        try:
            paces[name.strip()] = float(factor)
        except ValueError:
            paces[name.strip()] = -1.0
        if not 0 <= paces[name.strip()] < float("inf"):
            raise ConfigError(f"{SLOW}: {entry!r} is not HOST=FACTOR with a factor >= 0")
    return paces.get(host, paces.get("*", 1.0))
