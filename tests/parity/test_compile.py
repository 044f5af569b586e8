"""Compiled blocks against themselves as they are, and how often they are compiled."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_engine import Keeper, draw, request, small_spec, system
from toy_flux import flux_spec
from toy_split import experts, family_on
from toys import TOYS
from video_toys import VIDEO_TOYS

from batchgen.config.schema import CompileConfig, ModelSpec
from batchgen.engine import assemble, compiled
from batchgen.engine.attention.choice import Attention
from batchgen.engine.compiled import Compiled, graphs
from batchgen.engine.devices.device import lone_layout
from batchgen.engine.engine import Engine
from batchgen.engine.packs import powers_of_two
from batchgen.engine.reuse.blocks import stack_blocks
from batchgen.errors import ConfigError
from batchgen.families.family import family_spec
from batchgen.request import Bucket

CONFIG = CompileConfig(mode="default")
RATIO = {"cache_strategy": "uniform", "cache_ratio": 0.3, "cache_warmup": 1, "cache_cooldown": 1}
BOUND = 1e-5  # on latents, float32


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What other tests have traced; and code is kept where this test sees it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def _traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are traced and run as they are: all but the making of code, which takes minutes."""
    monkeypatch.setattr(compiled, "missing_compiler", lambda device: "")
    monkeypatch.setattr(assemble, "Compiled", partial(Compiled, backend="eager"))


def attention() -> Attention:
    """Torch's own."""
    return Attention(system(), lone_layout(small_spec(), system(), torch.device("cpu")))


def loaded(spec: ModelSpec, **changes: Any) -> Engine:
    return Engine.load(spec, system(batch={"max_rows_in_flight": 3}, **changes), "cpu")


def drawn(spec: ModelSpec, rows: list[Any], **changes: Any) -> Keeper:
    return draw(loaded(spec, **changes), rows)


def farthest(one: Keeper, other: Keeper) -> float:
    assert one.errors == other.errors == {}
    return max(float((one.latents[n] - other.latents[n]).abs().max()) for n in one.latents)


@pytest.mark.slow
@pytest.mark.usefixtures("_traced")
def test_rows_that_join_leave_and_rest_make_no_new_shapes(small_folder: Path) -> None:
    """Of other lengths, with and without guidance, some with steps left out: packs of many sizes
    become forwards of 4, 2 and 1, one graph each, and of the next rows none. Nor do blocks that
    come and go."""
    spec = small_spec(str(small_folder))
    rows = [
        request(
            i,
            num_steps=4 + i % 2,
            guidance_scale=(1.0, 4.0, 4.0)[i % 3],
            **(RATIO if i % 2 else {}),
        )
        for i in range(6)
    ]
    engine = loaded(spec, compile=CONFIG)
    first, plain = draw(engine, rows), drawn(spec, rows)
    first.assert_packed()
    assert 1 <= first.report.compiles <= 3
    assert first.report.recompiles == 0
    assert farthest(first, plain) == 0  # the same operations
    streamed = drawn(spec, rows, compile=CONFIG, memory={"mode": "stream"})
    for again in (draw(engine, rows[4:]), streamed):
        assert (again.report.compiles, again.report.recompiles) == (0, 0)
    assert farthest(streamed, plain) == 0


@pytest.mark.parametrize(
    "name",
    [
        "ltx",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in sorted({*TOYS, *VIDEO_TOYS} - {"ltx", "qwen_image"})
        ),
    ],
)
@pytest.mark.usefixtures("_traced")
def test_families_compile_whole_blocks_of_the_same_operations(name: str) -> None:
    """Rows with and without guidance, which edges see in pairs or alone, make few shapes."""
    toy = TOYS.get(name) or VIDEO_TOYS[name]
    spec = toy.spec()
    first = toy.row(0)
    rows = [
        replace(first, row_index=i, row_id=f"row-{i}", num_steps=2, guidance_scale=4.0 - 3.0 * i)
        for i in range(2)
    ]
    engine = loaded(spec, compile=CONFIG, determinism="throughput")
    compiling = draw(engine, rows)
    assert farthest(compiling, drawn(spec, rows, determinism="throughput")) == 0
    kinds = len(family_spec(spec.family).COMPONENTS[0].stacks)
    kinds += name == "hunyuan_dit"  # blocks that are handed something, and others
    most = 2 * (kinds + 1)  # CogVideoX gives its first block parts of a tensor
    assert kinds <= compiling.report.compiles <= most
    assert compiling.report.recompiles == 0
    again = draw(engine, rows).report
    assert (again.compiles, again.recompiles) == (0, 0)


@torch.no_grad()
@pytest.mark.usefixtures("_traced")
def test_a_shape_that_changes_is_counted_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    family = family_on("wan")
    stack_blocks(family, "wan", experts("wan"))
    made = Compiled(CONFIG, backend="eager")
    transformer = family.modules["transformer"]
    made.lead([transformer], "cpu", streams=False, attention=attention())
    items = [family.random_item(Bucket(32, 32, 5), seed, "transformer") for seed in range(2)]
    try:
        with caplog.at_level(logging.WARNING):
            for pack in (items[:1], items[:1], items):
                made.run("one kind", lambda pack=pack: family.forward(pack))
    finally:  # other tests have the same modules
        transformer.blocks.compiled = None
    assert (made.compiles, made.recompiles) == (2, 1)
    assert [record.message for record in caplog.records if "batchgen" in record.name] == [
        "compiled again for one kind: 1 graphs"
    ]


@pytest.mark.usefixtures("_traced")
def test_a_kernel_by_name_makes_no_graph_more(small_folder: Path) -> None:
    """The first forward of a kind is watched, and the next are not."""
    compiling = drawn(
        small_spec(str(small_folder)),
        [request(0, num_steps=3)],
        compile=CONFIG,
        attention="flex",
        determinism="throughput",
    )
    assert (compiling.report.compiles, compiling.report.recompiles) == (1, 0)
    assert compiling.stats["row-0"].attention_kernel == "flex"


def test_nothing_is_compiled_where_nobody_asks(small_folder: Path) -> None:
    before = graphs()
    plain = drawn(small_spec(str(small_folder)), [request(0)])
    assert (plain.report.compiles, graphs() - before) == (0, 0)


def test_a_device_without_a_compiler_and_blocks_without_a_place_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphed = Compiled(CompileConfig(mode="reduce-overhead"))
    with pytest.raises(ConfigError, match="reduce-overhead records where blocks lie"):
        graphed.lead([], "cpu", streams=True, attention=attention())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler .*; legal here: off"):
        Compiled(CONFIG).lead([], "cpu", streams=False, attention=attention())


@pytest.mark.parametrize(
    ("items", "size", "ranks", "sizes"),
    [
        (13, 8, 1, [8, 4, 1]),
        (13, 6, 1, [4, 4, 4, 1]),
        (13, 100, 1, [8, 4, 1]),
        (13, 4, 2, [8, 4, 1]),
        (3, 4, 4, [3]),
        (0, 4, 1, []),
    ],
)
def test_chunks_are_powers_of_two(items: int, size: int, ranks: int, sizes: list[int]) -> None:
    chunks = powers_of_two(range(items), size, ranks)
    assert [len(chunk) for chunk in chunks] == sizes
    assert [x for chunk in chunks for x in chunk] == [*range(items)]


@pytest.mark.slow  # a compiler works for minutes
@pytest.mark.filterwarnings("default")  # torch deprecates what it uses
@pytest.mark.parametrize("name", ["wan", "flux", "ltx"])
def test_code_draws_the_same_to_rounding(name: str, small_folder: Path, tmp_path: Path) -> None:
    frames = (
        {"num_frames": 1, "width": 64, "height": 64, "solver": "euler"} if name == "flux" else {}
    )
    spec = small_spec(str(small_folder)) if name == "wan" else flux_spec(heads=4)
    rows = [request(i, num_steps=2 + i % 2, **frames) for i in range(3)]
    if name == "ltx":
        spec, rows = VIDEO_TOYS[name].spec(), [VIDEO_TOYS[name].row(i) for i in range(3)]
    for determinism in ("strict", "throughput"):
        ours = drawn(spec, rows, compile=CONFIG, determinism=determinism)
        apart = farthest(ours, drawn(spec, rows, determinism=determinism))
        print(name, determinism, apart, ours.report.compiles)
        assert 0 < apart <= BOUND
        assert ours.stats[rows[0].row_id].attention_kernel == "sdpa-cpu-flash"
        assert ours.report.recompiles == 0
    assert os.listdir(tmp_path / "code")
