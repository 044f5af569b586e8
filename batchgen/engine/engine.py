"""The engine: a stream of requests in, frames out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from batchgen.caches.tables import Tables
from batchgen.config.degrees import Degrees
from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.engine.assemble import assemble
from batchgen.engine.clock import Clock
from batchgen.engine.contract import Ascent, EngineReport, KeptTexts, Sink, Source, never, unheard
from batchgen.engine.devices import device as devices
from batchgen.engine.parallel.meet import meet
from batchgen.engine.ranks.team import Alone, Team
from batchgen.engine.replica import Replica
from batchgen.engine.rows.meter import Setting
from batchgen.engine.rows.render import follow, render
from batchgen.families.family import STAGES, Stage
from batchgen.loras import NO_LORAS
from batchgen.pictures import Read, no_images
from batchgen.records import Layout


class Engine:
    """A loaded model that draws rows; not for use from two threads at once."""

    def __init__(self, replica: Replica) -> None:
        """Put a replica to work."""
        self.replica = replica
        self.family = replica.family
        self.device = replica.device

    @classmethod
    def load(
        cls,
        model: ModelSpec,
        system: SystemConfig,
        device: str = "auto",
        *,
        layout: Layout | None = None,
        overlap: bool = True,
        moved: Callable[[], object] = unheard,
        team: Team | None = None,
        tables: Tables | None = None,
        images: Read = no_images,
        texts: KeptTexts | None = None,
        ascent: Ascent | None = None,
        loras: Mapping[str, Path] = NO_LORAS,
        stages: Sequence[Stage] = STAGES,
    ) -> Engine:
        """Load the model's weights and be ready to render.

        `device` is `auto` (CUDA if there is one, else CPU) or a torch device; `layout` is what the
        submission decided (None: there is none, see `device.lone_layout`); `moved` is told of each
        component that is loaded. `overlap=False` is the serial twin: it decodes and delivers
        on the calling thread and gives equal frames. `team`: the ranks that draw together, else
        this one is alone. `tables`: coefficients of step caches; None: the user's and the shipped.
        `images`: those that rows are given.
        `texts`: where encoded texts are kept on disk; None: nowhere. `ascent`: where on the memory
        ladder it begins; a follower does as its leader. `loras`: the files that rows are drawn
        with, by `Lora.name`. `stages`: those that rows go through; without the last they end as
        latents.
        Raises WeightsError for weights that do not fit, ConfigError for an unknown family or a
        device that is not there. In strict mode on a CPU the process goes to one torch thread."""
        where, team = devices.pick_device(device), team or Alone()
        layout = layout or devices.lone_layout(model, system, where)
        degrees = Degrees(layout.dp, layout.cfg, layout.ulysses, layout.ring)
        mesh = meet(team, degrees, where)
        made = assemble(
            model,
            system,
            layout,
            where,
            overlap=overlap,
            moved=moved,
            team=team,
            tables=tables or Tables.usual(),
            images=images,
            mesh=mesh,
            texts=texts,
            ascent=ascent or Ascent(),
            loras=loras,
            stages=stages,
        )
        return cls(made)

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
        setting = Setting(self.device_name, self.replica.system.determinism)
        with torch.no_grad():
            return render(
                self.replica,
                source,
                sink,
                stop=stop,
                moved=moved,
                setting=setting,
                clock=clock or Clock(),
            )

    def follow(self, moved: Callable[[], object] = unheard, clock: Clock | None = None) -> None:
        """Draw with the leader of the team, in all its renders, until it dismisses this rank."""
        with torch.no_grad():
            follow(self.replica, moved, clock or Clock())
