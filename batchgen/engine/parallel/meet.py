"""From a team to the groups its ranks compute in."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from batchgen.config.degrees import Degrees
from batchgen.engine.parallel.mesh import Mesh, join
from batchgen.engine.team import Team


def meet(team: Team, degrees: Degrees, device: torch.device) -> Mesh | None:
    """The mesh of a team's ranks, None for a rank alone. The leader opens a store on whichever port
    is free and tells the others where. ReplicaFailed if one of them does not come."""
    if team.size == 1:
        return None
    timeout, stores = timedelta(seconds=team.patience_s), list[Any]()

    def open_store() -> tuple[str, int]:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            team.address, 0, team.size, is_master=True, timeout=timeout, wait_for_workers=False
        )
        stores.append(store)
        return team.address, store.port

    host, port = team.result(open_store)
    if not team.leads:
        others = dist.TCPStore(host, port, team.size, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
        stores.append(others)
    with team.together(lambda: "before its first forward"):
        return join(degrees, team.rank, stores[0], device, timeout)
