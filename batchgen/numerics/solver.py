"""ODE solvers of flow matching: coefficient tables and one pure step.

diffusers' schedulers are stateful, one object per sample, and recompute their coefficients at every
step. Here sigmas and timesteps come from diffusers, the coefficients of all steps are worked out
once per (solver, shift, steps), and `step` is a pure function of latents, velocity and history. It
keeps diffusers' order of operations, so on a CPU the result is bit-equal to diffusers' scheduler.

A schedule can be thinned: `over` is the solver's own table over some of the steps, `leaps` crosses
the gaps between them by fitted coefficients.

Notation of UniPC (https://arxiv.org/abs/2302.04867) and DPM-Solver++ (https://arxiv.org/abs/2211.01095)
for flow matching: alpha = 1 - sigma, lambda = log(alpha) - log(sigma), h = lambda_t - lambda_s.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from batchgen.errors import ConfigError, closest
from batchgen.numerics.diffusion import DiffusionStep, Draw, ddim_over
from batchgen.numerics.noise import SeededNoise
from batchgen.request import Solver

ORDER = 2  # of the multistep solvers: Wan's own choice
DEPTH = 3  # latents, and velocities of each branch, that a fitted leap takes: the newest ones
SOLVERS: tuple[Solver, ...] = ("unipc", "euler", "dpm++")


@dataclass(frozen=True, slots=True)
class History:
    """What a row remembers of the steps before, newest first.

    outputs, sample: a multistep solver's x0 predictions, and the latents from which its last
    predictor started. latents, velocities: fitted leaps' earlier latents, and what each branch
    answered there."""

    outputs: tuple[Tensor, ...] = ()
    sample: Tensor | None = None
    latents: tuple[Tensor, ...] = ()
    velocities: tuple[tuple[Tensor, ...], ...] = ()

    @property
    def bytes(self) -> int:
        """Of what fitted leaps keep."""
        kept = [*self.latents, *(velocity for age in self.velocities for velocity in age)]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)


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
    diffusion: DiffusionStep | None = None  # of models of diffusion proper only


# Of the newest latents and of each difference to older ones; of each branch's velocity, by age.
LeapCoefs: TypeAlias = tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]


@dataclass(frozen=True, slots=True)
class Leap:
    """x' = a0 * x0 + a1 * (x0 - x1) + a2 * (x1 - x2) + the sum of b[age][branch] * v[age][branch]

    float32 scalars on the host, as in `Update`. As many states as ages: one of each takes nothing
    of the past, as the first step does and an expert's first step."""

    states: tuple[Tensor, ...]
    velocities: tuple[tuple[Tensor, ...], ...]

    @property
    def branches(self) -> int:
        """Velocities of one step: of each branch, or 1 for the guided one."""
        return len(self.velocities[0])


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """All steps of one denoising. `timesteps`, float32 (n,), are what the transformer is given;
    `sigmas` (n + 1,) end where the denoising ends. With `leaps`, one a step, `leap` takes them
    instead of `step`."""

    solver: Solver
    timesteps: Tensor
    sigmas: Tensor
    coefs: tuple[StepCoefs, ...]
    leaps: tuple[Leap, ...] = ()

    def __len__(self) -> int:
        return len(self.coefs)

    @property
    def diffusion(self) -> bool:
        """Whether it is of a model of diffusion proper."""
        return self.coefs[0].diffusion is not None

    def draws(self, step: int) -> int:
        """Noises that the steps before this one draw."""
        return sum(coefs.diffusion.draws for coefs in self.coefs[:step] if coefs.diffusion)


def noise_of(schedule: Schedule, latents: Tensor, seed: int, step: int = 0) -> SeededNoise | None:
    """What a row's solver goes on to draw from a step on, behind the initial noise, in the shape of
    the latents; None: nothing."""
    if not schedule.draws(len(schedule)):
        return None
    return SeededNoise(tuple(latents.shape), seed, drawn=1 + schedule.draws(step))


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
    return Schedule(solver, timesteps.float(), sigmas, coefs)


@lru_cache(maxsize=256)
def over(whole: Schedule, steps: tuple[int, ...]) -> Schedule:
    """The solver's own table over some steps of a schedule, in order; `whole` itself over all.
    ConfigError for a solver that draws noise."""
    if len(steps) == len(whole):
        return whole
    sigmas, times = whole.sigmas[[*steps, len(whole)]], whole.timesteps[list(steps)]
    if not whole.diffusion:
        return table(whole.solver, sigmas, times)
    if whole.draws(len(whole)):
        raise ConfigError(f"solver: {whole.solver} draws noise at its steps: none can be left out")
    fine = [coefs.diffusion for coefs in whole.coefs if coefs.diffusion is not None]
    thin = zip(sigmas, ddim_over(fine, steps), strict=False)
    return replace(
        whole,
        timesteps=times,
        sigmas=sigmas,
        coefs=tuple(StepCoefs(sigma, diffusion=coefs) for sigma, coefs in thin),
    )


@lru_cache(maxsize=256)
def leaps(whole: Schedule, steps: tuple[int, ...], coefs: tuple[LeapCoefs, ...]) -> Schedule:
    """Some steps of a schedule with the fitted leap of each: to the next one, or to the end."""
    if len(coefs) != len(steps):
        raise ValueError(f"{len(coefs)} leaps for {len(steps)} steps")
    return replace(over(whole, steps), leaps=tuple(as_leap(one) for one in coefs))


def as_leap(coefs: LeapCoefs) -> Leap:
    """In the precision in which it is applied."""
    states, velocities = coefs
    return Leap(_scalars(states), tuple(_scalars(age) for age in velocities))


def reference_scheduler(
    solver: Solver, shift: float
) -> UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler | DPMSolverMultistepScheduler:
    """diffusers' scheduler for the solver: the source of the sigmas, and the plain twin of
    `step`."""
    if solver == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    kind = UniPCMultistepScheduler if solver == "unipc" else DPMSolverMultistepScheduler
    return kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def step(
    coefs: StepCoefs, x: Tensor, v: Tensor, history: History, draw: Draw | None = None
) -> tuple[Tensor, History]:
    """One solver step from latents `x` with the guided velocity `v`; returns the next latents and
    history. Latents keep their own precision (float32), whatever the precision of `v`. `draw` gives
    the noises that some solvers want."""
    if coefs.diffusion is not None:
        before = history.outputs[0] if history.outputs else None
        following, x0 = coefs.diffusion(x, v, before, draw)
        return following, History((x0,))
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


def leap(
    coefs: Leap, x: Tensor, velocities: Sequence[Tensor], history: History
) -> tuple[Tensor, History]:
    """One fitted leap from latents `x` with the velocities of `coefs.branches`; returns the next
    latents and history, float32. The order of operations is fixed: same row, same bits."""
    scales = [*coefs.states, *(scale for age in coefs.velocities for scale in age)]
    first, *others = terms(len(coefs.states), x, velocities, history)
    following = scales[0] * first
    for scale, term in zip(scales[1:], others, strict=True):
        following = following + scale * term
    latents = (x, *history.latents)[: DEPTH - 1]
    answers = (tuple(velocities), *history.velocities)[: DEPTH - 1]
    return following, History(latents=latents, velocities=answers)


def terms(depth: int, x: Tensor, velocities: Sequence[Tensor], history: History) -> list[Tensor]:
    """What a leap is a sum of, in order: the newest latents, `depth - 1` differences to older ones,
    and the branches' velocities of as many steps; all float32."""
    xs = (x, *history.latents)[:depth]
    answers = (tuple(velocities), *history.velocities)[:depth]
    differences = [newer - older for newer, older in pairwise(xs)]
    return [x, *differences, *(velocity.float() for age in answers for velocity in age)]


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
def _scalars(values: Sequence[float]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(value, dtype=torch.float32) for value in values)


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
