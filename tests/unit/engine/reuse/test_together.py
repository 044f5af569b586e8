"""A row whose first branch decides for all of its branches."""

from __future__ import annotations

import torch
from cache_walk import Seen, row, smooth

from batchgen.caches.strategy import strategy
from batchgen.engine.reuse.rowcache import RowCache


def test_the_first_branch_decides_for_its_row() -> None:
    """The other alone would compute each step: its velocities are nothing but noise."""
    of = row(40, warmup=2, params={"threshold": 0.1})
    cache = RowCache(strategy("easycache"), of, branches=2)
    asked, computed = [], []

    def look(step: int, branch: int) -> Seen:
        asked.append(branch)
        return Seen(step, smooth("latents", step), smooth("latents", step))

    for step in range(of.steps):
        decided = cache.computes(step, lambda branch, step=step: look(step, branch))
        assert decided == cache.computes(step, lambda branch, step=step: look(step, branch))
        assert len(set(decided)) == 1 and len(decided) == 2
        for number, branch in enumerate(cache.branches):
            latents = smooth("latents", step)
            value = smooth("output", step) if number == 0 else torch.randn(latents.shape)
            if decided[number]:
                branch.note(step, latents, value)
            else:
                assert branch.predict(step, latents).shape == latents.shape
        computed.append(decided[0])
    assert asked == [0] * of.steps
    assert 2 < sum(computed) < 30
