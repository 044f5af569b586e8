"""`bench gpu`: what a card makes of batchgen, in minutes, without network or weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchgen.bench.gpu.figures import Kit, Section
    from batchgen.bench.gpu.report import Done

SUMMARY = "forwards, packs, streaming and promises on one CUDA card, against diffusers"
DESCRIPTION = """\
Measure one CUDA card with random weights of real width (fewer blocks where time is short, as the
notes say): forwards of Wan 1.3B and 14B as a share of the rate of a large matrix product measured
first, guided steps against diffusers' eager transformer over the same tensors, compiled blocks,
packs of images (FLUX.1, Qwen-Image) at 512x512 and 1024x1024, streamed blocks against resident ones
with copies traced, strict mode's self-test, frames against WanPipeline, memory against the
forecast, loading, and a step cache from text to pixels. Each is a ratio inside one process, rounds
take turns.

A section that fails says so, and the others go on. Writes into --out: figures.json, figures.md.
It has been run with --tiny on CPUs alone: nothing of it was seen on a card yet.
"""
EPILOG = """\
examples:
  batchgen bench gpu
  batchgen bench gpu --sections packs streamed --minutes 3
  batchgen bench gpu --tiny
"""
TINY = ("--tiny",)
SECTIONS = (
    *("small", "large", "streamed", "packs", "streamed-packs", "qwen-packs", "qwen-streamed"),
    *("self-tests", "pipeline", "peaks", "traced", "compiled", "loading", "forced"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which sections, for how long, on what."""
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        default=SECTIONS,
        metavar="NAME",
        help=f"in this order (default: all): {', '.join(SECTIONS)}",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=6.0,
        help="after which no section begins (default: %(default)s)",
    )
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="tiny dimensions on any device: shows that it runs, and no more",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/bench-gpu"), help="folder (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> dict[str, object]:
    """Measure, print the table, write the files; returns what figures.json holds. Raises
    ConfigError without CUDA, unless tiny."""
    from time import perf_counter

    import torch

    from batchgen.bench.gpu.report import as_json, table
    from batchgen.durable import write_json
    from batchgen.errors import ConfigError

    if not torch.cuda.is_available() and not args.tiny:
        raise ConfigError("bench gpu: torch sees no CUDA device; legal without one: --tiny")
    kit, head = _begin(tiny=args.tiny)
    ends = perf_counter() + 60 * args.minutes
    every = _sections()
    done = [_run(kit, name, every[name], late=perf_counter() > ends) for name in args.sections]
    data = as_json(kit, head, done)
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "figures.json", data)
    text = table(head, done)
    (args.out / "figures.md").write_text(text)
    print(text + f"figures and raw seconds: {args.out}")
    return data


def _begin(*, tiny: bool) -> tuple[Kit, dict[str, object]]:
    """The device, and the rates that everything is held against."""
    import torch

    from batchgen.bench.gpu.figures import Kit
    from batchgen.engine.devices.device import pick_device
    from batchgen.engine.figures import measure

    device = pick_device("auto")
    found = measure(device)
    kit = Kit(device, tiny, found.matmul_tflops, found.h2d_gbs)
    return kit, {
        "device": found.name,
        "tiny": tiny,
        "torch": torch.__version__,
        "memory_gib": found.memory_gib,
        "matmul_tflops": found.matmul_tflops,
        "h2d_gbs": found.h2d_gbs,
    }


def _sections() -> dict[str, Section]:
    from batchgen.bench.gpu import forward, loading, packs, truth

    found = (
        *(forward.small, forward.large, forward.streamed, packs.flux_packs, packs.flux_streamed),
        *(packs.qwen_packs, packs.qwen_streamed),
        *(truth.self_tests, truth.pipeline, truth.peaks, forward.traced, forward.compiled),
        *(loading.loading, truth.forced),
    )
    return dict(zip(SECTIONS, found, strict=True))


def _run(kit: Kit, name: str, section: Section, *, late: bool) -> Done:
    """A section, whatever becomes of it."""
    from dataclasses import replace
    from time import perf_counter

    from batchgen.bench._figures import Figure
    from batchgen.bench.gpu.figures import NotHere
    from batchgen.bench.gpu.report import Done

    if late:
        return Done(name, "no time left")
    begin, figures = perf_counter(), list[Figure]()
    state, why = "ok", ""
    try:
        for figure in section(kit):
            figures.append(replace(figure, goal="", met=None) if kit.tiny else figure)
    except NotHere as reason:
        state, why = "not here", str(reason)
    except Exception as error:  # one that fails must not cost the others
        state, why = "failed", f"{type(error).__name__}: {error}"
    kit.forget()
    return Done(name, state, perf_counter() - begin, tuple(figures), why)
