"""The planned strategy: how many steps it computes, and when it follows a fit."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from batchgen.caches.strategies import planned
from batchgen.caches.strategy import Row, computed_count

STEPS = 20


def row(ratio: float, steps: int = STEPS, **changes: Any) -> Row:
    sigmas = tuple(1 - i / steps for i in range(steps + 1))
    values = {"warmup": 0, "cooldown": 0, "params": {}, "sigmas": sigmas}
    return Row(ratio=ratio, **(values | changes))


def table(*steps: int, starts: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """A fit over these steps that moves nothing."""
    leaps = [[[1.0], [[0.0, 0.0]]] for _ in steps]
    return {"steps": list(steps), "starts": list(starts), "leaps": leaps, "branches": 2}


FIT = table(0, 2, 4, 6, 8, 11, 14, 16, 18, 19)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50, 128])
def test_computed_steps_are_as_many_as_the_ratio_says(steps: int) -> None:
    before = steps
    for percent in range(101):
        found = planned.computed(row(percent / 100, steps), None)
        assert len(found) == computed_count(steps, percent / 100) <= before
        assert list(found) == sorted(set(found)) and found[0] == 0 and found[-1] < steps
        before = len(found)
    assert planned.computed(row(0.0, steps), None) == tuple(range(steps))


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8, 1.0])
def test_warmup_cooldown_and_expert_starts_are_computed(ratio: float) -> None:
    asked = row(ratio, 50, warmup=3, cooldown=2, starts=(0, 17))
    found = planned.computed(asked, None)
    assert {0, 1, 2, 17, 48, 49} <= set(found)
    assert len(found) == max(computed_count(50, ratio), 6)


def test_steps_are_denser_at_both_ends() -> None:
    found = planned.computed(row(0.7, 50), None)
    gaps = [after - before for before, after in pairwise(found)]
    middle = max(gaps[5:-3])
    assert middle > 2 * max(gaps[0], gaps[-1])


def test_a_row_follows_the_fit_of_its_count() -> None:
    path = planned.path(row(0.5), FIT)
    assert path.steps == tuple(FIT["steps"])
    assert path.leaps[0] == ((1.0,), ((0.0, 0.0),)) and len(path.leaps) == 10
    assert planned.expected(row(0.5), FIT) == 10.0


@pytest.mark.parametrize(
    ("asked", "fit"),
    [
        (row(0.6), FIT),  # another count
        (row(0.5, warmup=3), FIT),  # step 1 must be computed
        (row(0.5, cooldown=3), FIT),  # step 17
        (row(0.5, starts=(0, 8)), FIT),  # an expert begins in what the fit takes for one past
        (row(0.5), table(*FIT["steps"], starts=(0, 8))),  # or the fit begins anew where none does
        (row(0.5, 10), table(*range(0, 10, 2))),  # fits, to show that the others do not
        (row(0.0, 10), table(*range(10))),  # ratio 0 is the solver itself
    ],
)
def test_a_fit_for_other_rows_is_not_used(asked: Row, fit: dict[str, Any]) -> None:
    path = planned.path(asked, fit)
    fitting = asked.steps == 10 and asked.ratio > 0
    assert (path.leaps != ()) == fitting
    assert fitting or path == planned.path(asked, None)


def test_a_larger_ratio_never_computes_more() -> None:
    """Also where one of the ratios has a fit."""
    counts = [len(planned.computed(row(p / 100), FIT)) for p in range(101)]
    assert counts == sorted(counts, reverse=True)
