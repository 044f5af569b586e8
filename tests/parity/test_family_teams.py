"""Several ranks draw of every family what one draws: with images, adapters and step caches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ranks import Ranks
from small_families import FAMILIES, Small, alike, draw_in_a_team, fixture_of
from toy_caches import knobs
from toy_engine import draw
from toy_split import kernels_keep_bits
from toy_team import in_a_team

from batchgen.config.degrees import Degrees
from batchgen.request import Request

pytestmark = pytest.mark.slow
CACHES = ("none", "uniform", "taylorseer", "first_block")  # rows of each in turn
LAYOUTS: dict[str, dict[str, Any]] = {
    "branches": {"cfg": 2},
    "tokens": {"ulysses": 2, "memory": "model"},
    "both": {"cfg": 2, "ulysses": 2, "memory": "stream"},
}


family = fixture_of(FAMILIES)


def rows(family: Small) -> list[Request]:
    made = []
    for i, name in enumerate(CACHES):
        served = name in family.served.cache_strategies and name != "none"
        cache = {"cache_strategy": name, "cache_ratio": 0.5, "cache_warmup": 1, **knobs(name)}
        row = alike(family.row(i), num_steps=6, row_key=f"{i}", lora=family.loras[i // 2 % 2 - 1])
        made.append(replace(row, **(cache if served else {})))
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_draw_what_one_draws(
    ranks: Ranks, tmp_path: Path, family: Small, layout: str
) -> None:
    changes = LAYOUTS[layout]
    if changes.get("ulysses", 1) not in family.served.ulysses:
        pytest.skip("tokens are not divided")
    degrees = Degrees(cfg=changes.get("cfg", 1), ulysses=changes.get("ulysses", 1))
    asked = rows(family)
    (frames, computed, errors), *_ = ranks.run(
        degrees,
        in_a_team,
        tmp_path,
        draw_in_a_team,
        family.spec,
        dict(family.files),
        changes,
        asked,
    )
    alone = draw(family.engine(), asked)
    assert errors == {} == alone.errors
    assert frames.keys() == alone.frames.keys()
    most = 0 if kernels_keep_bits() else 1
    for name, drawn in frames.items():
        assert abs(drawn.astype(int) - alone.frames[name]).max() <= most, name
    assert computed == {name: stats.steps_computed for name, stats in alone.stats.items()}
