"""Images in packs: how much cheaper a row gets, resident and streamed."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from batchgen.bench._figures import Figure, at_least, at_most
from batchgen.bench.gpu.figures import Kit
from batchgen.bench.gpu.subjects import engine, flux, still
from batchgen.config.schema import MemoryConfig, ModelSpec
from batchgen.engine.engine import Engine
from batchgen.engine.packs import GAIN

SIZES = {512: (1, 2, 4, 8, 16), 1024: (1, 2, 4, 8)}
NOTE = "4+8 of 19+38 blocks"


def sweeps(kit: Kit) -> Iterator[Figure]:
    """Seconds of an item by the size of its pack; the size that the engine's rule takes."""
    made = engine(kit, _spec(kit))
    for side, goal in ((512, 3.0), (1024, 1.0)):
        sizes = (1, 2) if kit.tiny else SIZES[side]
        each = _each(kit, made, side, sizes, "resident")
        chosen = choose(each)
        for size, seconds in each.items():
            yield Figure(f"FLUX.1 {side}x{side}, packs of {size}", 1000 * seconds, "ms an item")
        gain = each[1] / each[chosen]
        yield at_least(f"FLUX.1 {side}x{side}, packs of {chosen} / 1", gain, "x", goal, NOTE)


def streamed(kit: Kit) -> Iterator[Figure]:
    """Blocks from the host: one copy for all items of a pack."""
    spec, sizes = _spec(kit), (1, 2) if kit.tiny else (1, 8)
    made = engine(kit, spec)
    moving = engine(kit, spec, memory=MemoryConfig(mode="stream"))
    for side in (512, 1024):
        here = _each(kit, made, side, sizes, "resident")
        there = _each(kit, moving, side, sizes, "streamed")
        for size in sizes:
            ratio, what = there[size] / here[size], f"FLUX.1 {side}x{side} streamed / resident"
            goal = 1.1 if size > 1 and side == 1024 else float("inf")
            yield at_most(f"{what}, packs of {size}", ratio, "x", goal, NOTE)


def choose(each: dict[int, float]) -> int:
    """As `packs.Packer` does: the next size while an item gets clearly cheaper."""
    sizes = sorted(each)
    chosen = sizes[0]
    for size in sizes[1:]:
        if each[size] > each[chosen] * GAIN:
            break
        chosen = size
    return chosen


def _each(kit: Kit, made: Engine, side: int, sizes: tuple[int, ...], how: str) -> dict[int, float]:
    bucket = still(kit, side)
    items = [made.family.random_item(bucket, seed, "transformer") for seed in range(max(sizes))]
    with torch.no_grad():
        taken = kit.seconds(
            {
                f"{how} {side} {size}": lambda size=size: made.family.forward(items[:size])  # type: ignore[misc]
                for size in sizes
            }
        )
    return {size: taken[f"{how} {side} {size}"] / size for size in sizes}


def _spec(kit: Kit) -> ModelSpec:
    return flux(1, 1, tiny=True) if kit.tiny else flux(4, 8, tiny=False)
