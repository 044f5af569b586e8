"""The search for the steps worth computing, against trying them all."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from batchgen.caches.fitting import (
    Course,
    _cheapest,
    _sensitivity,
    decibels,
    local_errors,
    search,
    solve,
    weights,
)

STEPS, ROWS, SIZE = 9, 3, 40


def grams(course: Course, seed: int = 0) -> np.ndarray:
    """Of rows whose states and velocities are smooth curves through random directions."""
    random = np.random.default_rng(seed)
    count = course.steps + 1 + course.branches * course.steps
    way = np.concatenate(
        [
            np.linspace(0, 1, course.steps + 1),
            *[np.linspace(0, 1, course.steps + 1)[:-1] + 0.01 * b for b in range(course.branches)],
        ]
    )
    curves = np.stack([way**power for power in range(6)], 1)
    tensors = random.normal(size=(ROWS, 6, SIZE))
    made = np.einsum("np,rps->rns", curves, tensors)
    made += 1e-3 * random.normal(size=(ROWS, count, SIZE))
    return np.asarray(np.einsum("ras,rbs->rab", made, made) / SIZE)


@pytest.mark.parametrize("count", [1, 2, 4, 8, 9])
def test_the_cheapest_path_is_the_cheapest_of_all(count: int) -> None:
    cost = np.random.default_rng(count).random((STEPS + 1, STEPS, STEPS + 1))
    cost[:, np.tril(np.ones((STEPS, STEPS + 1), dtype=bool))] = np.inf  # no gap goes back

    def total(steps: tuple[int, ...]) -> float:
        path = (-1, *steps, STEPS)
        return float(
            sum(cost[a + 1, b, c] for a, b, c in zip(path, path[1:], path[2:], strict=False))
        )

    every = [(0, *rest) for rest in combinations(range(1, STEPS), count - 1)]
    assert _cheapest(cost, count) == min(every, key=total)


def test_steps_that_nothing_connects_are_none() -> None:
    course = Course(STEPS, 1)
    errors = local_errors(course, grams(course), reach=2)
    assert search(course, errors, 3) == ()
    found = search(course, errors, 5)
    assert max(np.diff([*found, STEPS])) <= 2


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("starts", [(0,), (0, 4)])
def test_what_must_be_computed_is_in_every_schedule(branches: int, starts: tuple[int, ...]) -> None:
    course = Course(STEPS, branches, starts, (*starts, 7))
    errors = local_errors(course, grams(course))
    for count in range(len(course.must), STEPS + 1):
        steps = search(course, errors, count)
        assert len(steps) == count and set(course.must) <= set(steps)


def test_nothing_before_an_experts_first_step_counts_there() -> None:
    """The error from it is the same wherever the row came from, and no velocity of one expert
    corrects a step of the other."""
    course = Course(STEPS, 2, (0, 4), (0, 4))
    errors = local_errors(course, grams(course))
    assert (errors.predicted[1:4, 4, 6] == errors.predicted[1, 4, 6]).all()
    assert (errors.corrected[:, :4, 4] == errors.predicted[:, :4, 4]).all()
    assert np.isinf(errors.predicted[:, 3, 5]).all()
    assert (errors.corrected[5, 4, 6] < errors.predicted[5, 4, 6]).all()


def test_a_gap_is_worse_the_longer_it_is() -> None:
    course = Course(STEPS, 1)
    errors = local_errors(course, grams(course))
    across = errors.predicted[2, 2, 3:].mean(-1)
    assert np.all(np.diff(across[:5]) > 0)


def test_solving_finds_the_coefficients_of_a_sum() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(4, 100)) * np.array([1, 1e-3, 10, 1])[:, None]
    found = solve(features @ features.T, features @ (np.array([0.5, 2, -1, 0.1]) @ features))
    assert np.allclose(found, [0.5, 2, -1, 0.1], rtol=1e-6)


def test_a_row_that_is_far_off_does_not_rule() -> None:
    found = weights(np.array([1e-4, 1e-4, 1.0]))
    assert np.isclose(found.mean(), 1)
    assert found[2] < 1e-3 * found[0]


def test_an_error_at_the_start_moves_the_end_more() -> None:
    assert np.all(np.diff(_sensitivity(50)) < 0)


def test_decibels_are_capped_softly() -> None:
    near, far = decibels(np.array([0.0, 64e-3]))
    assert np.isclose(near, 60) and np.isclose(far, 30, atol=0.01)
