"""Solvers of models of diffusion proper, which predict the velocity v of x = sqrt(a) x0 +
sqrt(1 - a) noise: DDIM and the SDE form of DPM-Solver++(2M), as diffusers has them for CogVideoX.

As for flow matching (`solver.py`) coefficients are worked out once, in diffusers' order of
operations; a step is a pure function, but for the noise that the SDE draws from the row's seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Draw = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class DiffusionStep:
    """x0 = x0_x * x - x0_v * v, and with it x' = x_scale * x - m_scale * m + noise * noise drawn,
    where m is x0, or m_new * x0 - m_old * the x0 of the step before.

    All are scalars on the host, float64 as diffusers' are."""

    x0_x: Tensor
    x0_v: Tensor
    x_scale: Tensor
    m_scale: Tensor
    m_new: Tensor | None = None  # None: of first order
    m_old: Tensor | None = None
    noise: Tensor | None = None
    draws: int = 0  # noises drawn, of which the last counts

    def __call__(
        self, x: Tensor, v: Tensor, before: Tensor | None, draw: Draw | None
    ) -> tuple[Tensor, Tensor]:
        """The next latents, and x0; `before`: the x0 of the step before."""
        x0 = self.x0_x * x - self.x0_v * v
        m = x0
        if self.m_new is not None and self.m_old is not None and before is not None:
            m = self.m_new * x0 - self.m_old * before
        following = self.x_scale * x - self.m_scale * m
        if self.noise is None:
            return following, x0
        assert draw is not None
        drawn = [draw() for _ in range(self.draws)][-1]
        return following + self.noise * drawn.to(x.device, x.dtype), x0


def ddim_steps(source: Any) -> tuple[DiffusionStep, ...]:
    """Of a CogVideoXDDIMScheduler whose timesteps are set."""
    steps = []
    for t in source.timesteps:
        a, after = source.alphas_cumprod[t], _after(source, t)
        x_scale = ((1 - after) / (1 - a)) ** 0.5
        back = -(after**0.5 - a**0.5 * x_scale)
        steps.append(DiffusionStep(a**0.5, (1 - a) ** 0.5, x_scale, back))
    return tuple(steps)


def ddim_over(steps: Sequence[DiffusionStep], some: Sequence[int]) -> list[DiffusionStep]:
    """DDIM over some of its steps: each goes on to the noise at which the next one of these begins,
    or at which the last of all ends."""
    found = []
    for number, onward in zip(some, [*some[1:], len(steps)], strict=True):
        step, last = steps[number], steps[onward - 1]
        if last is not step:
            picture = last.x0_x * last.x_scale - last.m_scale  # sqrt(a), where the last one ends
            x_scale = last.x0_v * last.x_scale / step.x0_v
            step = replace(step, x_scale=x_scale, m_scale=step.x0_x * x_scale - picture)
        found.append(step)
    return found


def sde_steps(source: Any) -> tuple[DiffusionStep, ...]:
    """Of a CogVideoXDPMScheduler whose timesteps are set. Between the first step and the last it
    draws twice, the first time for nothing."""
    steps, before = [], None
    for t in source.timesteps:
        a, after = source.alphas_cumprod[t], _after(source, t)
        h, r, *_ = source.get_variables(a, after, before)
        x_scale, m_scale, *second = source.get_mult(h, r, a, after, before)
        noise = (1 - after) ** 0.5 * (1 - (-2 * h).exp()) ** 0.5
        last = _next(source, t) < 0
        new, old = second if second and not last else (None, None)
        steps.append(
            DiffusionStep(
                a**0.5,
                (1 - a) ** 0.5,
                x_scale,
                m_scale,
                m_new=new,
                m_old=old,
                noise=noise,
                draws=1 if new is None else 2,
            )
        )
        before = a
    return tuple(steps)


def ddpm_steps(source: Any) -> tuple[DiffusionStep, ...]:
    """Of a DDPMScheduler whose timesteps are set: it draws once a step, but for timestep 0."""
    steps = []
    for t in source.timesteps:
        following = source.previous_timestep(t)
        a = source.alphas_cumprod[t]
        after = source.alphas_cumprod[following] if following >= 0 else source.one
        share = a / after
        x0_scale = (after**0.5 * (1 - share)) / (1 - a)
        x_scale = share**0.5 * (1 - after) / (1 - a)
        noise = source._get_variance(t) ** 0.5 if t > 0 else None
        draws = int(noise is not None)
        x0 = (a**0.5, (1 - a) ** 0.5)
        steps.append(DiffusionStep(*x0, x_scale, -x0_scale, noise=noise, draws=draws))
    return tuple(steps)


def noise_levels(source: Any) -> Tensor:
    """sqrt(1 - a) at each timestep and at the end, float32."""
    ends = [source.alphas_cumprod[t] for t in source.timesteps]
    ends.append(_after(source, source.timesteps[-1]))
    return torch.tensor([float((1 - a) ** 0.5) for a in ends])


def _next(source: Any, t: Tensor) -> int:
    """The timestep that a step leads to; below 0: the end."""
    return int(t) - int(source.config.num_train_timesteps) // int(source.num_inference_steps)


def _after(source: Any, t: Tensor) -> Tensor:
    following = _next(source, t)
    found: Tensor = (
        source.alphas_cumprod[following] if following >= 0 else source.final_alpha_cumprod
    )
    return found
