"""LoRA under everything that touches weights or forwards: blocks that stream or come from disk, one
component at a time, 8 bits, compiled blocks, step caches, rows that stop and go on, two experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from quick_cases import first_quick
from safetensors.torch import load_file, save_file
from toy_engine import (
    Keeper,
    ListSource,
    Twin,
    draw,
    request,
    small_spec,
    spy_on,
    system,
    tiny_wan_spec,
    two_experts,
)
from toy_loras import as_planned, factors, files_of, linears, put_on, save_lora

from batchgen.config.schema import CompileConfig, ModelSpec
from batchgen.engine import assemble, compiled
from batchgen.engine.compiled import Compiled
from batchgen.engine.engine import Engine
from batchgen.engine.memory.fp8 import FP8
from batchgen.errors import WeightsError
from batchgen.request import Request

SETS = ("", "{a}@0.7", "{b}@-0.5,{a}")


@pytest.fixture(scope="module")
def spec(small_folder: Path) -> ModelSpec:
    return small_spec(str(small_folder))


@pytest.fixture(scope="module")
def sets(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("loras")
    model = WanTransformer3DModel.from_pretrained(small_folder / "transformer")
    a = save_lora(folder / "a.safetensors", model, seed=1)
    b = save_lora(folder / "b.safetensors", model, seed=2, every=3)
    return [text.format(a=a, b=b) for text in SETS]


@pytest.fixture(scope="module")
def rows(sets: list[str]) -> list[Request]:
    """Of three sets in turn; texts recur, with and without a set."""
    return [
        request(i, num_steps=2 + i % 2, prompt=f"p{i % 2}", lora=as_planned(sets[i % 3]))
        for i in range(6)
    ]


Load = Callable[..., Engine]


@pytest.fixture(scope="module")
def load(spec: ModelSpec, sets: list[str]) -> Load:
    def loaded(**changes: Any) -> Engine:
        return Engine.load(spec, system(**changes), "cpu", loras=files_of(*sets))

    return loaded


@pytest.fixture(scope="module")
def plain(load: Load, rows: list[Request]) -> Keeper:
    """One row at a time, all resident, nothing recalled."""
    engine = load(batch={"token_budget": 1, "max_rows_in_flight": 1})
    engine.replica.recall.on = False
    drawn = draw(engine, rows)
    assert len(drawn.latents) == len(rows)
    return drawn


def assert_equal(drawn: Keeper, plain: Keeper) -> None:
    assert not drawn.errors
    for name, latents in drawn.latents.items():
        assert torch.equal(latents, plain.latents[name]), name


@pytest.mark.parametrize(
    "memory",
    first_quick(
        [
            {"mode": "resident"},
            {"mode": "stream", "vram_limit": 0.0},
            {"mode": "disk", "vram_limit": 0.0},
            {"mode": "model"},
        ],
        2,
    ),
    ids=lambda memory: memory["mode"],
)
def test_where_weights_are_changes_nothing(
    load: Load, rows: list[Request], plain: Keeper, memory: Mapping[str, Any]
) -> None:
    """Rows of three sets share a flight, and what they see alone is recalled for each set."""
    engine = load(memory=memory)
    for order in (rows, rows[::-1]):
        drawn = draw(engine, order)
        assert_equal(drawn, plain)
        drawn.assert_packed()
    recall = engine.replica.recall
    memos = [*recall._timesteps.values()]
    assert {what[-1] for memo in memos for what in memo.outputs} >= {row.lora for row in rows}


def test_rows_that_were_stopped_go_on_with_their_set(
    load: Load, rows: list[Request], plain: Keeper
) -> None:
    first, again, asked = Keeper(), Keeper(), iter(range(10**6))
    engine = load()
    spy_on(engine, first)
    engine.render(ListSource(rows), first, stop=lambda: next(asked) >= 2)
    left = [row for row in rows if row.row_id not in first.frames]
    assert first.states and left
    other = load()
    spy_on(other, again)
    other.render(ListSource(left, first.states), again)
    assert len(first.latents) + len(again.latents) == len(rows)
    assert_equal(first, plain)
    assert_equal(again, plain)


@pytest.mark.parametrize(
    "strategy",
    [
        "taylorseer",
        "first_block",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("uniform", "pab")),
    ],
)
def test_caches_decide_and_keep_for_each_row(
    load: Load, rows: list[Request], strategy: str
) -> None:
    ratio = {"cache_strategy": strategy, "cache_warmup": 1, "cache_cooldown": 1}
    if strategy in ("uniform", "taylorseer"):
        ratio["cache_ratio"] = 0.4
    cached = [replace(row, num_steps=6, **ratio) for row in rows[:3]]
    together = draw(load(), cached)
    assert not together.errors
    alone = Keeper()
    for row in cached:
        alone.latents |= draw(load(), [row]).latents
    assert_equal(together, alone)


def test_weights_in_8_bits_stay_so_and_adapters_do_not(
    load: Load, rows: list[Request], spec: ModelSpec, sets: list[str]
) -> None:
    """Equal to a pipeline whose weights are rounded and whose adapters are not."""
    engine = load(memory={"store_dtype": "fp8"})
    block: Any = engine.family.modules["transformer"].blocks[0]  # type: ignore[union-attr,index]
    query = block.attn1.to_q
    assert query.base_layer.weight.dtype == FP8
    assert {p.dtype for p in [*query.lora_A.parameters(), *query.lora_B.parameters()]} == {
        torch.float32
    }
    drawn, twin = draw(engine, rows), Twin(spec)
    theirs: Any = twin.pipeline.transformer.blocks
    ours: Any = engine.family.modules["transformer"].blocks  # type: ignore[union-attr]
    for block, rounded in zip(theirs, ours[:], strict=True):
        stored = dict(rounded.named_modules())
        for name, module in block.named_modules():
            found = stored.get(f"{name}.base_layer", stored.get(name))
            if hasattr(found, "weight_scale"):
                module.weight.data = found.weight.float() * found.weight_scale
    for row in rows[:3]:
        put_on(twin.pipeline, row, files_of(*sets))
        assert torch.equal(drawn.latents[row.row_id], twin.latents(row)), row.lora


@pytest.fixture
def _traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are traced and run as they are: all but the making of code, which takes minutes."""
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "missing_compiler", lambda device: "")
    monkeypatch.setattr(assemble, "Compiled", partial(Compiled, backend="eager"))
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("_traced")
def test_compiled_blocks_have_a_graph_for_each_set(
    load: Load, rows: list[Request], plain: Keeper
) -> None:
    engine = load(compile=CompileConfig(mode="default"), batch={"max_rows_in_flight": 1})
    first, again = draw(engine, rows), draw(engine, rows)
    assert not first.errors
    assert first.report.compiles and first.report.recompiles == 0
    assert again.report.compiles == again.report.recompiles == 0
    for keeper in (first, again):
        far = [(keeper.latents[n] - plain.latents[n]).abs().max() for n in plain.latents]
        assert max(far) <= 1e-5


@pytest.mark.slow
def test_two_experts_have_their_own(two_expert_folder: Path, tmp_path: Path) -> None:
    """A pair of files, one file for both, and one of them alone, as Wan2.2's distilled ones are:
    four or eight steps without guidance."""
    spec = two_experts(tiny_wan_spec(), weights=str(two_expert_folder))
    twin = Twin(spec)
    model = twin.pipeline.transformer
    for seed, name in enumerate(("high", "low")):
        save_lora(tmp_path / f"{name}.safetensors", model, seed=seed)
    both = load_file(tmp_path / "high.safetensors")
    low = factors(model, linears(model), 1, prefix="transformer_2")
    save_file(both | low, tmp_path / "both.safetensors")
    high, low_file = (f"{tmp_path}/{name}.safetensors" for name in ("high", "low"))
    pair = f"transformer:{high}@1,transformer_2:{low_file}@1"
    sets = ["", pair, f"{tmp_path}/both.safetensors", f"transformer_2:{low_file}@0.5"]
    shape = {"width": 64, "height": 32, "num_frames": 5, "sigma_shift": 5.0}
    fixed = {"guidance_scale": 1.0, "solver": "euler", **shape}
    rows = [
        request(0, row_id=str(i), lora=as_planned(s), num_steps=(4, 4, 4, 8)[i], **fixed)
        for i, s in enumerate(sets)
    ]
    files = files_of(*sets)
    for mode in ("resident", "model"):
        engine = Engine.load(spec, system(memory={"mode": mode}), "cpu", loras=files)
        drawn = draw(engine, rows)
        assert not drawn.errors
        for row in (rows[0], rows[1], rows[3]):
            put_on(twin.pipeline, row, files)
            assert torch.equal(drawn.latents[row.row_id], twin.latents(row)), row.lora
        assert torch.equal(drawn.latents["1"], drawn.latents["2"])
        assert len({float(latents.sum()) for latents in drawn.latents.values()}) == 3


def test_a_file_that_does_not_fit_ends_the_loading(
    load: Load, spec: ModelSpec, tmp_path: Path
) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"transformer.nix.lora_A.weight": torch.ones(4, 4)}, path)
    with pytest.raises(WeightsError, match=r"odd\.safetensors: holds nix\.lora_A"):
        Engine.load(spec, system(), "cpu", loras=files_of(str(path)))


def test_a_row_whose_file_was_not_loaded_fails_alone(spec: ModelSpec, rows: list[Request]) -> None:
    drawn = draw(Engine.load(spec, system(), "cpu"), rows)
    assert {row.row_id for row in rows if row.lora} == {*drawn.errors}
    assert "was not loaded with this engine" in str(drawn.errors["row-1"])
    assert drawn.latents.keys() == {row.row_id for row in rows if not row.lora}
