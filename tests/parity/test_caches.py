"""Rows under a step cache: what each decides and becomes is its own, whoever shares its forwards
and however often it is stopped."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from quick_cases import first_quick
from toy_caches import knobs
from toy_engine import Keeper, ListSource, draw, request, small_spec, spy_on, system, two_experts
from toys import TOYS

from batchgen.caches.strategy import names, strategy
from batchgen.config.schema import SamplerConfig
from batchgen.engine.contract import Snapshot
from batchgen.engine.devices import device as devices
from batchgen.engine.engine import Engine
from batchgen.engine.reuse import rowcache
from batchgen.engine.reuse.blocks import Passage
from batchgen.families.family import BLOCK_CACHES
from batchgen.request import Request

STEPS = 12
SAVING = [name for name in names() if strategy(name).FACTS.kind != "planned"]
BLOCKS = sorted({*BLOCK_CACHES} - {"pab"})
ALONE = {"token_budget": 1, "max_rows_in_flight": 1}


def cached(index: int, name: str, **changes: Any) -> Request:
    """A row that saves half its evaluations."""
    values = {"cache_strategy": name, "cache_ratio": 0.5, "cache_warmup": 2, "cache_cooldown": 1}
    return request(
        index,
        **(
            {"num_steps": STEPS, "width": 64, "height": 64, "row_key": f"{index}"}
            | values
            | knobs(name)
            | changes
        ),
    )


def rows(name: str) -> list[Request]:
    """Of several ratios and guidances, and one without a cache."""
    return [
        cached(0, name),
        cached(1, name, guidance_scale=1.0),
        cached(2, name, cache_ratio=0.3, num_steps=9, solver="euler"),
        cached(3, name, cache_ratio=0.8),
        cached(4, "none", cache_ratio=0.0, cache_warmup=0, cache_cooldown=0),
    ]


def engine(**changes: Any) -> Engine:
    return Engine.load(small_spec(), system(**changes), "cpu")


def stopped(keeper: Keeper, requests: list[Request], ticks: int) -> dict[str, Snapshot]:
    """What is saved of the rows when they are stopped after so many ticks."""
    made, asked = engine(), iter(range(10**6))
    spy_on(made, keeper)
    made.render(ListSource(requests), keeper, stop=lambda: next(asked) >= ticks)
    return keeper.states


@pytest.fixture(scope="module", params=SAVING)
def alone(request: pytest.FixtureRequest, one_thread: None) -> tuple[str, Keeper]:
    """A strategy, and each row with the engine to itself."""
    made, kept = engine(batch=ALONE), Keeper()
    for row in rows(request.param):
        single = draw(made, [row])
        assert not single.errors
        kept.frames |= single.frames
        kept.latents |= single.latents
        kept.stats |= single.stats
    return request.param, kept


@pytest.fixture(scope="module")
def plain(one_thread: None) -> Keeper:
    """The rows without a cache, which are the same for every strategy."""
    return draw(engine(), rows("none"))


def assert_same(drawn: Keeper, alone: Keeper) -> None:
    assert not drawn.errors
    for name, latents in drawn.latents.items():
        assert torch.equal(latents, alone.latents[name]), name
        assert np.array_equal(drawn.frames[name], alone.frames[name]), name


def test_some_evaluations_are_saved_and_counted(alone: tuple[str, Keeper]) -> None:
    name, kept = alone
    for row in rows(name):
        stats, branches = kept.stats[row.row_id], 1 if row.guidance_scale == 1.0 else 2
        assert stats.steps_total == row.num_steps * branches
        assert (stats.steps_computed < stats.steps_total) == (row.cache_ratio > 0)
    by_ratio = [kept.stats[f"row-{i}"].steps_computed for i in (4, 0, 3)]
    assert by_ratio == sorted(by_ratio, reverse=True)
    assert kept.stats["row-4"].cache_bytes == 0 < kept.stats["row-0"].cache_bytes


@pytest.mark.parametrize("seed", first_quick(range(2), 1))
def test_packs_and_orders_change_neither_decisions_nor_pixels(
    alone: tuple[str, Keeper], seed: int
) -> None:
    name, kept = alone
    chance, order = random.Random(seed), rows(name)
    chance.shuffle(order)
    batch = {"token_budget": chance.choice([32, 96, 400]), "max_rows_in_flight": 3 + seed}
    drawn = draw(engine(batch=batch), order)
    assert_same(drawn, kept)
    for row in order:
        mine = drawn.stats[row.row_id]
        assert mine.steps_computed == kept.stats[row.row_id].steps_computed
    drawn.assert_packed()


@pytest.mark.parametrize("name", first_quick(SAVING, 3))
def test_a_ratio_of_zero_is_no_cache(name: str, plain: Keeper) -> None:
    zero = draw(engine(), [replace(row, cache_ratio=0.0) for row in rows(name)])
    assert_same(zero, plain)
    assert all(stats.steps_computed == stats.steps_total for stats in zero.stats.values())


@pytest.mark.parametrize("ticks", first_quick([5, 8], 1))
def test_a_stopped_row_goes_on_with_what_its_cache_had_kept(
    alone: tuple[str, Keeper], ticks: int
) -> None:
    name, kept = alone
    first = Keeper()
    states = stopped(first, rows(name), ticks)
    assert states
    second = Keeper()
    spy_on(made := engine(), second)
    made.render(ListSource(rows(name)[::-1], states), second)
    assert_same(second, kept)
    assert {stats.cache_restarts for stats in second.stats.values()} == {0}


@pytest.mark.parametrize("name", first_quick(["pab", *BLOCKS], 2))
def test_in_half_precision_a_stopped_row_goes_on_with_the_same_bits(
    name: str, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator. Alone, since products in bfloat16 depend on the batch on a CPU."""
    monkeypatch.setattr(devices, "run_dtype", lambda model, device: torch.bfloat16)
    made, only = engine(batch=ALONE), rows(name)[:1]
    assert set(made.family.dtypes.values()) == {torch.bfloat16}
    whole, again = draw(made, only), Keeper()
    states = stopped(Keeper(), only, 5)
    spy_on(second := engine(batch=ALONE), again)
    second.render(ListSource(only, states), again)
    assert states and not whole.errors
    assert_same(again, whole)
    assert again.stats["row-0"].cache_restarts == 0


@pytest.mark.parametrize("name", first_quick(SAVING, 3))
def test_a_cache_that_is_too_large_to_save_begins_anew_and_the_row_says_so(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rowcache, "SAVED_BYTES", 0)
    only = rows(name)[0]
    states = stopped(Keeper(), [only], 5)
    second = Keeper()
    made = engine()
    made.render(ListSource([only], states), second)
    assert second.stats["row-0"].cache_restarts == 1
    assert "without what its cache had kept" in caplog.text


@pytest.mark.parametrize("name", SAVING)
def test_another_expert_begins_without_a_past(name: str, one_thread: None) -> None:
    """Its first step is computed, and nothing of the first expert is in its predictions."""
    spec = two_experts(small_spec())
    sampler = SamplerConfig(boundary=0.7)
    seen: list[tuple[str, int]] = []
    made = Engine.load(spec, system(sampler=sampler), "cpu")
    forward = made.family.forward

    def watched(items: Any) -> Any:
        blocks = made.replica.stacks.passage.blocks
        whole = blocks.whole or blocks.since == 1  # behind a probe
        drawn = [i for i in items if whole and i.request.row_id == "row-0"]  # no self-test's
        seen.extend((made.family.expert(i.request, i.timestep), round(i.timestep)) for i in drawn)
        return forward(items)

    made.family.forward = watched  # type: ignore[method-assign]
    row = cached(0, name, guidance_scale=1.0, cache_warmup=1)
    keeper = draw(made, [row])
    assert not keeper.errors
    times = [float(t) for t in made.family.schedule(row).timesteps]
    experts = [made.family.expert(row, t) for t in times]
    first = times[experts.index("transformer_2")]
    assert ("transformer_2", round(first)) in seen
    assert len(seen) < STEPS


@pytest.mark.parametrize("name", ["teacache", "seacache"])
def test_branches_of_equal_signals_decide_as_one(name: str, one_thread: None) -> None:
    """As each would by itself, which takes twice as many looks. Nobody looks where the next step is
    computed anyway."""
    asked, found = dict[bool, int](), dict[bool, Keeper]()
    for alike in (True, False):
        made, looks = engine(), 0
        made.family.signals_alike = alike
        inner = made.family.signal

        def signal(item: Any, kind: Any, inner: Any = inner) -> Any:
            nonlocal looks
            looks += kind == strategy(name).FACTS.signal  # a family may ask itself for another
            return inner(item, kind)

        made.family.signal = signal  # type: ignore[method-assign]
        found[alike], asked[alike] = draw(made, rows(name)[:1]), looks
    assert_same(found[True], found[False])
    stats = [keeper.stats["row-0"] for keeper in found.values()]
    assert stats[0].steps_computed == stats[1].steps_computed < stats[0].steps_total
    assert asked[False] == 2 * asked[True] == 2 * (STEPS - 2)


def test_rows_that_go_the_shorter_way_without_blocks_are_what_they_are_without_it(
    one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plain twin is the transformer's own forward (`engine/reuse/shorter.py`)."""
    own = [cached(i, name) for i, name in enumerate(("teacache", "seacache", "magcache"))]
    made, taken = engine(), 0
    inner = Passage.stand_in

    def counted(passage: Passage) -> torch.Tensor | None:
        nonlocal taken
        found = inner(passage)
        taken += found is not None
        return found

    monkeypatch.setattr(Passage, "stand_in", counted)
    shorter = draw(made, own)
    monkeypatch.setattr(Passage, "stand_in", lambda passage: None)
    assert taken > 0
    assert_same(shorter, draw(engine(), own))


# ---------------------------------------------------------------- texts that packs fill up
FILLED: dict[str, dict[str, Any]] = {
    "qwen_image": {"true_cfg_scale": 2.0},
    "z_image": {"guidance_scale": 2.0},
}


@pytest.mark.parametrize("name", sorted(FILLED))
def test_rows_of_texts_of_any_length_are_what_they_are_alone(name: str, one_thread: None) -> None:
    """One of each strategy that keeps something of the blocks, and one without a cache."""
    spec, texts = TOYS[name].spec(), ("a", "a red cat on a house " * 3, "sky and sea")
    own = FILLED[name] | {"num_frames": 1, "solver": "euler", "sigma_shift": 1.0, "num_steps": 6}
    mixed = [
        cached(i, each, prompt=texts[i % 3], **own)
        for i, each in enumerate((*BLOCK_CACHES, "none"))
    ]
    mixed[-1] = replace(mixed[-1], cache_ratio=0.0, cache_warmup=0, cache_cooldown=0)
    at = BLOCK_CACHES.index("first_block")
    mixed[at] = replace(mixed[at], cache_params='{"threshold":9.0}')
    drawn = draw(Engine.load(spec, system(), "cpu"), mixed)
    single = draw(Engine.load(spec, system(batch=ALONE), "cpu"), mixed)
    drawn.assert_packed()
    assert_same(drawn, single)
    for row in mixed:
        ours, theirs = (keeper.stats[row.row_id] for keeper in (drawn, single))
        assert ours.steps_computed == theirs.steps_computed
        assert (ours.steps_computed < ours.steps_total) == (row.cache_ratio > 0), row.cache_strategy
