"""Video families: each row equals what its diffusers pipeline makes of it alone, to the bit."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet
from toy_engine import Case, Keeper, ListSource, draw, spy_on, system
from toy_videos import VideoTwin
from video_toys import VIDEO_TOYS

from batchgen.engine.engine import Engine
from batchgen.engine.fitting.lockstep import Lockstep
from batchgen.families.family import family_spec
from batchgen.numerics.solver import History, step

COMPARED = tuple(toy.family for toy in VIDEO_TOYS.values())  # families

ROWS = 5
MANY = {  # width, height and frames of clips that are as many tokens as small real ones have
    "cogvideox": (256, 256, 13),
    "hunyuan_video15": (64, 64, 9),
}


def one_of_each() -> list[ParameterSet]:
    """The toys; all but the last of a family are slow."""
    last = {toy.family: name for name, toy in VIDEO_TOYS.items()}
    return [
        pytest.param(name, marks=() if last[toy.family] == name else pytest.mark.slow)
        for name, toy in VIDEO_TOYS.items()
    ]


@pytest.fixture(scope="module", params=one_of_each())
def case(
    request: pytest.FixtureRequest, one_thread: None, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    toy = VIDEO_TOYS[request.param]
    folder = toy.save(tmp_path_factory.mktemp(request.param), toy.spec())
    spec, rows = toy.spec(str(folder)), [toy.row(number) for number in range(ROWS)]
    return Case(spec, rows, VideoTwin(toy, spec).keep(rows))


@pytest.mark.slow
def test_rows_alone_equal_the_pipeline(case: Case) -> None:
    drawn = draw(case.engine(batch={"token_budget": 1, "max_rows_in_flight": 1}), case.rows)
    case.assert_equal(drawn)
    assert len(drawn.latents) == len(case.rows)
    assert {stats.batch_size_mean for stats in drawn.stats.values()} == {1.0}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_packs_with_refill_equal_the_pipeline(case: Case, seed: int) -> None:
    """In any order, of any steps, texts and guidances; rows stopped in the middle go on so."""
    chance, order = random.Random(seed), [*case.rows]
    chance.shuffle(order)
    batch = {"token_budget": 8000, "max_rows_in_flight": 2 + 2 * seed, "window": 5}
    mode = ("resident", "model")[seed]
    engine, asked = case.engine(batch=batch, memory={"mode": mode}), iter(range(10**6))
    first, again = Keeper(), Keeper()
    spy_on(engine, first)
    first.report = engine.render(ListSource(order), first, stop=lambda: next(asked) >= 3)
    left = [row for row in order if row.row_id not in first.frames]
    assert first.states and left
    spy_on(engine, again)
    again.report = engine.render(ListSource(left, first.states), again)
    assert len(first.latents) + len(again.latents) == len(order)
    for keeper in (first, again):
        case.assert_equal(keeper)
    again.assert_packed()


@torch.no_grad()
def test_rows_that_are_calibrated_go_the_same_way(case: Case) -> None:
    """With what their solver draws."""
    row = case.rows[0]
    rows = Lockstep(case.engine().replica, [row], guided=True)
    x, history = rows.noise(0), History()
    draw = rows.draw(0, x)
    for number, coefs in enumerate(rows.schedule.coefs):
        [velocities] = rows.velocities([0], [x], number)
        x, history = step(coefs, x, rows.combine(0, number, velocities), history, draw)
    assert torch.equal(x, case.twin.latents[row.row_id])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(VIDEO_TOYS))
def test_a_wide_model_equals_the_pipeline_in_packs(
    name: str, one_thread: None, tmp_path: Path
) -> None:
    """Width 512: products of other kernels than those of the small model."""
    toy = VIDEO_TOYS[name]
    folder = toy.save(tmp_path, toy.spec(heads=32))
    spec = toy.spec(str(folder), heads=32)
    rows = [toy.row(number) for number in range(ROWS)]
    together = draw(Engine.load(spec, system(batch={"token_budget": 8000}), "cpu"), rows)
    together.assert_packed()
    twin = VideoTwin(toy, spec).keep(rows)
    together.assert_as_pipeline(twin.latents, twin.frames)


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY)
def test_a_wide_model_equals_the_pipeline_at_many_tokens(
    name: str, one_thread: None, tmp_path: Path
) -> None:
    """Width 512 and a thousand tokens of video, where the self-test is made, too."""
    toy = VIDEO_TOYS[name]
    spec = toy.spec(str(toy.save(tmp_path, toy.spec(heads=32))), heads=32)
    width, height, frames = MANY[name]
    size = {"width": width, "height": height, "num_frames": frames}
    rows = [replace(toy.row(number), num_steps=2, **size) for number in range(2)]
    light = family_spec(spec.family)
    video = light.tokens(spec, rows[0].bucket) - light.max_tokens(spec)
    assert video >= 1000
    engine = Engine.load(spec, system(batch={"token_budget": 20_000}), "cpu")
    together = draw(engine, rows)
    assert len(together.latents) == len(rows)
    together.assert_packed()
    twin = VideoTwin(toy, spec).keep(rows)
    together.assert_as_pipeline(twin.latents, twin.frames)
