"""Thinned schedules: the solver over some of its steps, and fitted leaps between them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from batchgen.engine.rows.snapshot import pack, unpack
from batchgen.numerics.solver import (
    SOLVERS,
    History,
    LeapCoefs,
    leap,
    leaps,
    over,
    schedule,
    step,
    table,
)
from batchgen.request import Solver

SHAPE = (1, 4, 2, 3, 3)
STEPS = (0, 1, 3, 6, 8)
# of the first step, of the second, and of all that have three latents behind them
FITTED: tuple[LeapCoefs, ...] = (
    ((0.9,), ((0.1, -0.2),)),
    ((0.8, 0.3), ((0.1, 0.2), (0.05, -0.02))),
    *3 * (((0.7, 0.3, -0.1), ((0.1, 0.2), (0.05, -0.02), (0.03, 0.01))),),
)


def noise(seed: int, count: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("solver", SOLVERS)
def test_all_steps_are_the_schedule_itself(solver: Solver) -> None:
    whole = schedule(solver, 3.0, 9)
    assert over(whole, tuple(range(9))) is whole


@pytest.mark.parametrize("solver", SOLVERS)
def test_over_some_steps_a_constant_field_is_integrated_exactly(solver: Solver) -> None:
    """The end is the whole schedule's, whichever steps are left out."""
    data, start = torch.full((1, 2), 0.25), torch.full((1, 2), -1.5)
    for steps in (STEPS, (0,), (0, 8), (0, 1, 2)):
        thin, history = over(schedule(solver, 3.0, 9), steps), History()
        x = torch.lerp(data, start, thin.coefs[0].sigma)
        for coefs in thin.coefs:
            x, history = step(coefs, x, start - data, history)
        assert torch.allclose(x, data, atol=1e-5), steps


def test_over_some_steps_is_the_solvers_table_of_their_sigmas() -> None:
    whole = schedule("unipc", 3.0, 9)
    thin = over(whole, STEPS)
    chosen = [*STEPS, 9]
    assert torch.equal(thin.sigmas, whole.sigmas[chosen])
    assert torch.equal(thin.timesteps, whole.timesteps[list(STEPS)])
    same = table("unipc", whole.sigmas[chosen], whole.timesteps[list(STEPS)])
    x, history, twin, twins = *noise(1), History(), *noise(1), History()
    for velocity, mine, theirs in zip(noise(2, 5), thin.coefs, same.coefs, strict=True):
        x, history = step(mine, x, velocity, history)
        twin, twins = step(theirs, twin, velocity, twins)
    assert torch.equal(x, twin)


def test_a_leap_is_the_sum_that_its_coefficients_say() -> None:
    thin = leaps(schedule("unipc", 3.0, 9), STEPS, FITTED)
    assert len(thin) == len(thin.leaps) == 5 and thin.leaps[0].branches == 2
    (x,), history = noise(1), History()
    xs, answers = [x.double()], []
    for number, coefs in enumerate(thin.leaps):
        given = noise(10 + number, 2)
        x, history = leap(coefs, x, given, history)
        answers.insert(0, [v.double() for v in given])
        states, velocities = FITTED[number]
        change = [xs[0], *(newer - older for newer, older in pairwise(xs))]
        due = sum(a * t for a, t in zip(states, change, strict=False))
        for scales, age in zip(velocities, answers, strict=False):
            due = due + sum(a * v for a, v in zip(scales, age, strict=True))
        assert torch.allclose(x.double(), due, atol=1e-5)
        xs.insert(0, x.double())
    assert len(history.latents) == len(history.velocities) == 2


def test_a_leap_of_few_coefficients_forgets_the_past() -> None:
    first = leaps(schedule("unipc", 3.0, 9), STEPS, FITTED).leaps[0]
    (x,), given = noise(1), noise(2, 2)
    past = History(latents=tuple(noise(3, 2)), velocities=(tuple(noise(4, 2)),) * 2)
    assert torch.equal(leap(first, x, given, past)[0], leap(first, x, given, History())[0])


def test_latents_keep_float32_under_half_precision_velocities() -> None:
    thin = leaps(schedule("unipc", 3.0, 9), STEPS, FITTED)
    (x,), history = noise(1), History()
    for coefs in thin.leaps:
        half = [v.bfloat16() for v in noise(2, 2)]
        assert leap(coefs, x, half, history)[0].dtype == torch.float32
        exact = leap(coefs, x, [v.float() for v in half], history)[0]
        x, history = leap(coefs, x, half, history)
        assert torch.equal(x, exact)


def test_as_many_leaps_as_steps() -> None:
    with pytest.raises(ValueError, match="4 leaps for 5 steps"):
        leaps(schedule("unipc", 3.0, 9), STEPS, FITTED[:4])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("saved", range(5))
def test_a_saved_row_goes_on_to_the_bit(saved: int, half: bool) -> None:
    """Through a snapshot after any step, with velocities of either precision."""
    thin = leaps(schedule("unipc", 3.0, 9), STEPS, FITTED)
    answers = [noise(20 + i, 2) for i in range(5)]
    if half:
        answers = [[v.bfloat16() for v in given] for given in answers]
    ends = []
    for through in (False, True):
        (x,), history = noise(1), History()
        for number, coefs in enumerate(thin.leaps):
            if through and number == saved:
                state = pack(number, x, history, {}, 0.0)
                x, history, _ = unpack(state, torch.device("cpu"))
            x, history = leap(coefs, x, answers[number], history)
        ends.append(x)
    assert torch.equal(*ends)
