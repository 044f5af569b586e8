"""easycache, held against its published rule on made-up latents."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from cache_walk import Walk, row, smooth

from batchgen.caches.knobs import threshold
from batchgen.caches.strategies import easycache
from batchgen.caches.strategy import Row
from batchgen.caches.tables import Key, shipped


def walk(of: Row, table: dict | None = None) -> Walk:
    return Walk(of, easycache.FACTS, lambda: easycache.branch(of, table)).whole()


def published(of: Row, threshold: float) -> list[int]:
    """The computed steps by the published loop: sums and rates as its authors keep them."""
    computed, rate, total = [], None, 0.0
    for step in range(of.steps):
        if of.must(step) or rate is None:
            compute = True
        else:
            last = smooth("output", computed[-1] + 100)
            moved = (smooth("latents", step) - smooth("latents", step - 1)).abs().mean()
            total += float(rate * moved / last.abs().mean())
            compute = total >= threshold
        if compute:
            total = 0.0
            if computed:
                before = computed[-1]
                change = smooth("output", step + 100) - smooth("output", before + 100)
                moved = smooth("latents", step) - smooth("latents", before)
                rate = change.abs().mean() / moved.abs().mean()
            computed.append(step)
    return computed


@pytest.mark.parametrize("threshold", [0.02, 0.05, 0.2])
def test_decisions_are_the_published_ones(threshold: float) -> None:
    of = row(50, warmup=10, cooldown=1, params={"threshold": threshold})
    done = walk(of)
    assert done.computed == published(of, threshold)
    assert done.predicted


def test_velocity_less_latents_is_reused() -> None:
    done = walk(row(50, ratio=0.9))
    for step, predicted in done.predicted.items():
        last = max(c for c in done.computed if c < step)
        offset = smooth("output", last + 100) - smooth("latents", last)
        assert torch.allclose(predicted, smooth("latents", step) + offset, atol=1e-6)


def test_the_ratio_gives_the_threshold_and_a_table_gives_it_better() -> None:
    half = walk(row(50, warmup=3)).computed
    assert half == walk(row(50, warmup=3, params={"threshold": 0.05})).computed
    table = {"thresholds": [[0.25, 0.1], [0.75, 0.3]]}
    by_table = walk(row(50, warmup=3), table).computed
    assert by_table == walk(row(50, warmup=3, params={"threshold": 0.2})).computed != half


def test_expected_reads_a_threshold_as_the_ratio_that_gives_it() -> None:
    table = {"thresholds": [[0.25, 0.1], [0.75, 0.3]]}
    assert easycache.expected(row(40, params={"threshold": 0.2}), table) == 20
    assert easycache.expected(row(40, params={"threshold": 0.05}), None) == 20
    assert easycache.expected(row(40, params={"threshold": 9.0}), None) == 1
    assert easycache.expected(row(40, warmup=30), None) == 30


def test_measured_thresholds_of_tiny_wan_are_found_and_rise() -> None:
    key = Key(strategy="easycache", model="tiny-wan", sigma_shift=3.0, num_steps=50)
    found = shipped().find(replace(key, solver="unipc", guidance_scale=3.0))
    assert found is not None and shipped().find(replace(key, num_steps=30)) is None
    assert threshold(row(50, ratio=0.551), found.content, slope=0.1) == 0.05
    rising = [threshold(row(50, ratio=i / 50), found.content, slope=0.1) for i in range(51)]
    assert rising[0] == 0 and all(a < b for a, b in pairwise(rising))
    usual = shipped().find(replace(key, num_steps=20))
    assert usual is not None
    assert threshold(row(20, ratio=0.344), usual.content, slope=0.1) == 0.09


@pytest.mark.parametrize("still", ["latents", "output"])
def test_what_does_not_move_divides_by_nothing(still: str) -> None:
    """Latents or velocities of zero: the step is computed, and the numbers stay fit for JSON."""
    of = row(20, ratio=0.5)
    branch = easycache.branch(of, None)
    moving = walk(of)
    for step in range(of.steps):
        latents = torch.zeros(1, 4) if still == "latents" else torch.full((1, 4), float(step))
        value = torch.zeros(1, 4) if still == "output" else torch.full((1, 4), float(step))
        seen = type("Seen", (), {"step": step, "latents": latents, "signal": latents})()
        assert branch.computes(seen)
        branch.note(step, latents, value)
        assert all(abs(number) < float("inf") for number in branch.numbers().values())
    assert moving.predicted
