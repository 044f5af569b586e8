"""`bench rate`: rows per second, against one prompt after the other and against diffusers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from batchgen.bench._figures import (
    Figure,
    Raw,
    add_common,
    at_least,
    over_rounds,
    publish,
    ratios,
    take_turns,
    whole,
)
from batchgen.words import counted

SUMMARY = "rows per second: packs against a serial loop and diffusers' WanPipeline"
DESCRIPTION = """\
Draw clips of the embedded model, from text to MP4 files, in one process: by the engine as it
chooses, by the same engine one prompt after the other (one row in flight, nothing kept, nothing
overlapped), and by diffusers' WanPipeline over the same weights. Then clips of a size at which one
fills a forward, as the engine chooses and one at a time: packs must not lose there. Then the small
ones as whole processes, imports included: `batchgen run` against a script that loops WanPipeline.
All have the same CPUs and as many torch threads as CPUs. Seconds of CPUs, beside the wall's, are
moved less by what else a machine does.
"""
EPILOG = """\
examples:
  batchgen bench rate
  batchgen bench rate --rows 32 --cpus 2 --sections small
"""
TINY = ("--tiny", "--rounds", "1", "--sections", "small")
SECTIONS = ("small", "saturated", "processes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many rows on how many CPUs."""
    add_common(parser, "rate")
    for name, default, text in (
        ("--rows", 64, "small clips: 64x64, 9 frames, 20 steps, guided"),
        ("--large-rows", 4, "clips of 192x192, 17 frames, 4 steps"),
        ("--cpus", 1, "that all may use, and torch threads"),
    ):
        parser.add_argument(name, type=whole, default=default, help=f"{text} (default: {default})")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        default=SECTIONS,
        metavar="NAME",
        help=f"default: all of {', '.join(SECTIONS)}",
    )


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print the table, write the files; returns what figures.json holds."""
    from tempfile import TemporaryDirectory

    rows, large = (2, 1) if args.tiny else (args.rows, args.large_rows)
    args.out.mkdir(parents=True, exist_ok=True)
    raw: Raw = {}
    with (
        TemporaryDirectory(dir=args.out, prefix=".work-") as work,
        _on_cpus(args.cpus),
    ):
        sections: dict[str, Callable[[], Iterator[Figure]]] = {
            "small": lambda: _small(raw, args, rows, Path(work)),
            "saturated": lambda: _saturated(raw, args, large, Path(work)),
            "processes": lambda: _processes(raw, args, rows, Path(work)),
        }
        figures = [each for name in args.sections for each in sections[name]()]
    compared = (
        f"The embedded model from text to MP4: {rows} clips of 64x64, 9 frames, 20 steps (48 "
        f"tokens) and {large} of 192x192, 17 frames, 4 steps (720 tokens); "
        f"{counted(args.cpus, 'CPU')} and as many torch threads for each; ratios round by round, "
        f"the median of {args.rounds}."
    )
    return publish(args, compared, figures, raw)


def _small(raw: Raw, args: argparse.Namespace, count: int, work: Path) -> Iterator[Figure]:
    """Sizes at which a forward has room for many."""
    from batchgen.bench.cache.rows import Shape, bench_rows
    from batchgen.bench.rate.subjects import (
        Timed,
        chosen,
        drawing,
        frames_of,
        loop,
        pipeline_frames,
        piping,
    )
    from batchgen.media.quality import psnr

    rows, timed = bench_rows(count, Shape(steps=2 if args.tiny else 20)), Timed(raw)
    same = psnr(frames_of(chosen(), rows[0], work), pipeline_frames(rows[0]))
    names = ("packs", "serial loop", "WanPipeline")
    works = {
        names[0]: drawing(chosen, rows, work, timed, names[0]),
        names[1]: drawing(loop, rows, work, timed, names[1]),
        names[2]: piping(rows, work, timed, names[2]),
    }
    raw |= take_turns(works, args.rounds)
    yield Figure("small: packs", over_rounds(raw["packs"])[0] / count, "s a row")
    yield from _faster(raw, "small", "serial loop", "packs", 2.0)
    yield from _faster(raw, "small", "WanPipeline", "packs", 2.5)
    yield at_least("small: frames of both, PSNR", same, "dB", 40)


def _saturated(raw: Raw, args: argparse.Namespace, count: int, work: Path) -> Iterator[Figure]:
    """A size that fills a forward by itself."""
    from dataclasses import replace

    from batchgen.bench.cache.rows import Shape, bench_rows
    from batchgen.bench.rate.subjects import Timed, chosen, drawing, one_at_a_time

    shape, timed = Shape(steps=4, frames=17), Timed(raw)
    rows = [replace(row, width=192, height=192) for row in bench_rows(count, shape)]
    names = ("large, chosen", "large, one at a time")
    works = {
        name: drawing(load, rows, work, timed, name)
        for name, load in zip(names, (chosen, one_at_a_time), strict=True)
    }
    raw |= take_turns(works, args.rounds)
    yield from _faster(raw, "saturated", names[1], names[0], 0.98)


def _processes(raw: Raw, args: argparse.Namespace, count: int, work: Path) -> Iterator[Figure]:
    """The small clips from the command line, imports and catalog included."""
    from batchgen.bench._jobs import job_of, made
    from batchgen.bench.cache.rows import Shape, bench_rows
    from batchgen.bench.rate.subjects import Timed, process

    given = ("row_id", "prompt", "seed", "num_steps")
    rows = [{n: getattr(row, n) for n in given} for row in bench_rows(count, Shape(steps=20))]
    job = job_of(work / "job", rows, "model=tiny-wan")
    (out := work / "serial").mkdir()
    ours = ["batchgen", "run", str(job.path), *job.overrides]
    run, _ = made(job)
    theirs = ["batchgen.bench.rate.serial", str(run.plan), str(out)]
    timed, names = Timed(raw), ("batchgen run", "script of WanPipeline")
    works = {
        name: process(arguments, args.cpus, timed, name)
        for name, arguments in zip(names, (ours, theirs), strict=True)
    }
    raw |= take_turns(works, args.rounds)
    yield from _faster(raw, "processes", names[1], names[0], 2.0)


def _faster(raw: Raw, what: str, slow: str, fast: str, goal: float) -> Iterator[Figure]:
    """How many times, by the wall and by the CPUs."""
    value, spread = over_rounds(ratios(raw[slow], raw[fast]))
    yield at_least(f"{what}: {slow} / {fast}", value, "x", goal, spread=spread)
    value, spread = over_rounds(ratios(raw[f"{slow}, CPU"], raw[f"{fast}, CPU"]))
    yield Figure(f"{what}: the same in CPU seconds", value, "x", spread=spread)


@contextmanager
def _on_cpus(count: int) -> Iterator[None]:
    """This thread and all that it starts share so many CPUs, and torch as many threads."""
    import torch

    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, sorted(before)[:count])
    torch.set_num_threads(count)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)
