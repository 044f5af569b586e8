"""Rehearses a row's whole way through a schedule, its leaps fitted on the way, without a forward.

A recorded row's latents and velocities are a basis: what a leap makes is a sum of them, the same
sum for all rows, and its distance from the row's own latents follows from their Gram matrix. A
velocity is taken to be the recorded one, and off by NOISE times as much (in mean squares) as the
latents that it is asked at, in a direction of its own. So a schedule's end error costs
milliseconds, and its steps can be moved to where that is least (`moved`).

This holds for rows of one branch. With guidance the errors of the two branches are alike, the more
so the later the step (on the embedded model their correlation rises from 0.3 to 0.97), and
guidance multiplies their difference: what was proposed then ended further off than what it began
with. So other rows have one candidate, by the local errors alone.

Needs numpy, imported where it is used: planning reads this room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from batchgen.caches.fitting import (
    BETA,
    HEAVIER,
    Course,
    LocalErrors,
    search,
    solve,
    weights,
    worth,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

NOISE = 10.0  # on the embedded model 6 in the median over rows, 36 at the 90th percentile
MOST = 500  # schedules that are looked at
_GAIN = 1e-3  # dB: of less no schedule is better
_WEAK = 3  # steps of least use that are tried elsewhere
_TINY = 1e-14  # mean square of rounding

Steps = tuple[int, ...]


def most_schedules(branches: int) -> int:
    """Candidates for rows of so many branches, at most."""
    return 3 if branches == 1 else 1


def schedules(
    course: Course, errors: LocalErrors, grams: Array, count: int, depth: int, branches: int
) -> list[Steps]:
    """Candidates of `count` computed steps; of several the fit that ends nearest is kept. `grams`:
    (rows, n, n), as in `fitting`; `depth`: latents and velocities that a leap takes; `branches`:
    of the rows, whose guided velocity `course` may have. Empty if no gaps connect so few."""
    betas = (BETA, HEAVIER) if branches == 1 else (BETA,)
    found = [steps for beta in betas if (steps := search(course, errors, count, beta))]
    if found and branches == 1:
        begin = max(found, key=lambda steps: worth(end_errors(course, grams, steps, depth)))
        found.append(moved(course, grams, begin, depth))
    return list(dict.fromkeys(found))


def moved(course: Course, grams: Array, steps: Steps, depth: int) -> Steps:
    """As many steps, those of `course.must` among them, from which rows are rehearsed to end
    nearest: one step at a time is moved while that helps. `grams`: (rows, n, n), as in `fitting`;
    `depth`: latents and velocities that a leap takes."""
    known: dict[Steps, float] = {}

    def value(some: Steps) -> float:
        if some not in known:
            known[some] = worth(end_errors(course, grams, some, depth))
        return known[some]

    while len(known) < MOST:
        best = value(steps) + _GAIN
        onward = next((near for near in _near(course, steps, value) if value(near) > best), None)
        if onward is None:
            break
        steps = onward
    return steps


def _near(course: Course, steps: Steps, value: Callable[[Steps], float]) -> Iterator[Steps]:
    """Schedules that differ in one step: moved by one, then any of those of least use elsewhere."""
    free = [step for step in steps if step not in course.must]
    for step in free:
        yield from _placed(course, steps, step, (step - 1, step + 1))
    for step in sorted(free, key=lambda step: -value(_without(steps, step)))[:_WEAK]:
        yield from _placed(course, steps, step, range(course.steps))


def _placed(
    course: Course, steps: Steps, step: int, places: tuple[int, ...] | range
) -> Iterator[Steps]:
    for place in places:
        if 0 <= place < course.steps and place not in steps:
            yield tuple(sorted((*_without(steps, step), place)))


def _without(steps: Steps, step: int) -> Steps:
    return tuple(other for other in steps if other != step)


def end_errors(course: Course, grams: Array, steps: Steps, depth: int) -> Array:
    """Mean square of each row at the end, its leaps fitted to all rows as in `engine.calibrate`."""
    import numpy as np

    size, rows = grams.shape[1], len(grams)
    noises = np.zeros((rows, len(steps) * course.branches))  # mean squares

    def unit(place: int) -> Array:
        row = np.zeros(size + noises.shape[1])
        row[place] = 1.0
        return row

    xs, used, errors = [unit(course.state(0))], 0, np.zeros(rows)
    answers: list[list[Array]] = []
    for step, onward in pairwise((*steps, course.steps)):
        if step in course.starts:
            xs, answers = xs[:1], []
        given = [unit(place) for place in course.velocities(step)]
        for velocity in given:
            velocity[size + used] = 1.0
            noises[:, used] = NOISE * errors
            used += 1
        answers = [given, *answers][:depth]
        differences = [newer - older for newer, older in pairwise(xs[: len(answers)])]
        terms = [xs[0], *differences, *(v for age in answers for v in age)]
        basis = np.array([*terms, unit(course.state(onward))])
        products = _products(basis, grams, noises, used)
        gram = np.tensordot(weights(errors) / rows, products, 1)
        coefs = solve(gram[:-1, :-1], gram[:-1, -1])
        xs = [coefs @ basis[:-1], *xs][:depth]
        left = np.append(coefs, -1.0)
        errors = np.maximum((products @ left) @ left, _TINY)
    return errors


def _products(basis: Array, grams: Array, noises: Array, used: int) -> Array:
    """Of each row the mean products of any two of the sums."""
    size = grams.shape[1]
    recorded, off = basis[:, :size], basis[:, size : size + used]
    found: Array = (recorded @ grams) @ recorded.T + (off * noises[:, None, :used]) @ off.T
    return found
