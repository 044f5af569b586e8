"""What every file of batchgen/caches/strategies must keep. The folder is the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise, product
from typing import Any, get_args

import pytest
import torch
from cache_walk import SHAPES, Walk, row

from batchgen.caches.strategy import Facts, Kind, Reuses, Row, Signal, names, strategy
from batchgen.caches.tables import shipped

RATIOS = [i / 20 for i in range(21)]
EXPERTS = (0, 13)


def table_of(name: str) -> Mapping[str, Any] | None:
    """One that is shipped, for a strategy that does not go without."""
    if strategy(name).FACTS.table != "needed":
        return None
    return next(entry for entry in shipped().entries if entry.key.strategy == name).content


def facts_of(name: str) -> Facts:
    return strategy(name).FACTS


def walk(name: str, of: Row) -> Walk:
    return Walk(of, facts_of(name), lambda: strategy(name).branch(of, table_of(name)))


def walked() -> list[str]:
    """The strategies whose branches reuse a single tensor, whatever the blocks are."""
    return [n for n in names() if facts_of(n).reuses in SHAPES and facts_of(n).kind != "planned"]


def rows() -> list[Row]:
    """Rows of all lengths, some of whose first and last steps must be computed."""
    edges = [(0, 0), (1, 0), (0, 1), (5, 5)]
    return [row(n, warmup=w, cooldown=c) for n in range(1, 61) for w, c in edges if w + c < n]


def at(ratio: float, of: Row) -> Row:
    return replace(of, ratio=ratio)


def test_the_strategies_are_found() -> None:
    assert {"uniform", "taylorseer", "meancache", "easycache"} <= set(names())


@pytest.mark.parametrize("name", names())
def test_facts_are_legal(name: str) -> None:
    facts = facts_of(name)
    assert facts.kind in get_args(Kind) and facts.reuses in get_args(Reuses)
    assert facts.signal in get_args(Signal) and facts.table in ("", "used", "needed")
    assert (facts.kind == "planned") == (facts.reuses == "path")
    assert facts.warmup >= 0 and facts.cooldown >= 0
    for knob, legal in facts.params.items():
        assert knob.isidentifier() and knob == knob.lower()
        assert legal.low is not None, f"{knob}: any number at all is legal"
        assert legal.high is None or legal.low < legal.high


@pytest.mark.parametrize("name", names())
def test_a_ratio_of_0_computes_everything(name: str) -> None:
    for of in rows():
        exact = at(0.0, of)
        assert strategy(name).expected(exact, table_of(name)) == of.steps
        known = strategy(name).computed(exact, table_of(name))
        assert known is None or known == tuple(range(of.steps))
    if name in walked():
        assert walk(name, row(20, ratio=0.0)).whole().computed == list(range(20))


@pytest.mark.parametrize("name", names())
def test_what_is_computed_never_rises_with_the_ratio(name: str) -> None:
    for of in rows():
        expected = [strategy(name).expected(at(ratio, of), table_of(name)) for ratio in RATIOS]
        assert all(0 < after <= before <= of.steps for before, after in pairwise(expected)), of


@pytest.mark.parametrize("name", [n for n in names() if facts_of(n).data_free])
def test_known_steps_are_those_that_are_computed(name: str) -> None:
    """In order, with all that must be computed, and as many as expected."""
    for of, ratio in product(rows(), (0.3, 0.5, 1.0)):
        known = strategy(name).computed(at(ratio, of), table_of(name))
        assert known is not None and list(known) == sorted(set(known) & set(range(of.steps)))
        assert {step for step in range(of.steps) if at(ratio, of).must(step)} <= set(known)
        if facts_of(name).kind != "partial":
            assert strategy(name).expected(at(ratio, of), table_of(name)) == len(known)
    if name in walked():
        of = row(24, warmup=2, cooldown=1, starts=EXPERTS)
        known = strategy(name).computed(of, table_of(name))
        assert tuple(walk(name, of).whole().computed) == known


@pytest.mark.parametrize("name", walked())
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_first_last_and_experts_first_steps_are_computed(name: str, ratio: float) -> None:
    of = row(26, ratio, warmup=2, cooldown=3, starts=EXPERTS)
    done = walk(name, of).whole()
    assert {0, 1, 13, 23, 24, 25} <= set(done.computed)
    assert sorted([*done.computed, *done.predicted]) == list(range(26))


@pytest.mark.parametrize("name", walked())
def test_any_number_of_steps_is_walked(name: str) -> None:
    shape = SHAPES[facts_of(name).reuses]
    for steps in (1, 2, 3, 4, 7, 20, 33, 60):
        for ratio, branch in product((0.1, 0.6, 1.0), (0, 1)):
            done = walk(name, row(steps, ratio, branch=branch)).whole()
            assert 0 in done.computed
            assert all(tensor.shape == shape for tensor in done.predicted.values())
            assert all(tensor.isfinite().all() for tensor in done.predicted.values())


@pytest.mark.parametrize("name", walked())
def test_something_is_saved(name: str) -> None:
    assert walk(name, row(50, ratio=0.9)).whole().predicted


@pytest.mark.parametrize("name", walked())
def test_a_restored_branch_goes_on_bit_equal(name: str) -> None:
    """At whichever step of the row; the numbers pass through JSON."""
    of = row(26, ratio=0.6, warmup=2, starts=EXPERTS)
    plain = walk(name, of).whole()
    assert plain.predicted
    for step, branch in walk(name, of).steps():
        copy = strategy(name).branch(of, table_of(name))
        numbers = json.loads(json.dumps(branch.numbers(), allow_nan=False))
        copy.restore({key: each.clone() for key, each in branch.tensors().items()}, numbers)
        restored = walk(name, of)
        rest = range(step, EXPERTS[1] if step < EXPERTS[1] else of.steps)  # of this branch
        for later in rest:
            restored.step(copy, later)
        assert restored.computed == [later for later in plain.computed if later in rest]
        for later, tensor in restored.predicted.items():
            assert torch.equal(tensor, plain.predicted[later])


@pytest.mark.parametrize("name", walked())
def test_tensors_once_given_stay_as_they_are(name: str) -> None:
    """They may be on their way into a snapshot while the row goes on."""
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    for _, branch in walk(name, row(12, ratio=0.6)).steps():
        assert all(torch.equal(tensor, copy) for tensor, copy in given)
        given += [(tensor, tensor.clone()) for tensor in branch.tensors().values()]
    assert given
