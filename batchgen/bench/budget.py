"""`bench budget`: the size of packs that the engine chooses, against every other."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from batchgen.bench._figures import (
    Figure,
    Raw,
    add_common,
    at_least,
    over_rounds,
    publish,
    ratios,
    take_turns,
)

if TYPE_CHECKING:
    from batchgen.engine.engine import Engine
    from batchgen.families.family import Item

SUMMARY = "the engine's choice of a pack's size against an exhaustive sweep"
DESCRIPTION = """\
Forward items of one shape in packs of every size of a list, sizes in turns, and hold the time of an
item in the size that the engine takes (`system.batch.token_budget=auto`) against that of the best.
Shapes are small, middling and such that one item fills a forward; models are the embedded one and a
wider Wan and FLUX.1 with random weights. On one torch thread, as a rank has by default, whose own
CPU seconds are taken: what else the machine does counts for little.
"""
EPILOG = """\
examples:
  batchgen bench budget
  batchgen bench budget --rounds 9
"""
TINY = ("--tiny", "--rounds", "1")
# up to as many as rows in flight have, guided
SIZES = (1, 2, 3, 4, 6, 8, 10, 12, 16, 24, 32)
MOST_TOKENS = 2560  # of a pack: five times what the engine takes; on a CPU no more is gained
SHORT_S = 0.05  # shorter work is done several times in a row
SHAPES = {  # width, height, frames
    "tiny-wan": ((32, 32, 1), (64, 64, 1), (64, 64, 9), (96, 96, 9), (128, 128, 17)),
    "Wan, width 512": ((64, 64, 1), (64, 64, 9), (128, 128, 9)),
    "FLUX.1, width 384": ((64, 64, 1), (128, 128, 1), (256, 256, 1)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How often."""
    add_common(parser, "budget")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print the table, write the files; returns what figures.json holds."""
    import torch

    from batchgen.bench._models import engine, models

    shapes = {"tiny-wan": ((32, 32, 1),)} if args.tiny else SHAPES
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    raw: Raw = {}
    figures: list[Figure] = []
    try:
        for name, each in shapes.items():
            made = engine(models()[name]())
            for shape in each:
                figures.append(_choice(raw, args, name, made, shape))
    finally:
        torch.set_num_threads(threads)
    compared = (
        f"CPU seconds of an item in the best pack of {', '.join(map(str, SIZES))} items, up to "
        f"{MOST_TOKENS} tokens, over those in the pack that the engine takes; one torch thread, "
        f"ratios round by round, the median of {args.rounds}."
    )
    return publish(args, compared, figures, raw)


def _choice(
    raw: Raw, args: argparse.Namespace, name: str, engine: Engine, shape: tuple[int, int, int]
) -> Figure:
    """One shape."""
    import torch

    from batchgen.request import Bucket

    bucket = Bucket(*shape)
    packer = engine.replica.packer
    tokens, chosen = packer.tokens(bucket), min(packer.size(bucket), max(SIZES))
    most = max(2, MOST_TOKENS // tokens)
    sizes = sorted({1, chosen} if args.tiny else {*(n for n in SIZES if n <= most), chosen})
    with torch.no_grad():
        items = [engine.family.random_item(bucket, n, "transformer") for n in range(sizes[-1])]
        works = {str(size): _work(engine, items[:size]) for size in sizes}
        taken = take_turns(works, args.rounds)
    what = f"{name}, {bucket}: {tokens} tokens, packs of {chosen}"
    raw |= {f"{what}, of {size}": seconds for size, seconds in taken.items()}
    best = min(taken, key=lambda size: over_rounds(taken[size])[0])
    value, spread = over_rounds(ratios(taken[best], taken[str(chosen)]))
    gain = over_rounds(ratios(taken["1"], taken[str(chosen)]))[0]
    note = f"best: {best}; {gain:.2f} times as fast as packs of 1"
    return at_least(what, value, "of the best", 0.95, note, spread)


def _work(engine: Engine, items: list[Item]) -> Callable[[], float]:
    """Seconds of an item, in a forward of all these."""
    from time import thread_time

    forward = partial(engine.family.forward, items)
    begin = thread_time()
    forward()
    times = max(1, min(20, int(SHORT_S / (thread_time() - begin))))

    def work() -> float:
        begin = thread_time()
        for _ in range(times):
            forward()
        return (thread_time() - begin) / times / len(items)

    return work
