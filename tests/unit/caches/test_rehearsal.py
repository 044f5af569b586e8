"""What a row's way through a schedule is rehearsed to end at, against rows that go it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from batchgen.caches.fitting import Course, local_errors, solve, weights, worth
from batchgen.caches.rehearsal import end_errors, most_schedules, moved, schedules

STEPS, ROWS, SIZE, DEPTH = 9, 4, 40, 3


def tensors(course: Course, seed: int = 0) -> np.ndarray:
    """(rows, n, size): states and velocities that are smooth curves, and a little noise."""
    random = np.random.default_rng(seed)
    way = np.linspace(0, 1, course.steps + 1)
    places = np.concatenate([way, *[way[:-1] + 0.01 * b for b in range(course.branches)]])
    curves = np.stack([places**power for power in range(6)], 1)
    made = np.einsum("np,rps->rns", curves, random.normal(size=(ROWS, 6, SIZE)))
    return np.asarray(made + 1e-3 * random.normal(size=made.shape))


def grams(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("ras,rbs->rab", rows, rows) / SIZE)


def gone(course: Course, rows: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """The leaps on the tensors themselves, where every velocity is the recorded one."""
    xs, answers, off = [rows[:, 0]], list[list[np.ndarray]](), np.zeros(len(rows))
    for step, onward in pairwise((*steps, course.steps)):
        if step in course.starts:
            xs, answers = xs[:1], []
        answers = [[rows[:, place] for place in course.velocities(step)], *answers][:DEPTH]
        older = xs[: len(answers)]
        differences = [new - old for new, old in pairwise(older)]
        terms = np.stack([xs[0], *differences, *(v for age in answers for v in age)])
        scaled = terms * np.sqrt(weights(off) / len(rows) / SIZE)[None, :, None]
        target = rows[:, onward] * np.sqrt(weights(off) / len(rows) / SIZE)[:, None]
        gram = np.einsum("ars,brs->ab", scaled, scaled)
        coefs = solve(gram, np.einsum("ars,rs->a", scaled, target))
        xs = [np.tensordot(coefs, terms, 1), *xs][:DEPTH]
        off = np.square(xs[0] - rows[:, onward]).mean(1)
    return off


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("starts", [(0,), (0, 4)])
def test_rows_whose_velocities_are_never_off_end_where_they_are_rehearsed_to(
    branches: int, starts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchgen.caches.rehearsal.NOISE", 0.0)
    course = Course(STEPS, branches, starts, starts)
    rows = tensors(course)
    found = end_errors(course, grams(rows), (0, 2, 4, 7), DEPTH)
    assert np.allclose(found, gone(course, rows, (0, 2, 4, 7)), rtol=1e-4)


def test_velocities_that_are_off_leave_rows_further_off(monkeypatch: pytest.MonkeyPatch) -> None:
    course = Course(STEPS, 1)
    products, ends = grams(tensors(course)), []
    for noise in (0.0, 1.0, 100.0):
        monkeypatch.setattr("batchgen.caches.rehearsal.NOISE", noise)
        ends.append(end_errors(course, products, (0, 3, 6), DEPTH).mean())
    assert ends[0] < ends[1] < ends[2]


@pytest.mark.parametrize("starts", [(0,), (0, 4)])
def test_moved_steps_end_nearer_and_keep_what_must_be_computed(starts: tuple[int, ...]) -> None:
    course = Course(STEPS, 1, starts, (*starts, 7))
    products = grams(tensors(course))
    begin = tuple(sorted({*course.must, 1, 2}))
    found = moved(course, products, begin, DEPTH)
    assert len(found) == len(begin) and set(course.must) <= set(found)
    before, after = (worth(end_errors(course, products, s, DEPTH)) for s in (begin, found))
    assert found != begin and after > before
    assert moved(course, products, found, DEPTH) == found


@pytest.mark.parametrize("branches", [1, 2])
def test_candidates_have_the_count_and_what_must_be_computed(branches: int) -> None:
    """Rows of two branches have one, by the local errors alone."""
    course = Course(STEPS, branches, (0, 4), (0, 4, 7))
    products = grams(tensors(course))
    errors = local_errors(course, products)
    for count in range(len(course.must), STEPS + 1):
        found = schedules(course, errors, products, count, DEPTH, branches)
        assert 1 <= len(found) == len({*found}) <= most_schedules(branches)
        for steps in found:
            assert len(steps) == count and set(course.must) <= set(steps)
            assert list(steps) == sorted({*steps}) and steps[-1] < STEPS
    short = local_errors(course, products, reach=1)
    assert schedules(course, short, products, 4, DEPTH, branches) == []
