"""Fits of the planned strategy on real, small models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_cogvideox import COGVIDEOX_2B
from toy_engine import draw, request, small_spec, system, tiny_wan_spec, two_experts
from toy_wan_images import PICTURES, digests, ti2v_spec

from batchgen.caches.strategies import planned
from batchgen.caches.strategy import Row
from batchgen.caches.tables import Entry, Tables, row_key, store
from batchgen.engine.engine import Engine
from batchgen.engine.fitting.calibrate import calibrate, key_of, products
from batchgen.engine.fitting.calibrate_blocks import calibrate_blocks
from batchgen.engine.fitting.lockstep import Lockstep
from batchgen.errors import ConfigError, PromptTooLong
from batchgen.numerics.solver import History, Schedule, leap, leaps, over, step
from batchgen.request import Request

STEPS = 12


@pytest.fixture(scope="module")
def engine(small_folder: Path) -> Engine:
    return Engine.load(small_spec(str(small_folder)), system(), "cpu")


@pytest.fixture(scope="module")
def pair(two_expert_folder: Path) -> Engine:
    """Of two experts."""
    spec = two_experts(tiny_wan_spec(), weights=str(two_expert_folder))
    return Engine.load(spec, system(), "cpu")


@pytest.fixture(scope="module")
def diffusion(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Of a model of diffusion proper, with DDIM."""
    folder = tmp_path_factory.mktemp("cogvideox")
    spec = COGVIDEOX_2B.spec(str(COGVIDEOX_2B.save(folder, COGVIDEOX_2B.spec())))
    return Engine.load(spec, system(), "cpu")


CLIP = {"width": 64, "height": 32, "num_frames": 9, "solver": "ddim", "sigma_shift": 1.0}
DIFFUSION = CLIP | {"guidance_scale": 6.0, "use_dynamic_cfg": 1}


def spread(count: int, first: int = 0, **changes: object) -> list[Request]:
    values = {"num_steps": STEPS} | changes
    return [request(first + i, **values) for i in range(count)]


def play(engine: Engine, requests: Sequence[Request], thin: Schedule) -> list[Tensor]:
    """Denoise the rows through a schedule."""
    rows = Lockstep(engine.replica, requests, guided=False)
    found = []
    for row in range(len(rows)):
        x, history = rows.noise(row), History()
        for number in range(len(thin)):
            time = float(thin.timesteps[number])
            place = rows.times.index(time)
            (velocities,) = rows.velocities([row], [x], place)
            guided = rows.combine(row, place, velocities)
            if not thin.leaps:
                x, history = step(thin.coefs[number], x, guided, history)
                continue
            coefs = thin.leaps[number]
            given = velocities if coefs.branches == len(velocities) else [guided]
            x, history = leap(coefs, x, given, history)
        found.append(x)
    return found


def fitted(engine: Engine, one: Request, entry: Entry, ratio: float) -> Schedule:
    whole = engine.family.schedule(one)
    row = Row(
        ratio=ratio,
        warmup=0,
        cooldown=0,
        params={},
        sigmas=tuple(whole.sigmas.tolist()),
        starts=tuple(entry.content["starts"]),
    )
    path = planned.path(row, entry.content)
    assert path.leaps
    return leaps(whole, path.steps, path.leaps)


def far(these: Sequence[Tensor], those: Sequence[Tensor]) -> float:
    return float(np.mean([(a - b).square().mean() for a, b in zip(these, those, strict=True)]))


@pytest.mark.parametrize(("made_by", "asked"), [("engine", {}), ("diffusion", DIFFUSION)])
@torch.no_grad()
def test_other_rows_end_nearer_than_with_fewer_steps(
    request: pytest.FixtureRequest, made_by: str, asked: dict[str, Any], tmp_path: Path
) -> None:
    engine: Engine = request.getfixturevalue(made_by)
    made = calibrate(engine.replica, spread(6, **asked), [0.0, 0.5, 0.5], model="small")
    (entry,) = made.entries
    assert entry.key.computed == STEPS // 2 == len(entry.content["steps"])
    store(tmp_path, made.entries)
    (stored,) = Tables(tmp_path).entries
    assert stored.digest == entry.digest
    others = spread(3, first=50, **asked)
    exact = play(engine, others, engine.family.schedule(others[0]))
    ours = play(engine, others, fitted(engine, others[0], stored, 0.5))
    whole = engine.family.schedule(others[0])
    unfitted = play(engine, others, over(whole, tuple(stored.content["steps"])))
    fewer = [replace(row, num_steps=STEPS // 2) for row in others]
    twin = play(engine, fewer, engine.family.schedule(fewer[0]))
    assert far(ours, exact) < 0.8 * far(unfitted, exact)
    assert far(ours, exact) < 0.2 * far(twin, exact)


def test_planned_rows_of_diffusion_without_a_fit_end_nearer_than_with_fewer_steps(
    diffusion: Engine,
) -> None:
    """And those that save nothing are as they are without a cache, to the bit."""
    half = {"cache_strategy": "planned", "cache_ratio": 0.5}
    ways: list[dict[str, Any]] = [
        {},
        {"cache_strategy": "planned"},
        half,
        {"num_steps": STEPS // 2},
    ]
    drawn = draw(
        diffusion,
        [spread(1, i, prompt="p", seed=9, **DIFFUSION | way)[0] for i, way in enumerate(ways)],
    )
    exact, same, ours, fewer = (drawn.latents[f"row-{i}"] for i in range(4))
    assert torch.equal(exact, same)
    assert 0 < far([ours], [exact]) < 0.8 * far([fewer], [exact])
    assert drawn.stats["row-2"].steps_computed == STEPS


def test_the_rows_of_a_pilot_are_drawn_as_any_others(engine: Engine) -> None:
    rows = spread(3)
    made = calibrate(engine.replica, rows, [0.5], model="small")
    drawn = draw(engine, rows)
    for row, latents in zip(rows, made.latents, strict=True):
        assert torch.equal(latents, drawn.latents[row.row_id])


@torch.no_grad()
def test_a_pilots_rows_with_an_image_end_with_it(one_thread: None) -> None:
    """Whichever strategy they are drawn for; and so do those that are judged."""
    engine = Engine.load(ti2v_spec(), system(), "cpu", images=PICTURES.__getitem__)
    size = {"width": 128, "height": 64, "num_frames": 5}
    rows = spread(3, num_steps=4, image=digests()[0], **size)
    drawn = draw(engine, rows).latents
    shown: list[Tensor] = []

    def judge(*both: Sequence[Tensor]) -> dict[str, object]:
        shown.extend(one for some in both for one in some)
        return {}

    made = calibrate(engine.replica, rows, [0.5], model="m", audited=1, judge=judge)
    key = replace(key_of(rows, "m", sized=False), strategy="teacache")
    measured = calibrate_blocks(engine.replica, rows, key, names=("teacache",))
    for ends in (made.latents, measured.latents):
        assert all(map(torch.equal, ends, drawn.values()))
    whole, near = shown
    assert torch.equal(whole[:, :, :1], near[:, :, :1])
    assert not torch.equal(whole, near)


def test_rows_of_one_guidance_are_fitted_for_it_by_branch(engine: Engine) -> None:
    (entry,) = calibrate(engine.replica, spread(3), [0.5], model="small").entries
    assert (entry.key.guidance_scale, entry.key.guidance_scale_2) == (4.0, 4.0)
    assert entry.key.guidance_range is None and entry.key.bucket is None
    assert entry.content["branches"] == 2
    depths = [(len(states), len(ages), len(ages[0])) for states, ages in entry.content["leaps"]]
    assert depths == [(1, 1, 2), (2, 2, 2), *4 * [(3, 3, 2)]]


def test_a_fit_serves_frames_as_large_as_those_it_saw(engine: Engine) -> None:
    """Of any length; where the schedule depends on the size, of that size alone."""
    rows = [*spread(1), *spread(1, width=48)]
    key, sized = key_of(rows, "small", False), key_of(rows[:1], "small", True)
    assert (key.pixels_range, key.bucket) == ((1024.0, 1536.0), None)
    assert (sized.pixels_range, sized.bucket) == (None, "32x32x5")
    for changes, served in (
        ({"width": 40}, True),
        ({"num_frames": 9}, True),
        ({"height": 64}, False),
        ({"width": 16}, False),
    ):
        assert key.serves(row_key(replace(rows[0], **changes), "planned", "small")) == served


def test_a_fit_says_what_made_its_guided_velocities(diffusion: Engine) -> None:
    """Whatever differs between its rows has a range, or none matters."""
    rows = spread(2, **DIFFUSION)
    key = key_of(rows, "c", False)
    assert (key.use_dynamic_cfg, key.guidance_rescale, key.true_cfg_scale) == (1, 0.0, 1.0)
    of = row_key(rows[0], "planned", "c")
    assert key.serves(of) and not key.serves(replace(of, use_dynamic_cfg=0))
    scales = ({"true_cfg_scale": 2.0}, {"true_cfg_scale": 4.0, "guidance_rescale": 0.5})
    key = key_of([replace(rows[0], **scale) for scale in scales], "c", False)
    assert (key.true_cfg_scale, key.true_cfg_range) == (None, (2.0, 4.0))
    assert (key.guidance_rescale, key.rescale_range) == (None, (0.0, 0.5))
    for true_cfg, rescale, served in ((3.0, 0.2, True), (5.0, 0.2, False), (3.0, 0.7, False)):
        row = replace(of, true_cfg_scale=true_cfg, guidance_rescale=rescale)
        assert key.serves(row) == served


def test_rows_of_many_guidances_are_fitted_for_all_between(engine: Engine) -> None:
    rows = [replace(row, guidance_scale=2.0 + i) for i, row in enumerate(spread(4))]
    (entry,) = calibrate(engine.replica, rows, [0.5], model="small", sized=True).entries
    assert (entry.key.guidance_scale, entry.key.guidance_range) == (None, (2.0, 5.0))
    assert entry.content["branches"] == 1 and entry.key.bucket == "32x32x5"


def test_rows_without_guidance_have_one_branch(engine: Engine) -> None:
    rows = spread(2, guidance_scale=1.0)
    (entry,) = calibrate(engine.replica, rows, [0.5], model="small").entries
    assert entry.key.guidance_scale == 1.0 and entry.content["branches"] == 1


def test_a_fit_begins_anew_with_each_expert(pair: Engine) -> None:
    rows = spread(2, sigma_shift=5.0, width=64, height=32)
    experts = [
        pair.family.expert(rows[0], float(t)) for t in pair.family.schedule(rows[0]).timesteps
    ]
    start = experts.index("transformer_2")
    assert 0 < start < STEPS
    (entry,) = calibrate(pair.replica, rows, [0.5], model="pair").entries
    assert entry.content["starts"] == [0, start] and start in entry.content["steps"]
    place = entry.content["steps"].index(start)
    depths = [len(states) for states, _ in entry.content["leaps"]]
    assert depths[0] == depths[place] == 1
    assert max(depths[place + 1 : place + 2], default=2) == 2


def test_rows_that_differ_in_their_schedule_are_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="calibrated together share solver, sigma_shift"):
        calibrate(engine.replica, [*spread(1), *spread(1, num_steps=8)], [0.5], model="small")


def test_a_row_that_cannot_be_drawn_says_why(small_folder: Path) -> None:
    spec = small_spec(str(small_folder), prompt_overflow="error")
    engine = Engine.load(spec, system(), "cpu")
    with pytest.raises(PromptTooLong):
        calibrate(engine.replica, spread(2, prompt="long " * 50), [0.5], model="small")


def test_products_do_not_depend_on_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = list(torch.randn(4, 1, 3, 50, generator=torch.Generator().manual_seed(0)))
    whole = products(tensors)
    monkeypatch.setattr("batchgen.engine.fitting.calibrate.CHUNK", 64)
    assert np.allclose(products(tensors), whole, rtol=1e-12)
    assert np.isclose(whole[1, 2], float((tensors[1] * tensors[2]).double().mean()))
