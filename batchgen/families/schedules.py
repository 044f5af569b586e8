"""Schedules from a checkpoint's own scheduler, set as the families' pipelines set it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler

from batchgen.errors import ConfigError
from batchgen.families.dims import stored_dims
from batchgen.families.flow import FlowScheduler
from batchgen.numerics.solver import Schedule, table


@lru_cache(maxsize=512)
def flow_schedule(
    scheduler: FlowScheduler,
    shift: float,
    steps: int,
    mu: float | None = None,
    own_sigmas: bool = False,
    sigmas: tuple[float, ...] = (),
) -> Schedule:
    """Euler over `steps` sigmas: evenly from 1 to 1 / steps, or those that the scheduler chooses,
    or those given. Then they are shifted: by `mu` if the scheduler shifts by the row's size, else
    by `shift`. ConfigError for one step of a scheduler that stretches them to an end of its own:
    there is nothing between start and end."""
    if steps == 1 and scheduler.shift_terminal:
        raise ConfigError("num_steps: 1 is too few for this model's scheduler; legal: >= 2")
    source = FlowMatchEulerDiscreteScheduler(**stored_dims(replace(scheduler, shift=shift)))
    if own_sigmas:
        source.set_timesteps(steps, mu=mu)
    else:
        even = np.linspace(1.0, 1 / steps, steps)
        source.set_timesteps(sigmas=list(sigmas) or even, mu=mu)
    return table("euler", source.sigmas, source.timesteps)


@lru_cache(maxsize=512)
def falling_schedule(scheduler: FlowScheduler, shift: float, steps: int) -> Schedule:
    """Euler over `steps` sigmas, evenly from 1 towards 0, which is the end, before they are
    shifted."""
    source = FlowMatchEulerDiscreteScheduler(**stored_dims(replace(scheduler, shift=shift)))
    source.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])
    return table("euler", source.sigmas, source.timesteps)
