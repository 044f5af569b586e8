"""The maths of the planned strategy: from recorded rows to the steps that are worth computing, and
to the coefficients that cross the gaps between them.

All that is taken from a recorded row is its Gram matrix: the mean products of any two of its
tensors, which are, in this order, the latents at every step and at the end, then the velocities at
every step, branch after branch (`matrix`). From it follow, without a further forward:

- the local error of every gap, crossed from the latents, this velocity and the one before by least
  squares over all rows (`local_errors`);
- the steps of least total error, weighted by how much an error there moves the end (`search`).

Needs numpy, imported where it is used: planning reads this room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

RIDGE = 1e-10  # relative to each feature's own power
REACH = 12  # steps of the longest gap, where there are enough computed ones
BETA = 0.5  # weight of errors before correction
_ROUNDS = 6  # of weighing rows by their errors
_TINY, _FLOOR = 1e-14, 1e-7  # mean squares: of rounding, and below which no error is seen


@dataclass(frozen=True, slots=True)
class Course:
    """The steps that a schedule is searched in."""

    steps: int
    branches: int  # velocities of one step: of each branch, or 1 for the guided one
    starts: tuple[int, ...] = (0,)  # the first step of each expert: nothing older counts there
    must: tuple[int, ...] = (0,)  # computed in any case; no gap crosses one

    def state(self, step: int) -> int:
        """Place of the latents at a step in a recorded row's Gram matrix."""
        return step

    def velocities(self, step: int) -> list[int]:
        """Places of the velocities at a step."""
        first = self.steps + 1
        return [first + branch * self.steps + step for branch in range(self.branches)]

    def end(self, step: int) -> int:
        """The furthest step that a gap from `step` may reach."""
        return min((must for must in self.must if must > step), default=self.steps)


@dataclass(frozen=True, slots=True, eq=False)
class LocalErrors:
    """Mean squares, (older step + 1, step, next step, row), infinite where there is no such gap:
    predicted from what is known at the step, and corrected by the velocity at the next."""

    predicted: Array
    corrected: Array


def local_errors(course: Course, grams: Array, reach: int = REACH) -> LocalErrors:
    """Of every gap of up to `reach` steps; `grams`: (rows, n, n)."""
    import numpy as np

    shape = (course.steps + 1, course.steps, course.steps + 1, len(grams))
    errors = LocalErrors(np.full(shape, np.inf), np.full(shape, np.inf))
    for step in range(course.steps):
        nexts = range(step + 1, min(course.end(step), step + reach) + 1)
        fresh = step in course.starts
        for older in [-1] if fresh else range(max(0, step - reach), step):
            points = [step] if fresh else [older, step]
            target = slice(None) if fresh else older + 1  # whatever came before it
            for onward in nexts:
                known = [course.state(step), *(v for p in points for v in course.velocities(p))]
                predicted = _error(grams, known, course.state(onward))
                errors.predicted[target, step, onward] = predicted
                errors.corrected[target, step, onward] = predicted
                if onward < course.steps and onward not in course.starts:
                    known = [*known, *course.velocities(onward)]
                    corrected = _error(grams, known, course.state(onward))
                    errors.corrected[target, step, onward] = corrected
    return errors


def _error(grams: Array, known: list[int], target: int) -> Array:
    """Of each row: what the least squares over all rows leave of the target."""
    import numpy as np

    places = [*known, target]
    parts = grams[:, places][:, :, places]
    mean = parts.mean(0)
    coefs = np.append(solve(mean[:-1, :-1], mean[:-1, -1]), -1.0)
    left: Array = np.maximum((parts @ coefs) @ coefs, _TINY)
    return left


def solve(gram: Array, moment: Array) -> Array:
    """Least squares by normal equations with a ridge: coefficients of features whose products with
    each other are `gram`, and with the target `moment`."""
    import numpy as np

    scale = np.sqrt(np.diag(gram)) + 1e-30
    scaled = gram / scale[:, None] / scale[None] + RIDGE * np.eye(len(scale))
    found: Array = np.linalg.solve(scaled, moment / scale) / scale
    return found


def weights(errors: Array) -> Array:
    """Of rows in a fit: 1 / error, with a mean of one, so that a row that is far off already, as
    one that turned into another picture, does not rule it."""
    raw: Array = 1 / (errors + 1e-8)
    scaled: Array = raw / raw.mean()
    return scaled


# ---------------------------------------------------------------------------------------- schedule
def search(course: Course, errors: LocalErrors, count: int) -> tuple[int, ...]:
    """The `count` steps of least total error; rows weigh less the worse they are. Empty if no gaps
    of the reach connect so few."""
    import numpy as np

    moved = _sensitivity(course.steps)[:, None]
    with np.errstate(invalid="ignore"):
        squares = (errors.corrected + BETA**2 * errors.predicted) * moved**2
    rows = np.ones(squares.shape[-1])
    steps: tuple[int, ...] = ()
    for _ in range(_ROUNDS):
        steps = _cheapest(squares @ (rows / rows.sum()), count)
        if not steps:
            return ()
        path = (-1, *steps, course.steps)
        total = sum(
            squares[older + 1, step, onward]
            for older, step, onward in zip(path, path[1:], path[2:], strict=False)
        )
        rows = (total + _FLOOR) ** -0.5
    return steps


def _sensitivity(steps: int) -> Array:
    """How much an error at a step moves the end: measured on the embedded model, steep at the
    start."""
    import numpy as np

    way = np.arange(steps + 1) / steps
    moved: Array = 0.55 + 6.5 * np.exp(-way / 0.15)
    return moved


def _cheapest(cost: Array, count: int) -> tuple[int, ...]:
    """The path 0 = s_1 < ... < s_count of least sum of cost[s_{k-1} + 1, s_k, s_{k+1}], where it
    ends at the last axis' last place: dynamic programming over (older, step)."""
    import numpy as np

    steps = cost.shape[1]
    best = np.full((steps + 1, steps), np.inf)
    best[0, 0] = 0.0
    back: list[Any] = []
    for _ in range(count - 1):
        total = best[:, :, None] + cost[:, :, :steps]  # older + 1, step, next
        back.append(total.argmin(0))
        best = np.full_like(best, np.inf)
        best[1:] = total.min(0)
    ends = best + cost[:, :, steps]
    if not np.isfinite(ends.min()):
        return ()
    older, step = divmod(int(ends.argmin()), steps)
    path = [step]
    for choice in reversed(back):  # (older, step) was reached from (choice, older)
        older, step = int(choice[older - 1, step]), older - 1
        path.append(step)
    return tuple(reversed(path))


def decibels(squares: Array, peak: float = 8.0, floor: float = 60.0) -> Sequence[float]:
    """PSNR of latents in dB for a fixed range, softly capped at `floor`: what lies above cannot be
    seen."""
    import numpy as np

    capped: list[float] = (-10 * np.log10(squares / peak**2 + 10 ** (-floor / 10))).tolist()
    return capped
