"""`bench cache`: what step caches save and what they cost, on the embedded model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from batchgen.request import Solver

if TYPE_CHECKING:
    from batchgen.bench.cache.measure import Bench
    from batchgen.bench.cache.rows import Shape
    from batchgen.bench.cache.samples import Samples

SUMMARY = "speed and error of step caches, measured on the embedded model"
DESCRIPTION = """\
Draw the same rows under every step cache that the embedded model serves, at equal shares of their
evaluations, and beside them two plain twins: the same solver with fewer steps, and steps left out
evenly. Errors are of decoded frames against the same rows without a cache, which are drawn twice:
the second time shows what a repetition alone changes. Rows are none that a calibration has seen.
Adaptive caches take the threshold that their table has for the ratio; without one, or with other
warm-ups, the threshold that keeps to the budget on other rows.

Speed-ups are aimed to be 0.95 of what evaluations promise where a row is drawn alone, 0.90 where
several share forwards; what is below has a `<`. Deciding and passing over a step weigh less where
rows are larger.

Rows are drawn in blocks, every policy on a block before the next one, so that speeds compare what
ran side by side; a run that was cut off goes on when it is called again with the same options.
Writes into --out: samples.jsonl (every row), figures.json, figures.md, error.png.
"""
EPILOG = """\
examples:
  batchgen bench cache --tiny
  batchgen bench cache
  batchgen bench cache --out outputs/bench-20 --steps 20 --ratios 0.4 0.5
  batchgen bench cache --out outputs/bench-large --width 192 --height 192 --frames 17 --ratios 0.58
  batchgen bench cache --out outputs/bench-euler --solver euler --strategies planned "fewer steps"
"""
TINY = ("--tiny",)
LEAST = {"rows": 2, "steps": 20, "ratios": [0.0, 0.5], "strategies": ["planned", "fewer steps"]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of what is drawn, and where the figures go."""
    whole, scale = _number(int, 1), _number(float, 0)
    for name, kind, default, text in (
        ("--rows", whole, 64, "rows that are measured"),
        ("--tuning", whole, 4, "other rows, on which thresholds are sought"),
        ("--block", whole, 16, "rows of a block"),
        ("--in-flight", whole, 8, "rows that share forwards"),
        ("--steps", whole, 50, "solver steps"),
        ("--guidance", scale, 3.0, "guidance scale"),
        ("--frames", whole, 9, "frames of a row: 1, 5, 9, ..."),
        ("--width", whole, 64, "pixels, a multiple of 16"),
        ("--height", whole, 64, "pixels, a multiple of 16"),
    ):
        parser.add_argument(name, type=kind, default=default, help=f"{text} (default: %(default)s)")
    parser.add_argument(
        "--solver", choices=get_args(Solver), default="unipc", help="default: %(default)s"
    )
    parser.add_argument(
        "--ratios",
        type=_number(float, 0, 0.99),
        nargs="+",
        default=[0.5, 0.58, 0.7],
        help="shares of evaluations to be saved (default: 0.5 0.58 0.7)",
    )
    parser.add_argument(
        "--strategies", nargs="+", metavar="NAME", help="policies to compare (default: all)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/bench-cache"),
        help="folder (default: %(default)s)",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="two rows of 20 steps, the planned cache alone"
    )


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print the table, write the files; returns what figures.json holds."""
    from batchgen.bench.cache.figures import figures
    from batchgen.bench.cache.plot import plot
    from batchgen.bench.cache.report import as_json, markdown, print_table
    from batchgen.durable import write_json

    if args.tiny:
        args = argparse.Namespace(**vars(args) | LEAST)
    bench = _bench(args)
    kept, missing = _measured(args, bench)
    found = figures(kept)
    print_table(found, missing)
    data = as_json(kept, found, missing)
    write_json(args.out / "figures.json", data)
    (args.out / "figures.md").write_text(markdown(found) + "\n")
    plot(found, args.out / "error.png")
    print(f"figures and samples: {args.out}")
    return data


def _bench(args: argparse.Namespace) -> Bench:
    """The loaded model. Strict, so that a row is the same alone and in a pack."""
    from batchgen.bench.cache.measure import Bench
    from batchgen.config.schema import BatchConfig, SystemConfig
    from batchgen.engine.engine import Engine
    from batchgen.tiny.calibration import MODEL, preset

    batch = BatchConfig(max_rows_in_flight=args.in_flight)
    system = SystemConfig(determinism="strict", batch=batch)
    return Bench(Engine.load(preset(), system, "cpu"), MODEL, args.in_flight)


def _measured(args: argparse.Namespace, bench: Bench) -> tuple[Samples, dict[str, str]]:
    """All samples, and why policies are missing."""
    from batchgen.bench.cache.measure import lacking, measure, tuned
    from batchgen.bench.cache.policies import policies
    from batchgen.bench.cache.rows import Shape, bench_rows, tuning_rows
    from batchgen.bench.cache.samples import Samples
    from batchgen.tiny.calibration import preset

    shape = Shape(**{name: getattr(args, name) for name in Shape.__slots__})
    _check(shape)
    rows, tuning = bench_rows(args.rows, shape), tuning_rows(args.tuning, shape)
    every = policies(preset(), args.strategies)
    missing = lacking(bench, every, rows[0])
    kept = Samples(
        args.out / "samples.jsonl",
        asdict(shape) | {n: getattr(args, n) for n in ("rows", "block", "in_flight")},
    )
    drawn = [policy for policy in every if policy.name not in missing]
    cells = list(tuned(bench, drawn, args.ratios, tuning, kept))
    measure(bench, cells, rows, args.block, kept, partial(print, file=sys.stderr))
    return kept, missing


def _check(shape: Shape) -> None:
    """ConfigError for a size that the model does not draw."""
    from batchgen.errors import ConfigError
    from batchgen.families.family import family_spec
    from batchgen.tiny.calibration import preset

    model = preset()
    stride = family_spec(model.family).stride(model)
    sides = shape.width % stride.pixels or shape.height % stride.pixels
    if sides or (shape.frames - 1) % stride.frames:
        raise ConfigError(
            f"--width, --height, --frames: {shape.width} x {shape.height}, {shape.frames} frames; "
            f"legal: multiples of {stride.pixels}, and 1 more than a multiple of {stride.frames}"
        )


def _number(
    kind: type[int] | type[float], least: float, most: float = float("inf")
) -> Callable[[str], float]:
    """Type of an option: a number between two, itself finite."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(-1)
        if not least <= value <= most or value == float("inf"):
            noun = "an integer" if kind is int else "a number"
            legal = f"{noun} from {least:g} " + ("on" if most == float("inf") else f"to {most:g}")
            raise argparse.ArgumentTypeError(f"{text!r}; legal: {legal}")
        return value

    return read
