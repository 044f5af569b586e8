"""What rows in flight keep, as planned, against what an engine measures."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from toy_caches import knobs
from toy_engine import Keeper, draw, request, system, tiny_wan_spec

from batchgen.caches.strategy import Keeps, names, strategy
from batchgen.caches.tables import row_key, shipped
from batchgen.engine.engine import Engine
from batchgen.families.family import family_spec
from batchgen.families.kept import LATENT_BYTES, RowBytes, TickRoom, kept_bytes, reserve_bytes
from batchgen.request import Bucket, Request

STEPS = 8
SPEC = tiny_wan_spec()


def cached(index: int, name: str) -> Request:
    """Guided, of half its evaluations; planned with a fit, whose leaps remember."""
    asks = {"num_steps": STEPS, "cache_warmup": 2, "cache_cooldown": 1, **knobs(name)}
    if name == "planned":
        fit = shipped().find(row_key(request(0, num_steps=20), name, SPEC.name, 10))
        assert fit is not None
        asks = {"num_steps": 20, "cache_table": fit.digest}
    return request(index, row_key=f"{index}", cache_strategy=name, cache_ratio=0.5, **asks)


@pytest.fixture(scope="module")
def keeper(one_thread: None) -> Keeper:
    """A row of each strategy."""
    drawn = draw(
        Engine.load(SPEC, system(), "cpu"),
        [cached(*each) for each in enumerate(names())],
    )
    assert not drawn.errors
    return drawn


@pytest.mark.parametrize("name", names())
def test_a_branch_keeps_what_its_strategy_says(keeper: Keeper, name: str) -> None:
    """Never more, and not less than half. The embedded model's latents have 32 numbers a token, a
    quarter of what is reckoned with."""
    index, keeps = names().index(name), strategy(name).FACTS.keeps
    row, stats = cached(index, name), keeper.stats[f"row-{index}"]
    tokens = family_spec("wan").tokens(SPEC, row.bucket)
    planned = kept_bytes(SPEC, row.bucket, keeps) - tokens * keeps.latents * LATENT_BYTES * 3 // 4
    assert 0.5 * planned <= stats.cache_bytes / 2 <= planned


def test_ranks_that_share_tokens_share_what_flows_and_no_latents() -> None:
    bucket, tokens = Bucket(64, 64, 9), family_spec("wan").tokens(SPEC, Bucket(64, 64, 9))
    both = Keeps(latents=2, streams=1)
    alone, two = kept_bytes(SPEC, bucket, both), kept_bytes(SPEC, bucket, both, 2)
    assert alone - two == tokens * 192 * 4 // 2
    half = replace(SPEC, dtype="bfloat16")
    assert alone - kept_bytes(half, bucket, both) == tokens * 192 * 2


@pytest.mark.parametrize(
    ("most", "tokens", "rows"), [("auto", 7, 1), ("auto", 60, 6), ("auto", 999, 16), (4, 7, 4)]
)
def test_rows_share_a_tick_by_their_tokens_or_as_many_as_the_job_says(
    most: int | Literal["auto"], tokens: int, rows: int
) -> None:
    assert TickRoom(most, tokens).alike(10) == rows


def test_rows_keep_no_more_together_than_there_is_room_for() -> None:
    """One has it in any case; those that wait for their expert count, too."""
    room = TickRoom("auto", 100, kept=5)
    assert room.takes(10, 9)
    room.rest(4)
    assert not room.takes(10, 2) and room.takes(10, 1)
    room.add(10, 1)
    assert not room.takes(10, 1) and room.takes(10, 0)


def test_ranks_share_the_branches_of_a_row_and_each_has_all_its_tables() -> None:
    bucket = Bucket(64, 64, 9)
    state = reserve_bytes(SPEC, bucket, ("pab",))
    bytes_of = [RowBytes(SPEC, 100, cfg).of(bucket, 2, 5, ("pab",)) for cfg in (1, 2)]
    assert bytes_of == [2 * state + 1000, state + 1000]
    assert RowBytes(SPEC, 100, 2).of(bucket, 1, 5, ("pab",)) == state + 500
