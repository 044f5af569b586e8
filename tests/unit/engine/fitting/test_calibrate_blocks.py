"""What is measured of a model for the strategies that leave out blocks."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from toy_engine import draw, request, small_spec, system

from batchgen.caches.settings import Given, resolve
from batchgen.caches.strategy import computed_count
from batchgen.caches.tables import Entry, Key, Tables, store
from batchgen.engine.engine import Engine
from batchgen.engine.fitting.calibrate_blocks import RATIOS, calibrate_blocks
from batchgen.request import Request

STEPS = 16


def rows(**changes: Any) -> list[Request]:
    return [
        request(i, **{"width": 64, "height": 64, "num_steps": STEPS, "row_key": f"{i}"} | changes)
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def entries(small_folder: Path) -> dict[str, Entry]:
    """Of a small model with random weights, from two guided rows."""
    engine = Engine.load(small_spec(str(small_folder)), system(), "cpu")
    found = calibrate_blocks(engine.replica, rows(), Key(strategy="", model="small"))
    return {entry.key.strategy: entry for entry in found.entries}


def test_each_strategy_gets_what_it_is_set_by(entries: dict[str, Entry]) -> None:
    assert set(entries) == {"magcache", "teacache", "seacache", "first_block"}
    ratios = entries["magcache"].content["ratios"]
    assert [len(branch) for branch in ratios] == [STEPS - 1, STEPS - 1]
    assert all(0.2 < ratio < 5 for branch in ratios for ratio in branch)
    assert entries["teacache"].content["signal"] == "projected"
    assert len(entries["teacache"].content["polynomial"]) == 5
    for name in ("teacache", "seacache", "first_block"):
        thresholds = entries[name].content["thresholds"]
        assert [ratio for ratio, _ in thresholds] == list(RATIOS)
        assert all(a <= b for (_, a), (_, b) in pairwise(thresholds))


CASES = [
    *((name, STEPS) for name in ("magcache", "teacache", "seacache", "first_block")),
    ("seacache", STEPS // 2),  # whose steps are twice as long
]


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_a_ratio_saves_about_what_it_says(
    entries: dict[str, Entry], small_folder: Path, tmp_path: Path, name: str, steps: int
) -> None:
    """Of the rows that were measured; what is saved changes what is decided later."""
    store(tmp_path, [entries[name]])
    engine = Engine.load(small_spec(str(small_folder)), system(), "cpu", tables=Tables(tmp_path))
    usual = resolve(Given(strategy=name), Given(), steps)
    cached = rows(
        num_steps=steps,
        cache_strategy=name,
        cache_ratio=0.5,
        cache_warmup=usual.warmup,
        cache_cooldown=usual.cooldown,
        cache_table=entries[name].digest,
    )
    drawn = draw(engine, cached)
    assert not drawn.errors
    wanted = computed_count(steps, 0.5)
    for stats in drawn.stats.values():
        computed = stats.steps_computed / 2
        if name == "first_block":  # of two blocks one always runs
            computed = 2 * computed - steps
        assert abs(computed - wanted) <= 3 * steps / STEPS
