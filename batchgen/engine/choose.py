"""Which engine draws a job: known before anything is loaded, torch imported only where needed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from batchgen.caches.tables import Tables
from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.engine.contract import Ascent, KeptTexts, Renderer
from batchgen.engine.ranks.team import Team
from batchgen.errors import ConfigError
from batchgen.families.family import STAGES, Stage, family_code, family_spec
from batchgen.loras import NO_LORAS
from batchgen.pictures import Read, no_images
from batchgen.records import Layout

Moved = Callable[[], object]  # told of each component that is loaded


class FamilyEngine(Protocol):
    """`model.py` of a family with an engine of its own that needs no torch."""

    def renderer(self, system: SystemConfig, host: str) -> Renderer: ...


@runtime_checkable
class DeviceEngine(Protocol):
    """`model.py` of a family with an engine of its own on a device."""

    def load(
        self, model: ModelSpec, system: SystemConfig, layout: Layout, device: str, moved: Moved
    ) -> Renderer:
        """Load the weights and be ready to render on a torch device. Raises WeightsError."""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine that is still to be loaded, for the leader of a team or for one that follows."""

    device: str  # as the catalog names it
    device_class: str  # kind of device and precision: two of the same compute alike
    load: Callable[[Moved, Team, Ascent], Renderer]
    follow: Callable[[Moved, Team], Callable[[], None]]  # then to be called until it is over
    device_id: str = ""  # tells it from others of that name on the same host


def choose_engine(
    model: ModelSpec,
    system: SystemConfig,
    *,
    layout: Layout | None = None,
    local_rank: int,
    host: str,
    asked: str = "",
    ranks: int = 1,
    tables: Tables | None = None,
    texts: KeptTexts | None = None,
    images: Read = no_images,
    loras: Mapping[str, Path] = NO_LORAS,
    stages: Sequence[Stage] = STAGES,
) -> EngineChoice:
    """The engine for one rank of a node with that many: the family's own if it has one, else the
    common one. `tables`, `images`, `texts`, `loras` and `stages` are as in `Engine.load`; where
    rows are decoded alone, it is the decoder.

    Raises ConfigError for a device that is not there, or that cannot hold what `layout` decided; if
    devices were `asked` for (in words), the CPU is none."""
    own = family_code(model.family) if family_spec(model.family).OWN_ENGINE else None
    if own is not None and not isinstance(own, DeviceEngine):
        return _light_engine(cast(FamilyEngine, own), system, host)
    with _unswept():
        from batchgen.engine.decode import DECODE, Decoder
        from batchgen.engine.devices import device as devices
        from batchgen.engine.engine import Engine

        family_code(model.family)

    if asked:
        devices.require_devices(asked, ranks)
    device = devices.device_of_rank(local_rank)
    where = devices.pick_device(device)
    obeyed = layout or devices.lone_layout(model, system, where)
    if layout is not None:
        devices.require_room(where, layout)

    choice = partial(
        EngineChoice,
        devices.device_name(where),
        f"{where.type} {obeyed.precision}",
        device_id=devices.device_id(where),
    )
    if tuple(stages) == DECODE:
        decoder = partial(Decoder.load, model, system, device, layout=obeyed)
        return choice(lambda moved, _, ascent: decoder(moved=moved, ascent=ascent), _alone)
    if own is not None:
        alone = partial(own.load, model, system, obeyed, device)
        return choice(lambda moved, *_: alone(moved), _alone)
    load = partial(
        Engine.load,
        model,
        system,
        device,
        layout=obeyed,
        tables=tables,
        images=images,
        texts=texts,
        loras=loras,
        stages=stages,
    )
    return choice(
        lambda moved, team, ascent: load(moved=moved, team=team, ascent=ascent),
        lambda moved, team: partial(load(moved=moved, team=team).follow, moved),
    )


@contextmanager
def _unswept() -> Iterator[None]:
    """While torch and its packages are imported, no garbage is looked for: of a million objects all
    stay, and to look through them again and again takes a third of the time."""
    swept = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if swept:
            gc.enable()


def _light_engine(own: FamilyEngine, system: SystemConfig, host: str) -> EngineChoice:
    return EngineChoice("cpu", "none", lambda *_: own.renderer(system, host), _alone)


def _alone(moved: Moved, team: Team) -> Callable[[], None]:
    raise ConfigError("system.parallel: an engine of this kind works on one rank")
