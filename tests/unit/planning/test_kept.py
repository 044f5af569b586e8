"""What rows in flight keep, as planned, against what an engine measures."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
from toy_caches import knobs
from toy_engine import Keeper, draw, request, system, tiny_wan_spec

from batchgen.caches.strategy import Keeps, names, strategy
from batchgen.caches.tables import row_key, shipped
from batchgen.config.degrees import Degrees
from batchgen.config.schema import JobConfig
from batchgen.engine.engine import Engine
from batchgen.families.family import family_spec
from batchgen.planning.kept import LATENT_BYTES, in_flight, kept_bytes
from batchgen.planning.pricing.candidates import all_candidates
from batchgen.planning.pricing.work import Work
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


def test_rows_that_are_in_flight_are_counted_by_branches(tiny_job: JobConfig) -> None:
    def count(rows: int | Literal["auto"], cfg: int, items: int) -> int:
        batch = replace(tiny_job.system.batch, max_rows_in_flight=rows)
        job = replace(tiny_job, system=replace(tiny_job.system, batch=batch))
        return in_flight(job, 2.0, Degrees(1, cfg, 1, 1), items)

    assert [count("auto", 1, 1), count("auto", 2, 1), count("auto", 1, 6)] == [2, 1, 6]
    assert [count(4, 1, 1), count(4, 2, 1)] == [8, 4]


def test_a_layout_has_room_for_what_its_caches_keep(tiny_job: JobConfig) -> None:
    """Of a strategy that keeps much the peak is higher by what it keeps."""
    bucket, rows = Bucket(64, 64, 9), 4
    batch = replace(tiny_job.system.batch, max_rows_in_flight=rows)
    job = replace(tiny_job, system=replace(tiny_job.system, batch=batch))
    plain = Work(bucket, 10, 100, 200)
    peaks = [
        all_candidates(job, [replace(plain, caches=caches)], [Degrees(1, 1, 1, 1)])[0].peak_bytes
        for caches in ((), ("uniform",), ("pab", "uniform"))
    ]
    pab = kept_bytes(SPEC, bucket, strategy("pab").FACTS.keeps)
    assert peaks[2] - peaks[0] == rows * 2 * pab and peaks[0] < peaks[1] < peaks[2]
