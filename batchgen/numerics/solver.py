"""ODE solvers of flow matching: coefficient tables and one pure step.

diffusers' schedulers are stateful, one object per sample, and recompute their coefficients at every
step. Here sigmas and timesteps come from diffusers, the coefficients of all steps are worked out
once per (solver, shift, steps), and `step` is a pure function of latents, velocity and history. It
keeps diffusers' order of operations, so on a CPU the result is bit-equal to diffusers' scheduler.

Notation of UniPC (https://arxiv.org/abs/2302.04867) and DPM-Solver++ (https://arxiv.org/abs/2211.01095)
for flow matching: alpha = 1 - sigma, lambda = log(alpha) - log(sigma), h = lambda_t - lambda_s.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from batchgen.errors import ConfigError, closest
from batchgen.request import Solver

ORDER = 2  # of the multistep solvers: Wan's own choice
SOLVERS: tuple[Solver, ...] = ("unipc", "euler", "dpm++")


@dataclass(frozen=True, slots=True)
class History:
    """What a multistep solver remembers of a row: earlier x0 predictions, newest first, and the
    latents from which the last predictor started."""

    outputs: tuple[Tensor, ...] = ()
    sample: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """x' = x_scale * x - m_scale * m0 - d_scale * (rho_old * (m1 - m0) / r + rho_new * (m - m0))

    All coefficients are float32 scalars on the host: a device multiplies by them without a sync."""

    x_scale: Tensor
    m_scale: Tensor
    d_scale: Tensor
    r: Tensor | None = None  # None: first order, no older prediction is used
    rho_old: Tensor | None = None
    rho_new: Tensor | None = None  # correctors only


@dataclass(frozen=True, slots=True)
class StepCoefs:
    """Coefficients of one step of one solver."""

    sigma: Tensor
    predictor: Update | None = None
    corrector: Update | None = None  # UniPC: corrects the last prediction before the next one
    dt: Tensor | None = None  # of Euler only


@dataclass(frozen=True, slots=True)
class Schedule:
    """All steps of one denoising. `timesteps`, float32 (n,), are what the transformer is given."""

    solver: Solver
    timesteps: Tensor
    coefs: tuple[StepCoefs, ...]
    sigmas: tuple[float, ...]  # of every step, and of the end

    def __len__(self) -> int:
        return len(self.coefs)


@lru_cache(maxsize=512)
def schedule(solver: Solver, shift: float, steps: int) -> Schedule:
    """The table of `solver` over `steps` steps; `shift` is diffusers' flow shift. ConfigError for
    an unknown solver."""
    if solver not in SOLVERS:
        legal = ", ".join(SOLVERS)
        raise ConfigError(f"solver: {solver!r} is not one of {legal}{closest(solver, SOLVERS)}")
    scheduler = reference_scheduler(solver, shift)
    with warnings.catch_warnings():  # DPM-Solver++ passes numpy a tensor in a deprecated way
        warnings.simplefilter("ignore", DeprecationWarning)
        scheduler.set_timesteps(steps)
    return table(solver, scheduler.sigmas, scheduler.timesteps)


def table(solver: Solver, sigmas: Tensor, timesteps: Tensor) -> Schedule:
    """The table of `solver` for the sigmas (one more than steps) and timesteps of any scheduler."""
    make = {"unipc": _unipc, "euler": _euler, "dpm++": _dpmpp}[solver]
    steps = len(timesteps)
    coefs = tuple(make(sigmas, i, steps) for i in range(steps))
    return Schedule(solver, timesteps.float(), coefs, tuple(map(float, sigmas)))


def reference_scheduler(
    solver: Solver, shift: float
) -> UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler | DPMSolverMultistepScheduler:
    """diffusers' scheduler for the solver: the source of the sigmas, and the plain twin of
    `step`."""
    if solver == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    kind = UniPCMultistepScheduler if solver == "unipc" else DPMSolverMultistepScheduler
    return kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def step(coefs: StepCoefs, x: Tensor, v: Tensor, history: History) -> tuple[Tensor, History]:
    """One solver step from latents `x` with the guided velocity `v`; returns the next latents and
    history. Latents keep their own precision (float32), whatever the precision of `v`."""
    if coefs.dt is not None:
        return x + coefs.dt * v, history
    assert coefs.predictor is not None
    m = x - coefs.sigma * v  # flow matching: the x0 prediction
    if coefs.corrector is not None:
        assert history.sample is not None
        x = _correct(coefs.corrector, history.sample, m, history.outputs)
    outputs = (m, *history.outputs)[:ORDER]
    following = _predict(coefs.predictor, x, outputs)
    return following, History(outputs, x)


def _predict(update: Update, x: Tensor, outputs: tuple[Tensor, ...]) -> Tensor:
    m0 = outputs[0]
    following = update.x_scale * x - update.m_scale * m0
    if update.r is None:
        return following
    difference = (outputs[1] - m0) / update.r
    assert update.rho_old is not None
    return following - update.d_scale * (update.rho_old * difference)


def _correct(update: Update, x: Tensor, m: Tensor, outputs: tuple[Tensor, ...]) -> Tensor:
    m0 = outputs[0]
    assert update.rho_new is not None
    change = update.rho_new * (m - m0)
    if update.r is not None:
        assert update.rho_old is not None
        change = update.rho_old * ((outputs[1] - m0) / update.r) + change
    return (update.x_scale * x - update.m_scale * m0) - update.d_scale * change


# ------------------------------------------------------------------------------------------ tables
def _euler(sigmas: Tensor, i: int, steps: int) -> StepCoefs:
    return StepCoefs(sigmas[i], dt=sigmas[i + 1] - sigmas[i])


def _unipc(sigmas: Tensor, i: int, steps: int) -> StepCoefs:
    corrector = _bh2(sigmas, i, i - 1, i - 2, _unipc_order(i - 1, steps), True) if i else None
    predictor = _bh2(sigmas, i + 1, i, i - 1, _unipc_order(i, steps), False)
    return StepCoefs(sigmas[i], predictor, corrector)


def _unipc_order(i: int, steps: int) -> int:
    """Order of step i: the first step and the last ones have order one."""
    return min(ORDER, steps - i, i + 1)


def _bh2(sigmas: Tensor, t: int, s: int, older: int, order: int, corrects: bool) -> Update:
    """UniPC with B(h) = exp(h) - 1, from sigma index `s` to `t`, as predictor or corrector."""
    h = _lambda(sigmas[t]) - _lambda(sigmas[s])
    phi = torch.expm1(-h)
    alpha = 1 - sigmas[t]
    x_scale, m_scale, d_scale = sigmas[t] / sigmas[s], alpha * phi, alpha * phi
    r = (_lambda(sigmas[older]) - _lambda(sigmas[s])) / h if order == ORDER else None
    half = torch.ones(()) * 0.5
    if not corrects:
        return Update(x_scale, m_scale, d_scale, r, half)
    if r is None:
        return Update(x_scale, m_scale, d_scale, rho_new=half)
    rhos = _corrector_weights(r, -h)
    return Update(x_scale, m_scale, d_scale, r, rhos[0], rhos[1])


def _corrector_weights(r: Tensor, hh: Tensor) -> Tensor:
    """Solve the order conditions R rho = b of the corrector of second order."""
    rks = torch.stack([r, torch.ones(())])
    phi = torch.expm1(hh)
    phi_k = phi / hh - 1
    rows, targets, factorial = [], [], 1
    for i in range(1, ORDER + 1):
        rows.append(torch.pow(rks, i - 1))
        targets.append(phi_k * factorial / phi)
        factorial *= i + 1
        phi_k = phi_k / hh - 1 / factorial
    return torch.linalg.solve(torch.stack(rows), torch.stack(targets))


def _dpmpp(sigmas: Tensor, i: int, steps: int) -> StepCoefs:
    """DPM-Solver++(2M), midpoint; first order at the first and at the last step."""
    h = _lambda(sigmas[i + 1]) - _lambda(sigmas[i])
    scale = (1 - sigmas[i + 1]) * (torch.exp(-h) - 1.0)
    x_scale = sigmas[i + 1] / sigmas[i]
    if i == 0 or i == steps - 1:
        return StepCoefs(sigmas[i], Update(x_scale, scale, scale))
    r0 = (_lambda(sigmas[i]) - _lambda(sigmas[i - 1])) / h
    # diffusers writes (1 / r0) * (m0 - m1): the sign and the division by one are exact
    return StepCoefs(sigmas[i], Update(x_scale, scale, 0.5 * scale, torch.ones(()), -(1.0 / r0)))


def _lambda(sigma: Tensor) -> Tensor:
    return torch.log(1 - sigma) - torch.log(sigma)
