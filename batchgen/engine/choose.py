"""Which engine draws a job: known before anything is loaded, torch imported only where needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

from batchgen.caches.tables import Tables
from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.engine.contract import KeptTexts, Renderer
from batchgen.engine.team import Team
from batchgen.errors import ConfigError
from batchgen.families.family import family_code, family_spec
from batchgen.pictures import Read, no_images
from batchgen.records import Layout


class FamilyEngine(Protocol):
    """`model.py` of a family with an engine of its own."""

    def renderer(self, system: SystemConfig, host: str) -> Renderer: ...


Moved = Callable[[], object]  # told of each component that is loaded


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine that is still to be loaded, for the leader of a team or for one that follows."""

    device: str  # as the catalog names it
    device_class: str  # kind of device and precision: two of the same compute alike
    load: Callable[[Moved, Team], Renderer]
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
) -> EngineChoice:
    """The engine for one rank of a node with that many. A family with an engine of its own needs no
    torch; every other one is torch's. `tables`, `images` and `texts` are as in `Engine.load`.

    Raises ConfigError for a device that is not there, or that cannot hold what `layout` decided; if
    devices were `asked` for (in words), the CPU is none."""
    if family_spec(model.family).OWN_ENGINE:
        return _own_engine(model, system, host)
    from batchgen.engine.devices import device as devices
    from batchgen.engine.engine import Engine

    if asked:
        devices.require_devices(asked, ranks)
    device = devices.device_of_rank(local_rank)
    where = devices.pick_device(device)
    obeyed = layout or devices.lone_layout(model, system, where)
    if layout is not None:
        devices.require_room(where, layout)

    def load(moved: Moved, team: Team) -> Engine:
        return Engine.load(
            model,
            system,
            device,
            layout=obeyed,
            moved=moved,
            team=team,
            tables=tables,
            images=images,
            texts=texts,
        )

    return EngineChoice(
        devices.device_name(where),
        f"{where.type} {obeyed.precision}",
        load,
        lambda moved, team: partial(load(moved, team).follow, moved),
        devices.device_id(where),
    )


def _own_engine(model: ModelSpec, system: SystemConfig, host: str) -> EngineChoice:
    own = cast(FamilyEngine, family_code(model.family))
    return EngineChoice("cpu", "none", lambda moved, team: own.renderer(system, host), _alone)


def _alone(moved: Moved, team: Team) -> Callable[[], None]:
    raise ConfigError("system.parallel: an engine of its own draws on one rank")
