"""What the scheduler_config.json of a Wan says, as far as rows can be drawn with it.

Rows are drawn as diffusers' schedulers of `numerics.solver.reference_scheduler` do it. A checkpoint
whose scheduler is set otherwise would be drawn with other sigmas or steps than its own pipeline's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchgen.request import Solver

_SOLVERS: dict[str, Solver] = {
    "UniPCMultistepScheduler": "unipc",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpm++",
}
_SERVED: dict[str, Any] = {  # of all of them; what a file leaves out is so by itself
    "num_train_timesteps": 1000,
    "use_flow_sigmas": True,
    "use_dynamic_shifting": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "shift_terminal": None,
    "invert_sigmas": False,
    "stochastic_sampling": False,
    "solver_order": 2,
    "predict_x0": True,
    "algorithm_type": "dpmsolver++",
    "lower_order_final": True,
    "euler_at_final": False,
    "disable_corrector": [],
    "thresholding": False,
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "final_sigmas_type": "zero",
}
_TYPES = {"unipc": "bh2", "dpm++": "midpoint"}  # `solver_type`


def solver_of(scheduler: Mapping[str, Any]) -> Solver:
    """The solver that a scheduler_config.json names. ValueError for one that is not served, or is
    set otherwise than it is served."""
    kind = scheduler.get("_class_name", "UniPCMultistepScheduler")
    if kind not in _SOLVERS:
        raise ValueError(f"_class_name is {kind!r}; legal: {', '.join(_SOLVERS)}")
    solver = _SOLVERS[kind]
    served = _SERVED | ({"solver_type": _TYPES[solver]} if solver in _TYPES else {})
    for name, wanted in served.items():
        if (stored := scheduler.get(name, wanted)) != wanted:
            raise ValueError(f"{name} is {stored!r}; legal: {wanted!r}")
    return solver


def shift_of(scheduler: Mapping[str, Any], otherwise: float) -> float:
    """The flow shift of a scheduler_config.json. ValueError unless it is a number above 0."""
    for name in ("flow_shift", "shift"):
        shift = scheduler.get(name)
        if shift is None:
            continue
        if isinstance(shift, bool) or not isinstance(shift, int | float) or not shift > 0:
            raise ValueError(f"{name} is {shift!r}; legal: a number above 0")
        return float(shift)
    return otherwise
