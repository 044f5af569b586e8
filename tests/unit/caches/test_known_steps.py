"""Strategies whose computed steps are known: the published counts, and what the rest is made of."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from cache_walk import SHAPES, Walk, drawn, row, sigmas, smooth

from batchgen.caches.memory import Recent
from batchgen.caches.spread import spread
from batchgen.caches.strategies import meancache, taylorseer, uniform
from batchgen.caches.strategy import computed_count
from batchgen.errors import ConfigError


def test_steps_are_spread_evenly_between_those_that_must_be() -> None:
    assert spread(row(10, cooldown=1), 4) == (0, 3, 6, 9)
    assert spread(row(10), 2) == (0, 5)  # the gap to the end is like the others
    assert spread(row(10, warmup=3, cooldown=2), 2) == (0, 1, 2, 8, 9)  # more than asked for
    assert spread(row(12, starts=(0, 6)), 4) == (0, 3, 6, 9)
    assert spread(row(7, ratio=0.0), 2) == tuple(range(7))


def test_spread_meets_any_count_with_even_gaps() -> None:
    for steps, warmup in product(range(1, 61), (0, 5)):
        of = row(steps, warmup=min(warmup, steps - 1), cooldown=min(1, steps - 1))
        for count in range(of.warmup + 2, steps + 1):
            chosen = spread(of, count)
            gaps = [b - a for a, b in pairwise(chosen)][max(0, of.warmup - 1) :]
            assert len(chosen) == count
            assert max(gaps, default=1) - min(gaps, default=1) <= 1


def test_uniform_reuses_the_last_value() -> None:
    of = row(10, ratio=0.7)
    done = Walk(of, uniform.FACTS, lambda: uniform.branch(of, None)).whole()
    assert done.computed == [0, 3, 7]
    for step, predicted in done.predicted.items():
        last = max(c for c in done.computed if c < step)
        assert torch.equal(predicted, smooth("output", last + 100))


@pytest.mark.parametrize(("threshold", "count"), [(2, 30), (3, 23), (5, 18)])
def test_published_counts_of_taylorseer(threshold: int, count: int) -> None:
    of = row(50, warmup=7, cooldown=3, params={"fresh_threshold": threshold})
    steps = taylorseer.computed(of, None)
    assert len(steps) == count
    assert steps[7] == 6 + threshold  # counted from the last step of the warm-up


def test_first_enhance_is_a_warmup_of_the_published_rule() -> None:
    of = row(20, params={"fresh_threshold": 5, "first_enhance": 3})
    assert taylorseer.computed(of, None) == (0, 1, 2, 7, 12, 17)


def test_a_ratio_gives_taylorseer_exactly_its_count() -> None:
    for steps, ratio in product((20, 40, 50, 60), (0.3, 0.5, 0.58, 0.7)):
        of = row(steps, ratio, warmup=3, cooldown=1)
        assert len(taylorseer.computed(of, None)) == computed_count(steps, ratio)


@pytest.mark.parametrize(("order", "degree"), [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)])
def test_taylorseer_predicts_polynomials_up_to_its_order_exactly(order: int, degree: int) -> None:
    factors = [drawn("output", seed).double() for seed in range(degree + 1)]

    def value(step: int) -> torch.Tensor:
        return sum(factor * step**power for power, factor in enumerate(factors))

    of = row(31, ratio=0.6, warmup=3, params={"order": order})
    done = Walk(of, taylorseer.FACTS, lambda: taylorseer.branch(of, None), value).whole()
    assert len(done.predicted) > 10
    for step, predicted in done.predicted.items():
        assert torch.allclose(predicted, value(step), rtol=1e-12, atol=1e-9)


def test_taylorseer_of_order_1_is_the_published_formula() -> None:
    of = row(20, ratio=0.6, params={"order": 1})
    done = Walk(of, taylorseer.FACTS, lambda: taylorseer.branch(of, None)).whole()
    for step, predicted in done.predicted.items():
        *older, last = [smooth("output", s + 100) for s in done.computed if s < step]
        at = max(s for s in done.computed if s < step)
        slope = torch.zeros_like(last)
        if older:
            slope = (last - older[-1]) / (at - max(s for s in done.computed if s < at))
        assert torch.allclose(predicted, last + (step - at) * slope, atol=1e-5)


@pytest.mark.parametrize(
    ("strategy", "params", "reason"),
    [
        (taylorseer, {"order": 1.5}, "order 1.5 is not a whole number"),
        (taylorseer, {"fresh_threshold": 2.5}, "fresh_threshold 2.5 is not a whole number"),
        (meancache, {"use_jvp": 0.5}, "use_jvp 0.5 is not a whole number"),
        (meancache, {"fresh_steps": 20}, "fresh_steps 20 is not one of 10, 17, 25, 30"),
    ],
)
def test_knobs_that_cannot_be_used_are_refused_when_planned(
    strategy: Any, params: dict[str, float], reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(reason)}$"):
        strategy.expected(row(50, params=params), None)


@pytest.mark.parametrize("count", [10, 17, 25, 30])
def test_published_tables_of_meancache(count: int) -> None:
    """By their name, and by the ratio that allows them."""
    named = meancache.computed(row(50, ratio=1.0, params={"fresh_steps": count}), None)
    assert len(named) == count and named[0] == 0 and named[-1] == 49
    for allowed in (count, count + 1):
        assert meancache.computed(row(50, ratio=1 - allowed / 50), None) == named


def test_meancache_takes_its_smallest_table_where_none_is_small_enough() -> None:
    assert len(meancache.computed(row(50, ratio=1.0), None)) == 10


def test_scaled_tables_of_meancache_keep_their_places() -> None:
    assert meancache.computed(row(50, params={"fresh_steps": 10}), None) == (
        *(0, 1, 3, 7, 14, 21, 28, 35, 42, 49),
    )
    of = row(99, params={"fresh_steps": 10})
    assert meancache.computed(of, None) == (0, 2, 6, 14, 28, 42, 56, 70, 84, 98)
    for steps, ratio in product(range(1, 61), (0.4, 0.5, 0.6)):
        steps_of = meancache.computed(row(steps, ratio), None)
        assert steps_of[0] == 0 and steps_of[-1] == steps - 1


@pytest.mark.parametrize("count", [10, 17, 25, 30])
def test_under_euler_steps_meancache_predicts_the_published_formula(count: int) -> None:
    """There the average velocity is the way of the latents by that of sigma."""
    of = row(50, params={"fresh_steps": count})
    cache, s, table = meancache.branch(of, None), sigmas(50), meancache.TABLES[count]
    latents, velocities = [drawn("latents", 7).double()], list[torch.Tensor]()
    for step in range(50):
        if step in table.steps:
            velocities.append(smooth("output", step).double())
            cache.note(step, latents[step], velocities[step])
        else:
            back = step - table.spans.get(max(f for f in table.steps if f < step), 1)
            average = (latents[step] - latents[back]) / (s[step] - s[back])
            jvp = (velocities[back] - average) / (s[step] - s[back])
            velocities.append(cache.predict(step, latents[step]))
            published = velocities[step - 1] - jvp * (s[step + 1] - s[step])
            assert torch.allclose(velocities[step], published, rtol=1e-9, atol=1e-9)
        latents.append(latents[step] + (s[step + 1] - s[step]) * velocities[step])


def test_meancache_follows_the_angle_of_the_noise_of_diffusion() -> None:
    flow = row(50, params={"fresh_steps": 25})
    diffusion = replace(flow, sigmas=tuple(map(math.sin, flow.sigmas)), diffusion=True)
    ends = [
        Walk(of, meancache.FACTS, lambda of=of: meancache.branch(of, None)).whole()
        for of in (flow, diffusion)
    ]
    assert len(ends[0].predicted) == 25
    for step, predicted in ends[0].predicted.items():
        assert torch.allclose(predicted, ends[1].predicted[step], atol=1e-5)


def test_meancache_without_a_slope_reuses() -> None:
    of = row(50, ratio=0.8, params={"use_jvp": 0})
    done = Walk(of, meancache.FACTS, lambda: meancache.branch(of, None)).whole()
    assert torch.equal(done.predicted[20], smooth("output", 114))


def test_a_repeated_step_changes_nothing() -> None:
    """A forward that is tried again notes its step again."""
    once, twice = Recent({0, 2}, keep=2), Recent({0, 2}, keep=2)
    for step in (0, 2):
        value = torch.full(SHAPES["output"], float(step))
        once.note(step, value, value)
        for _ in range(2):
            twice.note(step, value, value)
    assert once.tensors().keys() == twice.tensors().keys() == {"0.0", "2.0"}
