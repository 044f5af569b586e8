"""What a row's cache keeps, saved and restored."""

from __future__ import annotations

import pytest
import torch

from batchgen.caches.blocks import NO_BLOCKS, PROBE, Blocks
from batchgen.caches.strategy import Row, names, strategy
from batchgen.engine.reuse.blocks import NOTHING, Kept
from batchgen.engine.reuse.rowcache import Probe, RowCache
from batchgen.engine.rows.snapshot import pack, unpack
from batchgen.numerics.solver import History

ROW = Row(ratio=0.5, warmup=3, cooldown=1, params={}, sigmas=tuple(1 - i / 12 for i in range(13)))
OUTPUT = [name for name in names() if strategy(name).FACTS.reuses == "output"]


@pytest.mark.parametrize("name", OUTPUT)
def test_velocities_of_half_precision_predict_the_same_after_a_stop(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(8, 1, 4, 2, 3, 3, generator=generator)
    latents, velocities = draws[:4], draws[4:].bfloat16()
    first, second = (RowCache(strategy(name), ROW, 1) for _ in range(2))
    for step in range(3):
        first.note(step, 0, latents[step], velocities[step], NOTHING)
    snapshot = pack(3, latents[3], History(), first.saved(), 0.0)
    _, _, kept = unpack(snapshot, torch.device("cpu"))
    second.restore(3, kept)
    before, after = (cache.branches[0].predict(4, latents[3]) for cache in (first, second))
    assert before.dtype == after.dtype
    assert torch.equal(before, after)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_what_is_kept_comes_back_in_its_precision(kind: torch.dtype) -> None:
    kept = {"0.added": torch.linspace(-1, 1, 7).to(kind), "1.#sum": torch.tensor(0.1).double()}
    _, _, found = unpack(pack(3, torch.zeros(1), History(), kept, 0.0), torch.device("cpu"))
    assert found.keys() == kept.keys()
    for name, tensor in kept.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


class Probed:
    """A look at a step whose probe came to a change."""

    step, latents = 4, torch.zeros(1, 2)

    def __init__(self, change: float) -> None:
        self.change = change

    def signal(self, kind: str) -> torch.Tensor:
        raise AssertionError(kind)


def test_a_branch_whose_probe_has_not_moved_takes_no_further_forward() -> None:
    """What its probe came to is its velocity; a forward behind it is for the other branch alone."""
    cache, latents = RowCache(strategy("first_block"), ROW, 2), torch.zeros(1, 2)
    added = [Kept(added=torch.full((1, 3, 2), float(n))) for n in range(4)]
    velocities = [torch.full((1, 2), float(n)) for n in range(2)]
    assert [cache.given(4, branch, latents, PROBE) for branch in (0, 1)] == [NOTHING, NOTHING]
    for branch in (0, 1):
        cache.probes[branch] = Probe(added[branch], 0.0, velocities[branch])
        cache.note(4, branch, latents, velocities[branch], added[2 + branch])
        assert cache.given(4, branch, latents, PROBE).added is added[2 + branch].added
    changes = (1.0, 0.0)
    plan = cache.plan(4, lambda branch: Probed(changes[branch]))
    assert plan == (Blocks(start=1, since=1), None)
    assert cache.reused(4, 1, latents) is velocities[1]


def test_a_branch_without_blocks_takes_what_they_added_before() -> None:
    cache, latents = RowCache(strategy("seacache"), ROW, 1), torch.zeros(1, 2)
    added = torch.ones(1, 3, 2)
    cache.note(4, 0, latents, latents, Kept(added=added))
    given = cache.given(5, 0, latents, NO_BLOCKS)
    assert given.added is added and given.state is None
