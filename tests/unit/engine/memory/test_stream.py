"""Blocks that come from the host: which are on the device when, what that takes, and the pixels of
those that stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from quick_cases import first_quick
from torch import Tensor, nn
from toy_caches import knobs
from toy_engine import Keeper, draw, request, small_spec, system, tiny_wan_spec, two_experts
from toy_flux import flux_spec, save_flux

from batchgen.config.composing.aliases import LOW_MEM_LEVELS
from batchgen.config.schema import ComponentConfig, ModelSpec
from batchgen.engine.devices.device import lone_layout
from batchgen.engine.encoding.prompts import apart
from batchgen.engine.engine import Engine
from batchgen.engine.memory.gauge import Gauge
from batchgen.engine.memory.stream import Feed, HostBlock, tensors_of
from batchgen.engine.reuse.blocks import blocks_of
from batchgen.families.streaming import TEXTS_ABREAST, staying
from batchgen.request import Request

CPU = torch.device("cpu")
LAYERS = 6


# ------------------------------------------------------------------------------------- one feed
class Block(nn.Module):
    """Weights of two types and sizes, and a buffer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(7, 5 + seed % 2)
        self.low = nn.Parameter(torch.randn(3, dtype=torch.bfloat16))
        self.register_buffer("shift", torch.randn(()))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x).sum(-1, keepdim=True) + self.low.float().sum() + self.shift
        return y.expand(x.shape)


def test_on_a_cpu_blocks_compute_where_lines_begin_as_they_did() -> None:
    """As mapped from a file, whose tensors begin anywhere."""
    block = Block(0).requires_grad_(False)
    memory = torch.empty(4096, dtype=torch.uint8)
    begins, wanted = 20, []
    for tensor in tensors_of(block):
        place = memory[begins : begins + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        place.copy_(tensor)
        tensor.data = place
        wanted.append(place.data_ptr() % 64)
        begins += 64 * 5 + 4
    assert len({*wanted}) > 2
    home = HostBlock(block, pinned=False, on_cpu=True)
    assert [tensor.data_ptr() % 64 for tensor in tensors_of(block)] == wanted
    shelf = torch.empty(home.bytes, dtype=torch.uint8)
    home.copy_to(shelf)
    home.settle(shelf)
    assert [tensor.data_ptr() % 64 for tensor in tensors_of(block)] == wanted
    assert torch.equal(block.low, Block(0).low) and torch.equal(block.shift, Block(0).shift)


class Rig:
    """A feed over small blocks, and what was copied when."""

    def __init__(self, prefetch: int, stay: Sequence[int] = (), *, homes: bool = False) -> None:
        """`homes`: blocks have homes in host memory, as they do for a GPU."""
        self.blocks = [Block(seed).requires_grad_(False) for seed in range(LAYERS)]
        x = torch.randn(2, 7)
        self.x, self.before = x, [block(x) for block in self.blocks]
        self.gauge = Gauge()
        self.feed = Feed(self.blocks, stay, CPU, self.gauge, prefetch=prefetch, pin=True)
        if homes:
            self.feed._blocks = {
                number: HostBlock(self.blocks[number], pinned=False, on_cpu=True)
                for number in self.feed._blocks
            }
        self.copied: list[int] = []
        fill = self.feed._copies.fill

        def seen(shelf: Any, block: HostBlock) -> None:
            self.copied.append([*self.feed._blocks.values()].index(block))
            fill(shelf, block)

        self.feed._copies.fill = seen  # type: ignore[method-assign]
        self.feed.open()

    def run(self, first: int = 0, stop: int = LAYERS) -> list[int]:
        """A forward of some blocks gives what they gave at home; returns what was copied for it."""
        self.copied.clear()
        for number in range(first, stop):
            with self.feed.here(number, lambda block: first <= block < stop):
                assert torch.equal(self.blocks[number](self.x), self.before[number])
            assert len(self.feed._inside) <= self.shelves
        return [*self.copied]

    @property
    def shelves(self) -> int:
        return len(self.feed._inside) + len(self.feed._free)


def test_the_next_block_is_ahead_and_the_last_brings_the_first() -> None:
    rig = Rig(prefetch=1)
    assert rig.shelves == 2
    assert rig.run() == [0, 1, 2, 3, 4, 5, 0]
    assert rig.run() == [1, 2, 3, 4, 5, 0]
    assert Rig(prefetch=0).run() == [0, 1, 2, 3, 4, 5]
    assert Rig(prefetch=3).run() == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    everything = Rig(prefetch=99)
    assert everything.run() == [0, 1, 2, 3, 4, 5] and everything.run() == []


def test_a_forward_copies_only_what_it_runs() -> None:
    rig = Rig(prefetch=1)
    assert rig.run(stop=1) == [0]
    assert rig.run(first=3) == [3, 4, 5, 3]
    assert rig.run(stop=0) == []
    assert rig.run(stop=2) == [0, 1]


def test_blocks_that_stay_are_never_copied() -> None:
    rig = Rig(prefetch=1, stay=(1, 3, 5))
    # the streaming ones, counted alone; while a block that stays computes, both shelves are free
    assert rig.run() == [0, 1, 2, 0, 1]
    assert {id(block) for block in rig.feed.modules} == {id(rig.blocks[n]) for n in (0, 2, 4)}


@pytest.mark.parametrize("homes", [False, True])
def test_a_block_computes_with_its_copy_and_goes_home(homes: bool) -> None:
    rig = Rig(prefetch=0, homes=homes)
    assert rig.run() == [*range(LAYERS)]
    places = [tensor.data_ptr() for tensor in tensors_of(rig.blocks[2])]
    with rig.feed.here(2, lambda block: True):
        rig.feed._inside[2].memory.fill_(0)
        assert not torch.equal(rig.blocks[2](rig.x), rig.before[2])
    rig.feed.close()
    assert rig.shelves == 0 and rig.gauge.inside == 0
    assert [tensor.data_ptr() for tensor in tensors_of(rig.blocks[2])] == places
    assert torch.equal(rig.blocks[2](rig.x), rig.before[2])


def test_a_block_that_raises_leaves_the_feed_at_work() -> None:
    rig = Rig(prefetch=1)
    with pytest.raises(ValueError, match="bad row"), rig.feed.here(4, lambda block: True):
        raise ValueError("bad row")
    rig.run()


def test_blocks_stay_evenly_spread() -> None:
    for blocks in (1, 7, 40, 57):
        for count in range(blocks + 1):
            found = sorted(staying(blocks, count))
            assert len(found) == count
            streams = sorted(set(range(blocks)) - set(found))
            gaps = np.diff(streams) if len(streams) > 1 else np.array([0])
            assert gaps.max() - gaps.min() <= 1
            assert not streams or streams[0] == 0


# ---------------------------------------------------------------------------- engines, to the bit
@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory, two_expert_folder: Any) -> dict[str, ModelSpec]:
    flux = flux_spec(heads=4)
    folder = save_flux(tmp_path_factory.mktemp("flux"), flux)
    return {
        "wan": tiny_wan_spec(),
        "wan22": two_experts(tiny_wan_spec(), weights=str(two_expert_folder)),
        "flux": replace(flux, weights=str(folder)),
    }


def rows(name: str, count: int = 3, **changes: Any) -> list[Request]:
    frames = 1 if name == "flux" else 5
    own = {"true_cfg_scale": 3.0, "solver": "euler", "sigma_shift": 1.0}
    guided = own if name == "flux" else {}
    return [
        request(i, num_frames=frames, num_steps=2 + i % 2, **guided, **changes)
        for i in range(count)
    ]


def engine(spec: ModelSpec, mode: str, stay: int = 0, **changes: Any) -> Engine:
    own = system(memory={"mode": mode, "prefetch": changes.pop("prefetch", 1)}, **changes)
    layout = replace(lone_layout(spec, own, CPU), resident_blocks=stay)
    return Engine.load(spec, own, "cpu", layout=layout)


def assert_same(drawn: Keeper, plain: Keeper) -> None:
    assert not drawn.errors and drawn.frames.keys() == plain.frames.keys()
    for name, frames in plain.frames.items():
        assert np.array_equal(drawn.frames[name], frames), name
        assert torch.equal(drawn.latents[name], plain.latents[name]), name


@pytest.fixture(scope="module", params=["wan", "wan22", "flux"])
def plain(
    request: pytest.FixtureRequest, specs: dict[str, ModelSpec], one_thread: None
) -> Iterator[tuple[str, ModelSpec, Keeper]]:
    spec = specs[request.param]
    yield request.param, spec, draw(engine(spec, "resident"), rows(request.param))


@pytest.fixture(scope="module")
def whole_peaks(plain: tuple[str, ModelSpec, Keeper]) -> dict[str, int]:
    """Of each stage where components come whole, one at a time."""
    name, spec, _ = plain
    whole = engine(spec, "model")
    draw(whole, rows(name))
    return dict(whole.replica.residency.gauge.peaks)


@pytest.mark.parametrize(("stay", "prefetch"), first_quick([(1, 2), (0, 0), (0, 1)], 1))
def test_streamed_rows_are_those_of_a_resident_model(
    plain: tuple[str, ModelSpec, Keeper], whole_peaks: dict[str, int], stay: int, prefetch: int
) -> None:
    """In a pack, and each alone."""
    name, spec, there = plain
    made = engine(spec, "stream", stay, prefetch=prefetch)
    assert_same(draw(made, rows(name)), there)
    alone = engine(spec, "stream", stay, prefetch=prefetch, batch={"max_rows_in_flight": 1})
    assert_same(draw(alone, rows(name)), there)
    peaks = made.replica.residency.gauge.peaks
    theirs = whole_peaks
    assert peaks.keys() == theirs.keys() == {"encode", "denoise", "decode"}
    assert peaks["decode"] == theirs["decode"]
    expert = made.replica.residency.plan.experts[0]
    encoder = "text_encoder_2" if name == "flux" else "text_encoder"
    for stage, component in ("denoise", expert), ("encode", encoder):
        assert peaks[stage] == theirs[stage] - left_out(made, component)


def left_out(made: Engine, component: str) -> int:
    """Bytes of its blocks that stream, but for the shelves of its feed. Tables stand in for some
    weights of blocks wherever these are."""
    residency, ahead = made.replica.residency, made.replica.system.memory.prefetch
    feed = residency.feeds[component]
    away = made.replica.recall.weights(made.family, residency.plan.experts)
    apart = {id(tensor) for module in away for tensor in tensors_of(module)}
    sizes = [
        sum(tensor.nbytes for tensor in tensors_of(block) if id(tensor) not in apart)
        for block in feed.modules
    ]
    homes = [HostBlock(b, pinned=False, on_cpu=True, apart=away) for b in feed.modules]
    shelf = max(home.bytes for home in homes)
    return sum(sizes) - shelf * min(len(sizes), 1 + ahead)


@pytest.mark.parametrize(
    "name", first_quick(["first_block", "blockdance", "teacache", "pab", "magcache"], 2)
)
def test_rows_under_caches_that_leave_out_blocks_are_the_same(
    specs: dict[str, ModelSpec], one_thread: None, name: str
) -> None:
    values = {"cache_strategy": name, "cache_ratio": 0.5, "cache_warmup": 2, "cache_cooldown": 1}
    asked = [request(i, num_steps=10, row_key=f"{i}", **(values | knobs(name))) for i in range(3)]
    there = draw(engine(specs["wan"], "resident"), asked)
    streamed = draw(engine(specs["wan"], "stream"), asked)
    assert_same(streamed, there)
    saved = [s.steps_computed < s.steps_total for s in streamed.stats.values()]
    assert all(saved)


def test_a_forward_copies_each_block_once_however_many_rows_it_has(one_thread: None) -> None:
    spec, size = small_spec(), None
    own: dict[str, Any] = {
        "components": {"text_encoder": ComponentConfig(memory="model")},
        "determinism": "throughput",
    }
    for count in (1, 4):
        made = engine(spec, "stream", **own)
        blocks = blocks_of(made.family.modules["transformer"])
        size = sum(HostBlock(block, pinned=False, on_cpu=True).bytes for block in blocks)
        report = draw(made, [request(i, num_steps=3) for i in range(count)]).report
        assert report.forwards == 3
        # two shelves hold both blocks of this model: they come once for all forwards
        assert report.streamed_gib * 1024**3 == size
    made = engine(spec, "stream", prefetch=0, **own)
    report = draw(made, [request(i, num_steps=3) for i in range(4)]).report
    assert report.streamed_gib * 1024**3 == 3 * size


@pytest.mark.parametrize("count", [3, 10])
def test_an_encoder_streams_once_for_texts_side_by_side(one_thread: None, count: int) -> None:
    """Its blocks come for so many texts at once, and for no other forward."""
    own: dict[str, Any] = {"components": {"transformer": ComponentConfig(memory="model")}}
    made = engine(small_spec(), "stream", prefetch=0, **own)
    asked = [request(i, prompt=f"{i}", num_steps=1) for i in range(count)]
    drawn = draw(made, asked)
    assert made.replica.residency.feeds.keys() == {"text_encoder"}
    blocks = made.family.modules["text_encoder"].get_submodule("encoder.block")
    size = sum(HostBlock(block, pinned=False, on_cpu=True).bytes for block in blocks.children())
    texts = count + 1  # the negative prompt is one
    assert drawn.report.text_encoder_calls == texts
    assert drawn.report.streamed_gib * 1024**3 == size * -(-texts // TEXTS_ABREAST)
    made = engine(small_spec(), "stream", prefetch=0, **own)
    made.replica.prompts.together = apart
    plain = draw(made, asked)
    assert plain.report.streamed_gib * 1024**3 == size * texts
    assert_same(drawn, plain)


def test_a_component_may_live_otherwise_than_the_others(one_thread: None) -> None:
    spec = small_spec()
    asked = [request(i, num_steps=2) for i in range(2)]
    there = draw(engine(spec, "resident"), asked)
    for mode, own in ("model", {"vae": "resident"}), ("resident", {"text_encoder": "stream"}):
        made = engine(spec, mode, components={n: ComponentConfig(memory=m) for n, m in own.items()})
        assert_same(draw(made, asked), there)
        gauge, whole = made.replica.residency.gauge, weights(made)
        kept = [name for name in whole if made.replica.residency.plan.places[name] == "resident"]
        assert gauge.peaks["denoise"] == sum(whole[name] for name in {*kept, "transformer"})


def weights(made: Engine) -> dict[str, int]:
    modules = made.family.modules.items()
    return {name: sum(tensor.nbytes for tensor in tensors_of(m)) for name, m in modules}


def test_a_component_may_have_a_precision_of_its_own(one_thread: None) -> None:
    """On a CPU, too, where the others compute in float32."""
    own = {"vae": ComponentConfig(dtype="bfloat16")}
    made, plain = (engine(small_spec(), "model", components=c) for c in (own, {}))
    low, whole = (each.replica.residency.gauge for each in (made, plain))
    drawn, there = draw(made, [request(0)]), draw(plain, [request(0)])
    assert torch.equal(drawn.latents["row-0"], there.latents["row-0"])
    assert low.peaks["decode"] == pytest.approx(whole.peaks["decode"] / 2, rel=0.01)
    assert made.family.modules["vae"].dtype == torch.bfloat16


def test_each_level_of_low_memory_holds_less_than_the_one_before(one_thread: None) -> None:
    """Of weights on the device; level 1 saves nothing but what tiles save of decoding."""
    peaks, spec = [], tiny_wan_spec()
    for level in (0, 2, 3):
        mode = str(LOW_MEM_LEVELS[level]["system.memory.mode"])
        made = engine(spec, mode)
        draw(made, [request(0, num_steps=1)])
        peaks.append(made.replica.residency.gauge.peak)
    assert peaks[0] > peaks[1] > peaks[2] > 0
