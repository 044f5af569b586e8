"""What a row's cache keeps, saved and restored."""

from __future__ import annotations

import pytest
import torch

from batchgen.caches.strategy import Row, names, strategy
from batchgen.engine.blocks import NOTHING
from batchgen.engine.rowcache import RowCache
from batchgen.engine.snapshot import pack, unpack
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
