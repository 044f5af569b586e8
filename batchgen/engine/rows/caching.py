"""What a row's step cache makes of it before its first step."""

from __future__ import annotations

import json
from collections.abc import Sequence

from batchgen.caches.strategies import planned
from batchgen.caches.strategy import NONE, Row, strategy
from batchgen.engine.replica import Replica
from batchgen.engine.reuse.rowcache import RowCache
from batchgen.errors import ConfigError
from batchgen.numerics.solver import Schedule, leaps, over
from batchgen.request import Request


def under_cache(
    replica: Replica, request: Request, whole: Schedule, branches: int
) -> tuple[Schedule, RowCache | None]:
    """The schedule that the row goes through, and what decides and predicts on the way; none if
    its steps are planned, or if it has no cache. ConfigError for coefficients that are gone."""
    if request.cache_strategy == NONE or request.cache_ratio == 0:
        return whole, None
    experts = [replica.family.expert(request, float(timestep)) for timestep in whole.timesteps]
    row = Row(
        ratio=request.cache_ratio,
        warmup=request.cache_warmup,
        cooldown=request.cache_cooldown,
        params=json.loads(request.cache_params or "{}"),
        sigmas=tuple(map(float, whole.sigmas)),
        starts=expert_starts(experts),
        layers=replica.layers,
        diffusion=whole.diffusion,
    )
    table = replica.tables.by_digest(request.cache_table).content if request.cache_table else None
    if request.cache_strategy == planned.NAME:
        path = planned.path(row, table)
        if table is not None and not path.leaps:
            raise ConfigError(
                f"cache_table: {request.cache_table} was fitted for rows whose experts begin "
                f"elsewhere than at steps {row.starts} (plan again)"
            )
        thinner = leaps(whole, path.steps, path.leaps) if path.leaps else over(whole, path.steps)
        return thinner, None
    return whole, RowCache(
        strategy(request.cache_strategy),
        row,
        branches,
        table,
        divided=replica.split is not None,
        alike=replica.family.signals_alike,
    )


def expert_starts(experts: Sequence[str]) -> tuple[int, ...]:
    """The steps at which another expert begins than drew the step before; `experts`: of each."""
    return tuple(i for i, name in enumerate(experts) if i == 0 or name != experts[i - 1])
