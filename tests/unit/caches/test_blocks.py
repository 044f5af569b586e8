"""Strategies that leave out blocks: the published counts and rules."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from cache_walk import Seen, Walk, row, smooth

from batchgen.caches.blocks import NO_BLOCKS, STACK, Blocks
from batchgen.caches.residual import Summing, relative_change
from batchgen.caches.strategies import (
    blockdance,
    first_block,
    magcache,
    pab,
    seacache,
    teacache,
)
from batchgen.caches.strategy import computed_count
from batchgen.caches.tables import Key, shipped
from batchgen.errors import ConfigError


def shipped_table(name: str, model: str) -> dict[str, Any]:
    entry = shipped().find(Key(strategy=name, model=model))
    assert entry is not None
    return dict(entry.content)


WAN = shipped_table("magcache", "wan2.1-t2v-1.3b")


# --------------------------------------------------------------------------------- known beforehand
def test_published_steps_of_magcache() -> None:
    params = {"k": 4, "threshold": 0.12, "retention": 0.2}
    published = (*range(11), 15, 20, 25, 30, 35, 39, 42, 44, 46, 48, 49)
    assert magcache.computed(row(50, params=params), WAN) == published
    assert len(magcache.computed(row(40, params=params), WAN)) == 18
    large = shipped_table("magcache", "wan2.1-t2v-14b")
    params = {"k": 6, "threshold": 0.24, "retention": 0.2}
    assert len(magcache.computed(row(50, params=params), large)) == 19


def test_a_ratio_gives_magcache_as_many_steps_as_its_rule_allows() -> None:
    for steps, ratio in product((20, 40, 50), (0.25, 0.5, 0.7)):
        found = len(magcache.computed(row(steps, ratio), WAN))
        assert computed_count(steps, ratio) - 2 <= found <= computed_count(steps, ratio)


def test_branches_of_magcache_may_have_ratios_of_their_own() -> None:
    table = {"ratios": [[0.999] * 49, [0.9] * 49]}
    params = {"threshold": 0.12}
    first, second = (
        magcache.computed(row(50, params=params, branch=branch), table) for branch in (0, 1)
    )
    assert len(first) < len(second)
    assert magcache.computed(row(50, params=params, branch=1), {"ratios": [0.999] * 49}) == first
    with pytest.raises(ConfigError, match="magcache needs the model's ratios"):
        magcache.branch(row(50), None)


@pytest.mark.parametrize(("interval", "count"), [(2, 30), (3, 24), (4, 20), (10, 14)])
def test_published_counts_of_pab(interval: int, count: int) -> None:
    params = {"self_interval": interval, "cross_interval": interval}
    of = row(50, warmup=5, cooldown=5, params=params)
    assert len(pab.computed(of, None)) == count
    assert pab.expected(of, None) == pytest.approx(count + (50 - count) / 2)


def test_pab_computes_each_attention_at_its_own_interval() -> None:
    of = row(20, ratio=0.3, warmup=2, cooldown=2)  # Chitu: 3 and 5
    branch = pab.branch(of, None)
    for step in range(20):
        blocks = branch.blocks(step, branch.computes(Seen(step, smooth("latents", step))))
        inside = 2 <= step < 18
        assert ("self" in blocks.reuses) == (inside and (step - 2) % 3 != 0)
        assert ("cross" in blocks.reuses) == (inside and (step - 2) % 5 != 0)
        assert {*blocks.reuses, *blocks.attends} == {"self", "cross"}


def test_the_smallest_ratio_gives_pab_no_interval_of_0() -> None:
    of = row(50, ratio=0.01, warmup=5, cooldown=5)
    assert pab.intervals(of) == {"self": 1, "cross": 2}
    assert pab.intervals(row(50, ratio=0.75)) == {"self": 8, "cross": 13}


def test_published_window_of_blockdance() -> None:
    of = row(50, warmup=5, cooldown=5, layers=30)
    assert blockdance.window(of) == (20, 45)
    assert blockdance.computed(of, None) == (*range(20), *range(20, 45, 2), *range(45, 50))
    assert blockdance.boundary(of) == 20
    assert blockdance.expected(of, None) == pytest.approx(38 + 12 / 3)
    branch = blockdance.branch(of, None)
    assert branch.blocks(20, True) == Blocks(state=20)
    assert branch.blocks(21, False) == Blocks(start=20)
    four = row(50, warmup=5, cooldown=5, layers=30, params={"group_size": 4})
    assert blockdance.computed(four, None) == (*range(20), *range(20, 45, 4), *range(45, 50))
    assert blockdance.computed(row(50, 0.75, warmup=5, cooldown=5), None)[20:27] == (
        *(20, 24, 28, 32, 36, 40, 44),
    )


def test_a_boundary_has_blocks_on_both_sides() -> None:
    assert blockdance.boundary(row(50, layers=6)) == 4
    with pytest.raises(ConfigError, match=r"boundary_block 6 is not .* legal: 1 to 5"):
        blockdance.boundary(row(50, layers=6, params={"boundary_block": 6}))


# ------------------------------------------------------------------------------------------ decided
def test_teacache_adds_up_its_polynomial_of_the_change_of_every_step() -> None:
    """Written out anew, with the published coefficients that look at the projection."""
    table = shipped_table("teacache", "wan2.1-t2v-1.3b")
    a, b, c, d, e = table["polynomial"]
    of = row(50, warmup=5, cooldown=1, params={"threshold": 0.1})
    done = Walk(of, teacache.FACTS, lambda: teacache.branch(of, table)).whole()
    total, computed = 0.0, []
    for step in range(50):
        x = relative_change(smooth("projected", step), smooth("projected", step - 1))
        total += a * x**4 + b * x**3 + c * x**2 + d * x + e
        if of.must(step) or total >= 0.1:
            total = 0.0
            computed.append(step)
    assert done.computed == computed
    for step, added in done.predicted.items():
        assert torch.equal(added, smooth("stack", max(s for s in computed if s < step) + 100))


@pytest.mark.parametrize(
    ("model", "kind", "thresholds"),
    [
        ("wan2.1-t2v-1.3b", "projected", (0.08, 0.215, 0.35)),
        ("wan2.1-t2v-14b", "projected", (0.04, 0.12, 0.20)),
        ("flux.1-dev", "embedded", (0.25, 0.525, 0.8)),
    ],
)
def test_teacache_looks_at_what_its_table_was_fitted_to(
    model: str, kind: str, thresholds: tuple[float, ...]
) -> None:
    table = shipped_table("teacache", model)
    for ratio, threshold in zip((1e-6, 0.5, 1.0), thresholds, strict=True):
        branch = teacache.branch(row(50, ratio), table)
        assert branch._threshold == pytest.approx(threshold, rel=1e-4)
        assert branch._kind == kind
    measured = {"thresholds": [[0.5, 0.3], [0.7, 0.9]]} | table
    assert teacache.branch(row(50, 0.6), measured)._threshold == pytest.approx(0.6)
    fewer = measured | {"steps": 50}  # of longer steps
    assert teacache.branch(row(20, 0.6), fewer)._threshold == pytest.approx(0.6 * 50 / 20)


def test_the_filter_of_seacache_is_that_of_diffusers() -> None:
    """For a video, whose grid has three axes."""
    from diffusers.hooks.sea_cache import _apply_sea_filter

    grid = torch.randn(1, 3, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    for sigma in (0.0, 0.3, 0.9, 1.0):
        theirs = _apply_sea_filter(grid[0], sigma, seacache.VIDEO_POWER)
        noise = min(max(sigma, 1e-6), 1 - 1e-6)
        assert torch.allclose(seacache.wiener(grid, 1 - noise, noise)[0], theirs, atol=1e-5)


@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.4])
def test_filtering_axis_by_axis_decides_as_transforms_do(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.hooks.sea_cache import _apply_sea_filter

    def transformed(grid: torch.Tensor, share: float, noise: float) -> torch.Tensor:
        return _apply_sea_filter(grid[0], noise, seacache.VIDEO_POWER)[None]

    of = row(50, 0.5, warmup=1, cooldown=1, params={"threshold": threshold})
    ours = Walk(of, seacache.FACTS, lambda: seacache.branch(of, None)).whole()
    monkeypatch.setattr(seacache, "wiener", transformed)
    theirs = Walk(of, seacache.FACTS, lambda: seacache.branch(of, None)).whole()
    assert ours.computed == theirs.computed
    assert 2 < len(ours.computed) < 50


def test_a_filter_takes_out_noise_and_leaves_what_is_smooth() -> None:
    smooth_part = torch.linspace(0, 3, 8).cos()[None, None, :, None, None].expand(1, 1, 8, 8, 2)
    noise = torch.randn(1, 1, 8, 8, 2, generator=torch.Generator().manual_seed(0))
    noise = noise - noise.mean(dim=(2, 3), keepdim=True)

    def share(sigma: float) -> float:
        kept = [seacache.wiener(part, 1 - sigma, sigma).norm() for part in (noise, smooth_part)]
        return float(kept[0] / kept[1])

    assert share(0.9) < share(0.5) < share(0.1)
    assert seacache.wiener(noise, 0.5, 0.5).shape == noise.shape


@pytest.mark.parametrize("strategy", [teacache, seacache])
def test_who_does_not_look_where_nothing_is_decided_decides_the_same(
    strategy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = row(24, 0.5, warmup=4, cooldown=3, params={"threshold": 0.3})
    looks: list[int] = []
    inner = Seen.signal
    monkeypatch.setattr(Seen, "signal", lambda s, k: (looks.append(s.step), inner(s, k))[1])
    ours = Walk(of, strategy.FACTS, lambda: strategy.branch(of, None)).whole()
    assert looks == list(range(3, 21))
    monkeypatch.setattr(Summing, "_decided", lambda *_: False)
    all_seen = Walk(of, strategy.FACTS, lambda: strategy.branch(of, None)).whole()
    assert ours.computed == all_seen.computed and len(looks) == 18 + 24
    assert 7 < len(ours.computed) < 24


def test_the_filter_knows_how_much_of_the_picture_a_model_of_diffusion_has() -> None:
    of = replace(row(2), sigmas=(1.0, 0.6, 0.0), diffusion=True)
    signal = seacache.Filtered(of, 0.0).signal(Seen(1, torch.zeros(1)))
    assert torch.equal(signal, seacache.wiener(smooth("embedded", 1), 0.8, 0.6))
    assert seacache.Filtered(of, 0.0).signal(Seen(0, torch.zeros(1))).isfinite().all()


def test_first_block_compares_with_its_last_computed_step() -> None:
    of = row(20, params={"threshold": 0.1})
    branch = first_block.branch(of, None)
    assert branch.against() is None
    latents = smooth("latents", 0)
    assert branch.computes(Seen(0, latents)) and branch.computes(Seen(3, latents))
    branch.note_probe(latents)
    assert torch.equal(branch.against(), latents)
    for change, computes in ((0.05, False), (0.1, True), (float("nan"), True)):
        assert branch.computes(Seen(4, latents, change)) == computes
    assert branch.blocks(4, True) == Blocks(start=1, since=1)
    six = row(20, 0.5, layers=6)
    assert first_block.expected(six, None) == pytest.approx(10 + 10 / 6)


def test_blocks_are_all_run_or_none() -> None:
    branch = magcache.branch(row(50), WAN)
    assert branch.blocks(0, True) == STACK and branch.blocks(9, False) == NO_BLOCKS
