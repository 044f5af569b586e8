"""Rows that are decoded together: what that may change, and who is blamed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_engine import Keeper, ListSource, draw, request, small_spec, system
from toy_flux import flux_spec
from toys import TOYS

from batchgen.engine.engine import Engine
from batchgen.engine.packs import DecodeSizes
from batchgen.families.family import DecodesPacks
from batchgen.families.image_model import ImageModel, StillModel
from batchgen.records import MOST_DECODED, rows_decoded
from batchgen.request import Bucket, Request

SMALL = Bucket(32, 32, 5)
ROWS = [request(i, num_steps=1, guidance_scale=1.0) for i in range(6)]


class Always(DecodeSizes):
    """As many together as may be, whatever that takes."""

    def size(self, bucket: Bucket) -> int:
        return self._limit(bucket)


def load(spec: Any = None, **changes: Any) -> Engine:
    settings = {"determinism": "throughput", "batch": {"max_rows_in_flight": 8}} | changes
    engine = Engine.load(spec or small_spec(), system(**settings), "cpu")
    object.__setattr__(engine.replica, "decodes", Always(lambda bucket: 8))
    return engine


def watch(engine: Engine, breaks: Callable[[Sequence[Tensor]], None]) -> list[int]:
    """How many rows each decode has; `breaks` may raise before it."""
    family: Any = engine.family
    decode, sizes = family.decode_pack, list[int]()

    def watched(latents: Sequence[Tensor], bucket: Bucket) -> list[Tensor]:
        sizes.append(len(latents))
        breaks(latents)
        return decode(latents, bucket)  # type: ignore[no-any-return]

    family.decode_pack = watched
    return sizes


def render(engine: Engine, rows: Sequence[Request]) -> Keeper:
    keeper = Keeper()
    keeper.report = engine.render(ListSource(rows), keeper)
    return keeper


def flux_row(index: int) -> Request:
    return request(
        index, width=64, height=64, num_frames=1, num_steps=1, guidance_scale=3.5, solver="euler"
    )


@pytest.mark.parametrize("mode", ["resident", "model"])
def test_rows_of_a_bucket_are_decoded_together(one_thread: None, mode: str) -> None:
    engine = load(memory={"mode": mode})
    sizes = watch(engine, lambda latents: None)
    rows = [*ROWS, request(6, num_steps=1, guidance_scale=1.0, num_frames=9)]
    keeper = render(engine, rows)
    assert (sizes, keeper.errors) == ([6, 1], {})
    assert [*keeper.frames] == [row.row_id for row in rows]
    alone = render(load(determinism="strict"), rows)
    for name, frames in keeper.frames.items():
        apart = np.abs(frames.astype(int) - alone.frames[name].astype(int))
        assert apart.max() <= 1 and (apart > 0).mean() < 0.01, name


@pytest.mark.parametrize("name", ["flux", *TOYS])
def test_the_packs_of_images_are_as_near(one_thread: None, name: str) -> None:
    engine = load(TOYS[name].spec() if name in TOYS else flux_spec())
    family: Any = engine.family
    rows = [flux_row(i) for i in range(4)]
    latents = [family.initial_latents(row) for row in rows]
    with torch.no_grad():
        together = family.decode_pack(latents, rows[0].bucket)
        for one, pixels in zip(latents, together, strict=True):
            apart = family.decode(one, rows[0].bucket).int() - pixels.int()
            assert apart.abs().max() <= 1 and (apart != 0).float().mean() < 0.01
    assert not torch.equal(together[0], together[1])


def test_clips_are_decoded_one_by_one() -> None:
    """But for Wan's, models of clips share all else with those of images."""
    assert issubclass(StillModel, DecodesPacks) and not issubclass(ImageModel, DecodesPacks)


def test_shares_of_rows_add_up(one_thread: None) -> None:
    keeper = render(load(), ROWS)
    stages = [stats.stages for stats in keeper.stats.values()]
    seconds = keeper.report.decode_s
    assert sum(s.decode + s.d2h for s in stages) == pytest.approx(seconds, rel=0.05)
    assert len({s.decode for s in stages}) == 1  # all of one pack
    assert all(s.decode > 0 for s in stages)


def test_a_row_that_breaks_the_shared_decode_fails_alone(one_thread: None) -> None:
    """So does one that is not finite, which is not decoded at all."""
    engine = load()
    rows = [request(i, num_steps=5, guidance_scale=1e38 if i == 5 else 1.0) for i in range(6)]
    bad = draw(load(), rows).latents["row-2"]

    def breaks(latents: Sequence[Tensor]) -> None:
        if any(torch.equal(one, bad) for one in latents):
            raise RuntimeError("decoder refused")

    sizes = watch(engine, breaks)
    keeper = render(engine, rows)
    assert {name: type(error).__name__ for name, error in keeper.errors.items()} == {
        "row-2": "RuntimeError",
        "row-5": "NonFiniteOutput",
    }
    assert sizes == [5, 1, 1, 1, 1, 1]
    assert (keeper.report.rows_finished, keeper.report.rows_failed) == (4, 2)
    assert all(error.__traceback__ is not None for error in keeper.errors.values())


def test_a_pack_that_does_not_fit_goes_on_smaller(one_thread: None) -> None:
    """No row fails for it."""
    engine = load()

    def breaks(latents: Sequence[Tensor]) -> None:
        if len(latents) > 3:
            raise torch.OutOfMemoryError("out of memory")

    sizes = watch(engine, breaks)
    keeper = render(engine, [*ROWS, *(request(i, num_steps=2) for i in range(6, 9))])
    assert (len(keeper.frames), keeper.errors) == (9, {})
    assert sizes == [6, 6, 3, 3, 3]


def test_strict_decodes_one_by_one(one_thread: None) -> None:
    engine = load(determinism="strict")
    sizes = watch(engine, lambda latents: None)
    assert len(render(engine, ROWS).frames) == 6 and sizes == []


# ----------------------------------------------------------------------------------------- the size
def settled(seconds_of: Callable[[int], float], most: int = 8) -> int:
    sizes = DecodeSizes(lambda bucket: most)
    for _ in range(20):
        rows = sizes.size(SMALL)
        sizes.observe(SMALL, rows, seconds_of(rows))
    return sizes.size(SMALL)


def test_the_size_is_the_one_behind_which_a_row_gets_no_cheaper() -> None:
    assert settled(lambda rows: 1.0 * rows) == 1
    assert settled(lambda rows: 1.0 if rows == 1 else 0.45 * rows) == 2
    assert settled(lambda rows: 1.0) == 8
    assert settled(lambda rows: 1.0, most=4) == 4


def test_decodes_of_another_size_say_nothing() -> None:
    sizes = DecodeSizes(lambda bucket: 8)
    for _ in range(9):
        sizes.observe(SMALL, 3, 0.001)
    assert sizes.size(SMALL) == 1


def test_a_budget_counts_pixels_of_all_frames() -> None:
    row = 32 * 32 * 5
    assert rows_decoded(0, SMALL) == 1
    assert rows_decoded(3 * row, SMALL) == 3
    assert rows_decoded(99 * row, SMALL) == MOST_DECODED
    assert rows_decoded(3 * row, Bucket(1024, 1024, 1)) == 1
