"""Forwards of a Wan: how near they come to the rate of a product, beside diffusers' own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from batchgen.bench._figures import Figure, at_least, at_most
from batchgen.bench.gpu.figures import Kit, NotHere
from batchgen.bench.gpu.subjects import clip, eager_twin, engine, wan
from batchgen.config.compiler import missing_compiler
from batchgen.config.schema import CompileConfig, MemoryConfig, ModelSpec
from batchgen.engine.engine import Engine
from batchgen.families.family import Item, family_spec

LARGE_BLOCKS = 10  # of 40: a block takes the same time in any number


def small(kit: Kit) -> Iterator[Figure]:
    """Wan 1.3B at 480p x 81 frames."""
    yield from _rates(kit, wan(12, 8960, 2 if kit.tiny else 30, tiny=kit.tiny), "Wan 1.3B", 62)


def large(kit: Kit) -> Iterator[Figure]:
    """Wan 14B at 480p x 81 frames."""
    spec = _large(kit)
    yield from _rates(kit, spec, "Wan 14B", 65, note=f"{LARGE_BLOCKS} of 40 blocks")


def compiled(kit: Kit) -> Iterator[Figure]:
    """The small one as torch compiles it."""
    if kit.tiny:
        raise NotHere("a compiler takes a minute on a CPU")
    if missing := missing_compiler(kit.device.type):
        raise NotHere(missing)
    spec = wan(12, 8960, 30, tiny=False)
    made = engine(kit, spec, compile=CompileConfig(mode="default"))
    items = _items(kit, made, 2)
    with torch.no_grad():
        twin = eager_twin(made)
        taken = kit.seconds(
            {
                "compiled step": lambda: made.family.forward(items),
                "diffusers step": lambda: [_plain(twin, item) for item in items],
            }
        )
    ratio = taken["diffusers step"] / taken["compiled step"]
    yield at_least("Wan 1.3B compiled step, diffusers eager / ours", ratio, "x", 1.4)


def streamed(kit: Kit) -> Iterator[Figure]:
    """All blocks of the large one from the host, against all on the device."""
    spec, note = _large(kit), f"{LARGE_BLOCKS} of 40 blocks"
    made = engine(kit, spec)
    moving = engine(kit, spec, memory=MemoryConfig(mode="stream"))
    items = _items(kit, made, 1)
    with torch.no_grad():
        taken = kit.seconds(
            {
                "resident": lambda: made.family.forward(items),
                "streamed": lambda: moving.family.forward(items),
            }
        )
        same = torch.equal(made.family.forward(items)[0], moving.family.forward(items)[0])
    yield at_most("Wan 14B streamed / resident", taken["streamed"] / taken["resident"], "x", 1.02)
    held = moving.replica.residency.gauge.peak / 1024**3
    yield at_most("Wan 14B weights on the device, streamed", held, "GiB", 3, note)
    yield at_least("Wan 14B streamed has the bits of resident", float(same), "", 1)


def traced(kit: Kit) -> Iterator[Figure]:
    """How much of the copying lies behind computing, by torch's profiler."""
    kit.needs_cuda()
    moving = engine(kit, _large(kit), memory=MemoryConfig(mode="stream"))
    items = _items(kit, moving, 1)
    with torch.no_grad():
        moving.family.forward(items)
        kit.wait()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            moving.family.forward(items)
            kit.wait()
    events = [e for e in seen.events() if "CUDA" in str(e.device_type)]
    spans = [(e.time_range.start, e.time_range.end, "HtoD" in e.name) for e in events]
    copies = [(begin, end) for begin, end, copy in spans if copy]
    work = [(begin, end) for begin, end, copy in spans if not copy]
    behind = 100 * overlap(copies, work) / max(1e-9, sum(end - begin for begin, end in copies))
    yield at_least("Wan 14B streamed: copying behind computing", behind, "%", 95)


def overlap(copies: list[tuple[float, float]], work: list[tuple[float, float]]) -> float:
    """Time of the copies during which something computes; each list by itself has no overlap."""
    return sum(
        max(0.0, min(end, stop) - max(begin, start))
        for begin, end in copies
        for start, stop in work
        if start < end and begin < stop
    )


def _large(kit: Kit) -> ModelSpec:
    return wan(40, 13824, 2 if kit.tiny else LARGE_BLOCKS, tiny=kit.tiny)


def _rates(kit: Kit, spec: ModelSpec, name: str, goal: float, note: str = "") -> Iterator[Figure]:
    made = engine(kit, spec)
    twin, items = eager_twin(made), _items(kit, made, 2)
    with torch.no_grad():
        taken = kit.seconds(
            {
                f"{name} forward": lambda: made.family.forward(items[:1]),
                f"{name} step": lambda: made.family.forward(items),
                f"{name} diffusers step": lambda: [_plain(twin, item) for item in items],
            }
        )
    flops = family_spec("wan").forward_flops(spec, clip(kit))
    rate = kit.share_of_matmul(flops, taken[f"{name} forward"])
    yield at_least(f"{name} forward", rate, "% of matmul", goal, note)
    rate = kit.share_of_matmul(2 * flops, taken[f"{name} step"])
    yield at_least(f"{name} guided step", rate, "% of matmul", goal, note)
    ratio = taken[f"{name} diffusers step"] / taken[f"{name} step"]
    yield at_least(f"{name} guided step, diffusers eager / ours", ratio, "x", 1.4, note)


def _items(kit: Kit, made: Engine, count: int) -> list[Item]:
    return [made.family.random_item(clip(kit), seed, "transformer") for seed in range(count)]


def _plain(twin: Any, item: Item) -> object:
    """One branch, as WanPipeline runs it."""
    found: object = twin(
        hidden_states=item.latents.to(twin.dtype),
        timestep=torch.tensor([item.timestep], device=item.latents.device),
        encoder_hidden_states=item.condition[0],
        return_dict=False,
    )[0]
    return found
