"""`bench forward`: one item's forward, against diffusers' own transformer."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from batchgen.bench._figures import (
    Figure,
    Raw,
    add_common,
    at_most,
    over_rounds,
    publish,
    ratios,
    take_turns,
)

if TYPE_CHECKING:
    from batchgen.engine.engine import Engine
    from batchgen.families.family import Item

SUMMARY = "the forward of one item, ours against diffusers' own over the same tensors"
DESCRIPTION = """\
Forward one item by the engine's transformer, with all that the engine has on it (attention, what is
recalled of timestep and text), and by diffusers' own class over the same tensors, which is given
what ours was given; in turns, on one torch thread, whose own CPU seconds are taken: what else the
machine does counts for little. Outputs are compared too.
"""
EPILOG = """\
examples:
  batchgen bench forward
  batchgen bench forward --rounds 15
"""
TINY = ("--tiny", "--rounds", "1")
SHORT_S = 0.2  # shorter work is done several times in a row
SHAPES = {  # width, height, frames
    "tiny-wan": ((64, 64, 9), (128, 128, 17)),
    "Wan, width 512": ((64, 64, 9),),
    "FLUX.1, width 384": ((128, 128, 1), (256, 256, 1)),
    "Qwen-Image, width 384": ((128, 128, 1), (256, 256, 1)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How often."""
    add_common(parser, "forward")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print the table, write the files; returns what figures.json holds."""
    import torch

    from batchgen.bench._models import engine, models

    shapes = {"tiny-wan": ((32, 32, 1),)} if args.tiny else SHAPES
    threads, raw, figures = torch.get_num_threads(), Raw(), list[Figure]()
    torch.set_num_threads(1)
    try:
        for name, each in shapes.items():
            made = engine(models()[name]())
            for shape in each:
                figures += _compared(raw, args, name, made, shape)
    finally:
        torch.set_num_threads(threads)
    compared = (
        "CPU seconds of a forward of one item by the engine over those of diffusers' transformer, "
        "eager, same tensors; one torch thread, ratios round by round, the median of "
        f"{args.rounds}."
    )
    return publish(args, compared, figures, raw)


def _compared(
    raw: Raw, args: argparse.Namespace, name: str, made: Engine, shape: tuple[int, int, int]
) -> list[Figure]:
    """One shape."""
    import torch

    from batchgen.bench.gpu.subjects import eager_twin
    from batchgen.request import Bucket

    bucket = Bucket(*shape)
    with torch.no_grad():
        item = made.family.random_item(bucket, 0, "transformer")
        twin, (given, ours) = eager_twin(made), _seen(made, item)
        apart = float((twin(**given)[0] - ours).abs().max() / ours.abs().max())
        works = {
            "ours": _timed(lambda: made.family.forward([item])),
            "diffusers": _timed(lambda: twin(**given)),
        }
        taken = take_turns(works, args.rounds)
    what = f"{name}, {bucket}: {made.replica.packer.tokens(bucket)} tokens"
    raw |= {f"{what}, {who}": seconds for who, seconds in taken.items()}
    value, spread = over_rounds(ratios(taken["ours"], taken["diffusers"]))
    note = f"diffusers: {1000 * over_rounds(taken['diffusers'])[0]:.3g} ms"
    return [
        at_most(f"{what}, ours / diffusers", value, "x", 1.0, note, spread),
        at_most(f"{what}, largest difference", apart, "of the largest value", 1e-5),
    ]


def _seen(made: Engine, item: Item) -> tuple[dict[str, Any], Any]:
    """What the transformer was given for an item, by name, and what it said."""
    seen: dict[str, Any] = {}
    family: Any = made.family

    def note(module: object, args: object, given: dict[str, Any], output: Any) -> None:
        seen.update(given=given, output=output[0])

    handle = family.modules["transformer"].register_forward_hook(note, with_kwargs=True)
    try:
        family.forward([item])
    finally:
        handle.remove()
    return seen["given"], seen["output"]


def _timed(work: Callable[[], object]) -> Callable[[], float]:
    """Seconds of one call, over as many as a clock needs."""
    from time import thread_time

    work()  # allocates; what is recalled is kept from here on
    begin = thread_time()
    work()
    times = max(1, min(50, int(SHORT_S / (thread_time() - begin))))

    def seconds() -> float:
        begin = thread_time()
        for _ in range(times):
            work()
        return (thread_time() - begin) / times

    return seconds
