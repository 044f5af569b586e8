"""`bench decode`: rows that are decoded together, against each alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import thread_time
from typing import TYPE_CHECKING, Any

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
from batchgen.records import DECODE_PIXELS, rows_decoded
from batchgen.request import Bucket

if TYPE_CHECKING:
    from torch import Tensor

    from batchgen.config.schema import ModelSpec
    from batchgen.engine.engine import Engine
    from batchgen.engine.packs import DecodeSizes

SUMMARY = "how many rows are decoded together, and what that gains"
DESCRIPTION = """\
Decode rows of one shape 1, 2, 4 and 8 together, in turns, and let the engine search as it does in
`throughput`: it doubles the rows of a decode as long as a row gets 5 % cheaper. What it settles on
must not be slower than one by one. Autoencoders are those of the image families (AutoencoderKL,
Qwen-Image's) with random weights, narrow and wider. On one torch thread, as a rank has by default,
whose own CPU seconds are taken: what else the machine does counts for little.
"""
EPILOG = """\
examples:
  batchgen bench decode
  batchgen bench decode --rounds 9
"""
TINY = ("--tiny", "--rounds", "1")
ROWS = (1, 2, 4, 8)
SIDES = (64, 128, 256)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How often."""
    add_common(parser, "decode")


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print the table, write the files; returns what figures.json holds."""
    import torch

    from batchgen.bench._models import engine

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    raw: Raw = {}
    figures: list[Figure] = []
    try:
        for name, spec in _models().items():
            if args.tiny and figures:
                break
            made = engine(spec)
            for side in SIDES[:1] if args.tiny else SIDES:
                figures.append(_choice(raw, args, name, made, Bucket(side, side, 1)))
    finally:
        torch.set_num_threads(threads)
    compared = (
        "CPU seconds of a row decoded alone over those of one of as many as the engine decodes "
        f"together; one torch thread, ratios round by round, the median of {args.rounds}."
    )
    return publish(args, compared, figures, raw)


def _models() -> dict[str, ModelSpec]:
    """By the widths of their decoders."""
    from batchgen.bench._models import flux, qwen

    found = {}
    for width in (8, 32):
        for name, spec in ("AutoencoderKL", flux()), ("Qwen-Image's", qwen()):
            dims: Any = spec.dims
            changed: dict[str, Any] = {"base_dim": width // 2}
            if name == "AutoencoderKL":
                widths = width, 2 * width, 4 * width, 4 * width
                changed = {"block_out_channels": widths, "norm_num_groups": 8}
            vae = replace(dims.vae, **changed)
            found[f"{name}, width {width}"] = replace(spec, dims=replace(dims, vae=vae))
    return found


def _choice(
    raw: Raw, args: argparse.Namespace, name: str, engine: Engine, bucket: Bucket
) -> Figure:
    """One shape."""
    import torch

    most = rows_decoded(DECODE_PIXELS, bucket)
    with torch.no_grad():
        items = [engine.family.random_item(bucket, n, "transformer") for n in range(most)]
        latents = [item.latents for item in items]
        works = {str(n): _work(engine, latents[:n], bucket) for n in ROWS if n <= most}
        sizes = _searched(works, bucket, most)
        taken = take_turns(works, args.rounds)
    what = f"{name}, {bucket}, {sizes.size(bucket)} together"
    raw |= {f"{what}: {size}": seconds for size, seconds in taken.items()}
    value, spread = over_rounds(ratios(taken["1"], taken[str(sizes.size(bucket))]))
    each = (f"{n}: {over_rounds(ratios(taken['1'], taken[n]))[0]:.2f}" for n in [*taken][1:])
    return at_least(what, value, "x one by one", 0.95, f"of {', '.join(each)}", spread)


def _searched(works: dict[str, Callable[[], float]], bucket: Bucket, most: int) -> DecodeSizes:
    """What the engine comes to that decodes these."""
    from batchgen.engine.packs import SAMPLES, DecodeSizes

    sizes = DecodeSizes(lambda _: most)
    for _ in range(SAMPLES * len(works)):
        rows = sizes.size(bucket)
        sizes.observe(bucket, rows, rows * works[str(rows)]())
    return sizes


def _work(engine: Engine, latents: Sequence[Tensor], bucket: Bucket) -> Callable[[], float]:
    """Seconds of a row, in a decode of all these."""
    family: Any = engine.family

    def work() -> float:
        begin = thread_time()
        family.decode_pack(latents, bucket)
        return (thread_time() - begin) / len(latents)

    work()
    return work
