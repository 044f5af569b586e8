"""Rows under step caches on several ranks: the leader decides for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from quick_cases import first_quick
from ranks import Ranks
from toy_caches import knobs
from toy_engine import Keeper, ListSource, request, system
from toy_split import kernels_keep_bits
from toy_team import audit_all, draw, draw_audited, draw_with_noise, in_a_team, spec_of

from batchgen.caches.strategy import names, strategy
from batchgen.config.degrees import Degrees
from batchgen.engine.engine import Engine
from batchgen.request import Request

TEAM_STRATEGIES = [name for name in names() if strategy(name).FACTS.kind != "planned"]
IMAGE = {"num_frames": 1, "solver": "euler", "sigma_shift": 1.0}


def axes(degrees: Degrees) -> dict[str, int]:
    """As a layout has them."""
    return {"cfg": degrees.cfg, "ring": degrees.ring, "ulysses": degrees.ulysses}


def cached_rows(strategies: list[str]) -> list[Request]:
    """One of each, every other one guided."""
    return [
        request(
            i,
            num_steps=9,
            width=64,
            height=64,
            guidance_scale=1.0 + i % 2,
            cache_strategy=name,
            cache_ratio=0.5 * (name != "none"),
            cache_warmup=2,
            **knobs(name),
        )
        for i, name in enumerate(strategies)
    ]


TWO_AXES = Degrees(cfg=2, ulysses=2)
AROUND = pytest.param("one expert", Degrees(cfg=2, ring=2), marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("kind", "degrees"),
    [("one expert", Degrees(ulysses=2)), ("one expert", TWO_AXES), AROUND],
    ids=str,
)
def test_ranks_whose_numbers_are_off_neither_hang_nor_decide(
    ranks: Ranks, tmp_path: Path, kind: str, degrees: Degrees
) -> None:
    """Every rank runs the model as often as the leader, and something is saved. With four ranks the
    branches of a row are on different ones, and its tokens on two."""
    decided = [name for name in TEAM_STRATEGIES if not strategy(name).FACTS.data_free]
    rows = cached_rows(decided)
    (calls, computed), *followers = ranks.run(
        degrees, in_a_team, tmp_path, draw_with_noise, kind, axes(degrees), rows
    )
    assert [calls] * (degrees.replica - 1) == [follower for follower, _ in followers]
    assert set(computed) == {row.row_id for row in rows}
    assert sum(computed.values()) < sum(9 * (1 + (row.guidance_scale > 1)) for row in rows)


@pytest.mark.parametrize(
    ("kind", "degrees"),
    [
        ("flux", TWO_AXES),
        *first_quick([("one expert", Degrees(**{d: 2})) for d in ("ulysses", "ring", "cfg")], 1),
        AROUND,
    ],
    ids=str,
)
def test_the_leader_decides_for_all_ranks_what_a_cache_reuses(
    ranks: Ranks, tmp_path: Path, kind: str, degrees: Degrees
) -> None:
    """A row of each strategy, beside one without a cache."""
    rows = cached_rows(["none", *TEAM_STRATEGIES])
    if kind == "flux":
        rows = [replace(row, **IMAGE, true_cfg_scale=row.guidance_scale) for row in rows]
        at = [row.cache_strategy for row in rows].index("first_block")
        rows[at] = replace(rows[at], cache_params='{"threshold":1.0}')
    (frames, errors), *_ = ranks.run(
        degrees, in_a_team, tmp_path, draw, kind, axes(degrees), rows, ""
    )
    alone = Keeper()
    Engine.load(spec_of(kind), system(), "cpu").render(ListSource(rows), alone)
    assert errors == {} == alone.errors
    assert set(frames) == set(alone.frames)
    levels = 1 if degrees.ring > 1 else 0  # a ring's rounding may reach a pixel
    for name, drawn in frames.items():
        apart = drawn.astype(int) - alone.frames[name]
        assert abs(apart).max() <= levels, name
    saved = [stats.steps_total - stats.steps_computed for stats in alone.stats.values()]
    assert saved.count(0) == 1


FOUR = [
    pytest.param(degrees, marks=pytest.mark.slow) for degrees in (TWO_AXES, Degrees(cfg=2, ring=2))
]


@pytest.mark.parametrize("degrees", [Degrees(ulysses=2), *FOUR], ids=["two", "four", "ring"])
def test_ranks_decide_draw_and_audit_as_one(ranks: Ranks, tmp_path: Path, degrees: Degrees) -> None:
    """A strategy of each kind. Every row is audited. Bits are those of one rank where the device
    keeps them."""
    rows = [
        replace(row, guidance_scale=2.0, num_steps=7, row_key=f"{row.row_index:016x}")
        for row in cached_rows(["taylorseer", "easycache", "seacache", "first_block", "pab"])
    ]
    drawn, *_ = ranks.run(degrees, in_a_team, tmp_path, draw_audited, axes(degrees), rows)
    alone = audit_all(Engine.load(spec_of("one expert"), system(), "cpu"), rows)
    assert drawn.keys() == alone.keys() == {row.row_id for row in rows}
    for name, (frames, computed, whole, psnr) in drawn.items():
        theirs = alone[name]
        assert (computed, whole) == theirs[1:3] and computed < whole == 14, name
        apart = abs(frames.astype(int) - theirs[0]).max()
        assert apart <= (0 if kernels_keep_bits() and degrees.ring == 1 else 1), name
        assert psnr == pytest.approx(theirs[3], abs=0 if apart == 0 else 1.0)
