"""The solver tables against diffusers' schedulers, their plain twins."""

from __future__ import annotations

import pytest
import torch

from batchgen.errors import ConfigError
from batchgen.families.cogvideox.model import cog_schedule
from batchgen.families.cogvideox.spec import CogScheduler
from batchgen.numerics.solver import SOLVERS, History, over, reference_scheduler, schedule, step
from batchgen.request import Solver

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_step_is_bit_equal_to_diffusers(solver: Solver, shift: float) -> None:
    """Schedules of 1 to 50 steps, random velocities: latents and timesteps agree at every step."""
    for steps in range(1, 51):
        generator = torch.Generator().manual_seed(steps)
        theirs = torch.randn(1, 4, 2, 3, 3, generator=generator)
        ours, history = theirs.clone(), History()
        scheduler = reference_scheduler(solver, shift)
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(0)
        table = schedule(solver, shift, steps)
        assert len(table) == steps
        for i, timestep in enumerate(scheduler.timesteps):
            velocity = torch.randn(theirs.shape, generator=generator)
            theirs = scheduler.step(velocity, timestep, theirs, return_dict=False)[0]
            ours, history = step(table.coefs[i], ours, velocity, history)
            assert table.timesteps[i] == timestep
            assert torch.equal(ours, theirs), (steps, i)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_constant_field_is_integrated_exactly(solver: Solver) -> None:
    """If data is one point and noise another, the velocity is their difference and any solver
    must arrive at the data: holds the tables down without diffusers."""
    data, noise = torch.full((1, 2), 0.25), torch.full((1, 2), -1.5)
    table, history = schedule(solver, 3.0, 9), History()
    x = torch.lerp(data, noise, table.coefs[0].sigma)  # DPM-Solver++ begins just below one
    for coefs in table.coefs:
        x, history = step(coefs, x, noise - data, history)
    assert torch.allclose(x, data, atol=1e-5)


def test_latents_keep_float32_under_half_precision_velocities() -> None:
    for solver in SOLVERS:
        table, x, history = schedule(solver, 3.0, 4), torch.randn(1, 3), History()
        for coefs in table.coefs:
            x, history = step(coefs, x, torch.randn(1, 3, dtype=torch.bfloat16), history)
            assert x.dtype == torch.float32


def test_every_second_step_of_ddim_is_ddim_of_half_as_many_steps() -> None:
    """Whose timesteps these are; a step that is followed by its own next one stays what it is."""
    scheduler = CogScheduler(snr_shift_scale=3.0)
    fine, coarse = (cog_schedule(scheduler, "ddim", steps) for steps in (20, 10))
    thin = over(fine, tuple(range(0, 20, 2)))
    assert torch.equal(thin.timesteps, coarse.timesteps)
    assert torch.equal(thin.sigmas, coarse.sigmas)
    for ours, theirs in zip(thin.coefs, coarse.coefs, strict=True):
        for name in ("x0_x", "x0_v", "x_scale", "m_scale"):
            pair = [getattr(one.diffusion, name) for one in (ours, theirs)]
            assert torch.allclose(*pair, rtol=1e-9, atol=1e-9), name
    some = over(fine, (0, 1, 2, 9))
    assert [a == b for a, b in zip(some.coefs, fine.coefs, strict=False)][:2] == [True, True]


def test_no_step_of_a_solver_that_draws_noise_is_left_out() -> None:
    whole = cog_schedule(CogScheduler(), "sde", 4)
    assert over(whole, (0, 1, 2, 3)) is whole
    with pytest.raises(ConfigError, match="sde draws noise at its steps"):
        over(whole, (0, 2))


def test_an_unknown_solver_is_named_with_the_legal_ones() -> None:
    with pytest.raises(ConfigError, match=r"'unipcc' is not one of unipc, euler, dpm\+\+.*'unipc'"):
        schedule("unipcc", 3.0, 4)  # type: ignore[arg-type]
