"""The engine: a stream of requests in, frames out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.engine import device as devices
from batchgen.engine.clock import Clock
from batchgen.engine.contract import EngineReport, Sink, Source, never, unheard
from batchgen.engine.edges import run_item_by_item
from batchgen.engine.family import Family, family_named
from batchgen.engine.memory.residency import Residency, plan_mode
from batchgen.engine.meter import Setting
from batchgen.engine.packs import Packer
from batchgen.engine.prompts import PromptBook
from batchgen.engine.render import Render
from batchgen.engine.replica import Replica
from batchgen.engine.weights import load_components


class Engine:
    """A loaded model that draws rows; not for use from two threads at once."""

    def __init__(
        self,
        model: ModelSpec,
        system: SystemConfig,
        family: Family,
        device: torch.device,
        *,
        overlap: bool = True,
    ) -> None:
        """Put a loaded family to work. `overlap=False` is the serial twin: it decodes and delivers
        on the calling thread and gives equal frames."""
        self.model = model
        self.system = system
        self.family = family
        self.device = device
        run_item_by_item(family.edges)
        mode = plan_mode(system.memory, family.modules, device)
        self.replica = Replica(
            system,
            family,
            device,
            Residency(family.modules, device, mode),
            PromptBook(family, model.prompt_overflow),
            Packer(family, device, system.batch.token_budget, system.determinism),
            overlap,
        )

    @classmethod
    def load(
        cls,
        model: ModelSpec,
        system: SystemConfig,
        device: str = "auto",
        *,
        overlap: bool = True,
        moved: Callable[[], object] = unheard,
    ) -> Engine:
        """Load the model's weights and be ready to render.

        `device` is `auto` (CUDA if there is one, else CPU) or a torch device; `moved` is told of
        each component that is loaded. Raises WeightsError for weights that do not fit, ConfigError
        for an unknown family or a device that is not there. In strict mode on a CPU the process
        goes to one torch thread."""
        where = devices.pick_device(device)
        devices.prepare(where, system)
        dtype = devices.run_dtype(model, where)
        components: dict[str, Any] = load_components(model, dtype, moved)
        family = family_named(model.family).build(model, components, where)
        return cls(model, system, family, where, overlap=overlap)

    @property
    def device_name(self) -> str:
        """The device as the catalog names it."""
        return devices.device_name(self.device)

    def render(
        self,
        source: Source,
        sink: Sink,
        *,
        stop: Callable[[], bool] = never,
        moved: Callable[[], object] = unheard,
        clock: Clock | None = None,
    ) -> EngineReport:
        """Draw every row of `source` into `sink` and say what it took.

        `stop` is asked once per tick, and while a window is decoded; when it is true, rows in
        flight or still to be decoded are saved, rows already denoised are still delivered, and the
        report comes back. A row that fails goes to `sink.failed` and the others go on. `moved` is
        told, on any thread, of what is done between two ticks; `clock` books the seconds of this
        one. Exceptions of source and sink come out of here, after the background thread has ended.
        """
        devices.reset_peak(self.device)
        setting = Setting(self.device_name, self.system.determinism)
        with torch.no_grad():
            return Render(self.replica, source, sink, stop, moved, setting, clock or Clock()).run()
