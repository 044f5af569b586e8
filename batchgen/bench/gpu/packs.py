"""Images in packs: how much cheaper a row gets, resident and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from batchgen.bench._figures import Figure, at_least, at_most
from batchgen.bench.gpu.figures import Kit
from batchgen.bench.gpu.subjects import engine, flux, qwen, still
from batchgen.config.schema import MemoryConfig, ModelSpec
from batchgen.engine.engine import Engine
from batchgen.engine.packs import GAIN
from batchgen.engine.replica import RowAhead

SIZES = {512: (1, 2, 4, 8, 16), 1024: (1, 2, 4, 8)}


@dataclass(frozen=True, slots=True)
class Subject:
    """A model of images, and what is aimed at."""

    name: str
    spec: ModelSpec
    note: str  # which of its blocks are there
    gains: dict[int, float]  # by side: an item in packs is so much cheaper than alone


def flux_packs(kit: Kit) -> Iterator[Figure]:
    """Seconds of an item by the size of its pack; the size that the engine's rule takes."""
    yield from _sweep(kit, _flux(kit))


def qwen_packs(kit: Kit) -> Iterator[Figure]:
    """The same of a model with text and image tokens in all blocks."""
    yield from _sweep(kit, _qwen(kit))


def flux_streamed(kit: Kit) -> Iterator[Figure]:
    """Blocks from the host: one copy for all items of a pack."""
    yield from _streamed(kit, _flux(kit))


def qwen_streamed(kit: Kit) -> Iterator[Figure]:
    """The same of one whose blocks are large beside what they compute of one image."""
    yield from _streamed(kit, _qwen(kit))


def _flux(kit: Kit) -> Subject:
    spec = flux(1, 1, tiny=True) if kit.tiny else flux(4, 8, tiny=False)
    return Subject("FLUX.1", spec, "4+8 of 19+38 blocks", {512: 3.0, 1024: 1.0})


def _qwen(kit: Kit) -> Subject:
    return Subject("Qwen-Image", qwen(2 if kit.tiny else 12, tiny=kit.tiny), "12 of 60 blocks", {})


def _sweep(kit: Kit, subject: Subject) -> Iterator[Figure]:
    made = engine(kit, subject.spec)
    for side in SIZES:
        sizes = (1, 2) if kit.tiny else SIZES[side]
        each = _each(kit, made, side, sizes, "resident")
        chosen, what = choose(each), f"{subject.name} {side}x{side}"
        for size, seconds in each.items():
            yield Figure(f"{what}, packs of {size}", 1000 * seconds, "ms an item")
        gain, goal = each[1] / each[chosen], subject.gains.get(side, 1.0)
        yield at_least(f"{what}, packs of {chosen} / 1", gain, "x", goal, subject.note)


def _streamed(kit: Kit, subject: Subject) -> Iterator[Figure]:
    spec, sizes = subject.spec, (1, 2) if kit.tiny else (1, 8)
    made = engine(kit, spec)
    moving = engine(kit, spec, memory=MemoryConfig(mode="stream"))
    for side in (512, 1024):
        here = _each(kit, made, side, sizes, "resident")
        there = _each(kit, moving, side, sizes, "streamed")
        for size in sizes:
            what = f"{subject.name} {side}x{side} streamed / resident, packs of {size}"
            goal = 1.1 if size > 1 and side == 1024 else float("inf")
            yield at_most(what, there[size] / here[size], "x", goal, subject.note)
    if moving.replica.recall.sees_combined:
        yield from _tables(kit, moving, subject, sizes)


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
    tables = [made.replica.recall.combined(item) for item in items]  # held, as rows in flight do
    with torch.no_grad():
        taken = kit.seconds(
            {
                f"{how} {side} {size}": lambda size=size: made.family.forward(items[:size])  # type: ignore[misc]
                for size in sizes
            }
        )
    del tables
    return {size: taken[f"{how} {side} {size}"] / size for size in sizes}


def _tables(kit: Kit, made: Engine, subject: Subject, sizes: tuple[int, ...]) -> Iterator[Figure]:
    """What rows that join together wait for, where tables stand in for weights."""
    bucket, steps = still(kit, 1024), 2 if kit.tiny else 28
    away = made.replica.recall.weights(made.family, ["transformer"])
    size = sum(tensor.nbytes for module in away for tensor in module.parameters())
    for count in sizes:
        items = [made.family.random_item(bucket, n, "transformer") for n in range(count)]
        rows = [
            RowAhead(
                one.request, one.latents.dtype, [900.0 - n for n in range(steps)], [one.condition]
            )
            for one in items
        ]
        with torch.no_grad():
            name = f"tables of {count}"
            seconds = kit.seconds({name: lambda rows=rows: made.replica.tabulate(rows)})[name]  # type: ignore[misc]
        what = f"{subject.name} tables of {count} rows, {steps} steps"
        yield Figure(what, 1000 * seconds / count, "ms a row", note=subject.note)
        yield Figure(f"{what}: weights", size / seconds / 1e9, "GB/s from the host")
