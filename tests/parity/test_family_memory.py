"""Wherever the weights of a family are, its rows are those of one whose weights are all there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from quick_cases import first_quick
from small_families import FAMILIES, SMALL_FAMILIES, Small, fixture_of
from toy_engine import Keeper, draw

MEMORY: dict[str, dict[str, Any]] = {
    "no room": {"vram_limit": 0},
    "one component at a time": {"mode": "model"},
    "blocks ahead": {"mode": "stream", "prefetch": 2},
    "on disk": {"mode": "disk", "prefetch": 1},
}
QUICK = "wan22_ti2v"  # whose rows have an image, or none


def test_every_family_has_a_small_model() -> None:
    assert set(SMALL_FAMILIES) == set(FAMILIES)


family = fixture_of(first_quick(sorted(FAMILIES, key=QUICK.__ne__), 1))


def rows(family: Small) -> list[Any]:
    """Every second one with adapters, where they are served."""
    sets = family.loras
    return [replace(family.row(i), lora=sets[i % len(sets)]) for i in range(4)]


@pytest.fixture(scope="module")
def plain(family: Small) -> Keeper:
    """All resident."""
    drawn = draw(family.engine(), rows(family))
    assert not drawn.errors and len(drawn.latents) == 4
    return drawn


@pytest.mark.parametrize("memory", first_quick(MEMORY, 1))
def test_where_weights_are_changes_nothing(family: Small, plain: Keeper, memory: str) -> None:
    """Whether rows share forwards or not."""
    asked = rows(family)
    for batch, order in ({}, asked), ({"max_rows_in_flight": 1}, asked[2:]):
        engine = family.engine(memory=MEMORY[memory], batch=batch)
        drawn = draw(engine, order)
        assert not drawn.errors and len(drawn.latents) == len(order)
        for name, latents in drawn.latents.items():
            assert torch.equal(latents, plain.latents[name]), name
            assert np.array_equal(drawn.frames[name], plain.frames[name]), name
    streams = memory in ("no room", "blocks ahead", "on disk")
    assert (drawn.report.streamed_gib > 0) >= streams
