"""FLUX.1: each row equals what diffusers' FluxPipeline makes of it alone, to the bit."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from quick_cases import first_quick
from toy_engine import Keeper, ListSource, draw, request, spy_on, system
from toy_flux import FluxTwin, flux_spec, save_flux

from batchgen.config.schema import ModelSpec
from batchgen.engine.devices import device as devices
from batchgen.engine.engine import Engine
from batchgen.families.flow import FlowScheduler, dynamic_shift
from batchgen.request import Request

COMPARED = ("flux",)  # families


def rows(dev: bool) -> list[Request]:
    """Mixed steps, guidances, sizes and texts; some of dev with a negative prompt."""
    return [
        request(
            i,
            prompt=f"a red cat runs {i}" * (1 + 3 * (i == 5)),
            negative_prompt="" if i == 4 else "small tree",
            prompt_2=(None, "the blue dog", "", None)[i % 4],
            negative_prompt_2=(None, "", "a house")[i % 3],
            num_steps=1 + i % 6,
            guidance_scale=(3.5, 1.0, 5.0)[i % 3],
            true_cfg_scale=(1.0, 3.0, 1.0, 1.0, 2.0)[i % 5] if dev else 1.0,
            width=(64, 64, 96)[i % 3],
            height=64,
            num_frames=1,
            solver="euler",
            sigma_shift=1.0,
            format="png",
        )
        for i in range(11)
    ]


@pytest.fixture(scope="module", params=["dev", "schnell"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def spec(kind: str, one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    plain = flux_spec(dev=kind == "dev")
    folder = save_flux(tmp_path_factory.mktemp(kind), plain)
    return flux_spec(str(folder), dev=kind == "dev")


@pytest.fixture(scope="module")
def twin(kind: str, spec: ModelSpec) -> Keeper:
    """What the pipeline draws."""
    pipeline, kept = FluxTwin(spec), Keeper()
    for row in rows(kind == "dev"):
        kept.latents[row.row_id] = pipeline.latents(row)
        kept.frames[row.row_id] = pipeline.frames(row)
    return kept


@pytest.fixture(scope="module")
def load(spec: ModelSpec) -> Callable[..., Engine]:
    return lambda **changes: Engine.load(spec, system(**changes), "cpu")


def assert_equal(drawn: Keeper, twin: Keeper) -> None:
    drawn.assert_as_pipeline({name: twin.latents[name] for name in drawn.latents}, twin.frames)


def test_rows_alone_equal_the_pipeline(
    load: Callable[..., Engine], twin: Keeper, kind: str
) -> None:
    engine = load(batch={"token_budget": 1, "max_rows_in_flight": 1})
    drawn = draw(engine, rows(kind == "dev"))
    assert_equal(drawn, twin)
    assert {stats.batch_size_mean for stats in drawn.stats.values()} == {1.0}


@pytest.mark.parametrize("seed", first_quick(range(4), 2))
def test_packs_with_refill_equal_the_pipeline(
    load: Callable[..., Engine], twin: Keeper, kind: str, seed: int
) -> None:
    """In any order, in packs of any size, one component at a time or all together."""
    chance, order = random.Random(seed), rows(kind == "dev")
    chance.shuffle(order)
    batch = {
        "token_budget": chance.choice([100, 200, 400]),
        "max_rows_in_flight": chance.randint(2, 7),
        "window": chance.randint(1, 11),
    }
    mode = ("resident", "model")[seed % 2]
    drawn = draw(load(batch=batch, memory={"mode": mode}), order)
    assert len(drawn.frames) == len(order)
    assert_equal(drawn, twin)
    drawn.assert_packed()
    if mode == "model":  # two encoders, the transformer, the autoencoder
        assert drawn.report.component_moves == 4 * drawn.report.windows
    assert drawn.report.expert_swaps == 0


def test_rows_that_were_stopped_go_on_bit_equal(
    load: Callable[..., Engine], twin: Keeper, kind: str
) -> None:
    first, again, asked = Keeper(), Keeper(), iter(range(10**6))
    engine = load()
    spy_on(engine, first)
    engine.render(ListSource(rows(kind == "dev")), first, stop=lambda: next(asked) >= 3)
    left = [row for row in rows(kind == "dev") if row.row_id not in first.frames]
    assert first.states and left
    spy_on(engine, again)
    engine.render(ListSource(left, first.states), again)
    assert set(again.frames) == {row.row_id for row in left}
    for keeper in (first, again):
        assert_equal(keeper, twin)


@pytest.mark.parametrize("tokens", [16, 256, 1024, 4096, 4032])
def test_the_dynamic_shift_is_the_pipelines(tokens: int) -> None:
    for scheduler in (FlowScheduler(), FlowScheduler(base_shift=0.3, max_shift=0.9)):
        theirs = calculate_shift(tokens, 256, 4096, scheduler.base_shift, scheduler.max_shift)
        assert dynamic_shift(scheduler, tokens) == theirs


def test_a_wide_model_packs_bit_equal(one_thread: None) -> None:
    """Width 512: products of other kernels than those of the small model."""
    engine = Engine.load(flux_spec(heads=32), system(), "cpu")
    order = [row for row in rows(True) if row.width == 64]
    together = draw(engine, order)
    together.assert_packed()
    alone = Keeper()
    for row in order:
        single = draw(engine, [row])
        alone.latents |= single.latents
        alone.frames |= single.frames
    assert together.errors == {} and together.latents.keys() == alone.latents.keys()
    for name, latents in alone.latents.items():
        assert torch.equal(together.latents[name], latents), name
        assert np.array_equal(together.frames[name], alone.frames[name]), name


def test_in_half_precision_the_state_is_in_it_too(
    spec: ModelSpec, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator: noise, latents between steps and timesteps are rounded as the pipeline
    rounds them. Alone, since products in bfloat16 depend on the batch on a CPU."""
    monkeypatch.setattr(devices, "run_dtype", lambda model, device: torch.bfloat16)
    engine = Engine.load(spec, system(batch={"token_budget": 1, "max_rows_in_flight": 1}), "cpu")
    assert engine.family.state_dtype == torch.bfloat16
    twin = FluxTwin(spec, torch.bfloat16)
    order = rows(kind == "dev")[:6]
    drawn = draw(engine, order)
    assert drawn.errors == {}
    for row in order:
        assert torch.equal(drawn.latents[row.row_id], twin.latents(row)), row
        assert np.array_equal(drawn.frames[row.row_id], twin.frames(row)), row
    first, again, asked = Keeper(), Keeper(), iter(range(10**6))
    engine.render(ListSource(order[4:5]), first, stop=lambda: next(asked) >= 2)
    assert first.states["row-4"].step == 2
    engine.render(ListSource(order[4:5], first.states), again)
    assert np.array_equal(again.frames["row-4"], drawn.frames["row-4"])
