"""The engine of family `generic`: a pipeline of diffusers draws one row after the other.

A row is what a call of the pipeline with its arguments and a CPU generator of its seed returns, to
the bit. The call is one piece: all its seconds are denoising, its steps are the row's, and a row
that is stopped in it begins anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal

import diffusers
import numpy as np
import torch
import transformers
from torch import nn

from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.engine.clock import Clock
from batchgen.engine.contract import EngineReport, Sink, Snapshot, Source, never, unheard
from batchgen.engine.devices import device as devices
from batchgen.engine.isolation import Failed, attempt, is_short
from batchgen.engine.singly import Drawn, Singly
from batchgen.errors import OutOfMemory, WeightsError, WrongSize
from batchgen.failpoints import failpoint
from batchgen.families.generic.call import call_of
from batchgen.families.generic.columns import filled, set_by_job
from batchgen.families.generic.spec import dims
from batchgen.records import Layout, RowStats, Rung, StageSeconds
from batchgen.request import Request


def load(
    model: ModelSpec,
    system: SystemConfig,
    layout: Layout,
    device: str,
    moved: Callable[[], object] = unheard,
) -> PipelineEngine:
    """Load the pipeline onto the device in the layout's precision. WeightsError where it cannot be
    made from the folder."""
    where = devices.pick_device(device)
    devices.prepare(where, system)
    own = dims(model)
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()  # stderr belongs to the run's own progress
    try:
        pipeline = getattr(diffusers, own.pipeline).from_pretrained(
            model.weights_folder,
            dtype=devices.DTYPES[layout.precision],
            variant=model.variant,
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        raise WeightsError(
            f"{model.weights_folder}: {own.pipeline} cannot be loaded: {error}"
        ) from error
    moved()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(where)
    return PipelineEngine(pipeline, own.pipeline, own.params, system, where)


class _Stopped(Exception):
    """The call is left since the rank is to end."""


class PipelineEngine:
    """A loaded pipeline (`batchgen.engine.contract.Renderer`); one row in flight."""

    def __init__(
        self,
        pipeline: Any,
        name: str,
        params: Mapping[str, Any],
        system: SystemConfig,
        device: torch.device,
    ) -> None:
        self.pipeline, self.name, self.params = pipeline, name, params
        self.call = call_of(name)
        self.system, self.device = system, device
        self.rung: Rung | Literal[""] = ""  # the highest that was reached
        self._ask: Callable[[], object] = unheard  # before each forward of a component
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.register_forward_pre_hook(lambda module, args: self._ask())

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
        devices.reset_peak(self.device)
        return Singly(self, source, sink, stop, moved, clock or Clock()).run()

    def draw(self, request: Request, snapshot: Snapshot | None, stop: Callable[[], bool]) -> Drawn:
        """Call the pipeline, out of device memory once more. Between the forwards of its components
        it may be stopped."""

        def ask() -> None:
            failpoint("memory.denoise")
            if stop():
                raise _Stopped

        self._ask = ask
        try:
            return self._called(request)
        except _Stopped:
            return Drawn()
        finally:
            self._ask = unheard

    def _called(self, request: Request) -> Drawn:
        """Rung `free` of the memory ladder is the only one that a call has."""

        def call() -> Drawn:
            output = self.pipeline(**self.arguments(request))
            return Drawn(request.num_steps, frames=frames_of(output, request))

        found = attempt(call)
        if is_short(found):
            devices.let_go(self.device)
            self.rung = "free"
            found = attempt(call)
        if not isinstance(found, Failed):
            return found
        if is_short(found):
            told = f"the device is out of memory, tried free: {found.error}"
            raise OutOfMemory(told) from found.error
        raise found.error

    def arguments(self, request: Request) -> dict[str, Any]:
        """Of the call, for a row."""
        return {
            "prompt": request.prompt,
            **filled(self.call, asdict(request)),
            **set_by_job(self.call, self.params),
            "generator": torch.Generator("cpu").manual_seed(request.seed),
            "output_type": "pil",
        }

    def stats(self, request: Request, drawn: Drawn, seconds: float) -> RowStats:
        """All its seconds are denoising."""
        used, step_s = devices.memory(self.device), seconds / request.num_steps
        return RowStats(
            stages=StageSeconds(denoise=seconds),
            steps_total=request.num_steps,
            steps_computed=float(drawn.steps),
            step_p50_s=step_s,
            step_p95_s=step_s,
            batch_size_mean=1.0,
            peak_mem_gib=used.peak_device_gib,
            host_rss_gib=used.host_rss_gib,
            determinism=self.system.determinism,
            attention_kernel="sdpa",
            device=devices.device_name(self.device),
            memory_rung=self.rung,
        )


def frames_of(output: Any, request: Request) -> np.ndarray:
    """uint8 (frames, height, width, 3) of what a call returned; WrongSize if they are not of the
    row's size: some pipelines round what they are asked for."""
    images = getattr(output, "images", None)
    if images is None:
        images = output.frames[0]
    frames = np.stack([_pixels(image) for image in images])
    asked = (request.num_frames, request.height, request.width, 3)
    if frames.shape != asked:
        found = "x".join(map(str, (*frames.shape[2:0:-1], frames.shape[0])))
        raise WrongSize(f"asked for {request.bucket}, the pipeline drew {found}")
    return frames


def _pixels(image: Any) -> np.ndarray:
    """Of one picture; some pipelines return clips as values in 0..1, whatever is asked for."""
    if isinstance(image, np.ndarray):
        return image if image.dtype == np.uint8 else (image * 255).round().astype(np.uint8)
    return np.asarray(image.convert("RGB"))
