"""`bench counts`: what is computed once is computed once."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgen.bench._figures import Figure, add_common, exactly, publish

if TYPE_CHECKING:
    from torch import nn

    from batchgen.bench._jobs import Job
    from batchgen.paths import RunPaths

SUMMARY = "calls of encoder and transformer, loads and changes of shape, counted exactly"
DESCRIPTION = """\
Run a manifest of a few prompts, each with many seeds, sizes and numbers of steps, with the embedded
model, and count by torch's own hooks which modules were called, how often and on which shapes: a
text is encoded once, the empty negative prompt too; rows that share a forward are not computed
twice; the shape changes as often as there are shapes. Then run it on two ranks and count loads.
Nothing is timed.
"""
EPILOG = """\
examples:
  batchgen bench counts
  batchgen bench counts --prompts 16 --seeds 8
"""
TINY = ("--tiny",)
SIZES = ((32, 32), (48, 32), (32, 64))
STEPS = (2, 3)
OVERRIDES = ("model=tiny-wan", "row_defaults.num_frames=5", "row_defaults.num_steps=2")


@dataclass(slots=True)
class Calls:
    """What ran in this process."""

    texts: int = 0
    encoders: set[int] = field(default_factory=set)  # as many as were loaded
    shapes: list[tuple[int, ...]] = field(default_factory=list)  # of each forward: (items, ...)

    def note(self, module: nn.Module, args: object, output: Any) -> None:
        """A hook of torch: behind a module's forward."""
        name = type(module).__name__
        if name == "UMT5EncoderModel":
            self.texts += 1
            self.encoders.add(id(module))
        elif name == "WanTransformer3DModel":
            self.shapes.append(tuple(output[0].shape))

    @property
    def items(self) -> int:
        """Branches of rows over all forwards."""
        return sum(shape[0] for shape in self.shapes)

    @property
    def runs_of_a_shape(self) -> int:
        """Forwards of one shape that follow each other count once, whatever their items."""
        return len(list(groupby(self.shapes, key=lambda shape: shape[1:])))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of what rows."""
    from batchgen.bench._figures import whole

    add_common(parser, "counts", rounds=False)
    parser.add_argument("--prompts", type=whole, default=6, help="default: %(default)s")
    parser.add_argument(
        "--seeds", type=whole, default=2, help="of each prompt and shape (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> dict[str, object]:
    """Count, print the table, write the files; returns what figures.json holds."""
    from tempfile import TemporaryDirectory

    prompts, seeds = (2, 1) if args.tiny else (args.prompts, args.seeds)
    args.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=args.out, prefix=".work-") as work:
        job = _job(Path(work), prompts, seeds)
        figures, calls = _one_rank(job, prompts)
        if not args.tiny:
            figures += _two_ranks(job)
    compared = (
        f"{job.rows} rows of the embedded model: {prompts} prompts, {len(SIZES)} sizes, "
        f"{len(STEPS)} numbers of steps, {seeds} seeds, guided. Counted, not timed."
    )
    return publish(args, compared, figures, {"shapes of forwards": calls.shapes})


def _job(folder: Path, prompts: int, seeds: int) -> Job:
    from batchgen.bench._jobs import job_of

    rows = [
        {
            "row_id": f"row-{prompt}-{width}x{height}-{steps}-{seed}",
            "prompt": f"a red circle, drawn {prompt} times",
            "seed": seed,
            "width": width,
            "height": height,
            "num_steps": steps,
        }
        for prompt in range(prompts)
        for width, height in SIZES
        for steps in STEPS
        for seed in range(seeds)
    ]
    return job_of(folder / "job", rows, *OVERRIDES)


def _one_rank(job: Job, prompts: int) -> tuple[list[Figure], Calls]:
    """In this process, where hooks see it."""
    import pandas as pd

    from batchgen.bench._jobs import run_through
    from batchgen.families.kept import AUTO_ROWS

    with _counting() as calls:
        run, _ = run_through(job)
    rows, rank = pd.read_parquet(run.catalog_rows), pd.read_parquet(run.catalog_runs).iloc[0]
    evaluations = int((2 * rows.num_steps).sum())
    found = [
        exactly("rows ok", (rows.status == "ok").sum(), job.rows),
        exactly(
            "text encoder: a call for each prompt and the negative one", calls.texts, prompts + 1
        ),
        exactly("the same by the catalog", rank.text_encoder_calls, prompts + 1),
        exactly("text encoders loaded", len(calls.encoders), 1),
        exactly("branches of rows in forwards", calls.items, evaluations),
        exactly("the same by the catalog", rank["items"], evaluations),
        exactly("forwards by the catalog", rank.forwards, len(calls.shapes)),
    ]
    if job.rows >= AUTO_ROWS * len(SIZES):  # else rows of several shapes are in flight together
        found.append(exactly("shapes one after the other", calls.runs_of_a_shape, len(SIZES)))
    return found, calls


def _two_ranks(job: Job) -> list[Figure]:
    """As processes of their own."""
    import pandas as pd

    import batchgen
    from batchgen.paths import RunPaths

    overrides = ("slurm.executor=local", "slurm.ranks_per_node=2")
    done = batchgen.run(job.path, *job.overrides, *overrides)
    run = RunPaths(done.path.parents[1])
    ranks = pd.read_parquet(run.catalog_runs)
    return [
        exactly("two ranks: rows ok", done.ok, job.rows),
        exactly("two ranks: loads of the model", _loads(run), len(ranks)),
        exactly(
            "two ranks: calls of the text encoder, of texts that a rank had not met",
            ranks.text_encoder_calls.sum(),
            int(ranks.unique_texts_encoded.sum()),
        ),
    ]


def _loads(run: RunPaths) -> int:
    """As the journals of all attempts say."""
    from batchgen.ledger.reading.scan import index_commits

    phases = (phase.name for facts in index_commits(run).journals for phase in facts.phases)
    return sum(name == "load" for name in phases)


@contextmanager
def _counting() -> Iterator[Calls]:
    """Counts in here what torch calls, on any thread."""
    from torch.nn.modules.module import register_module_forward_hook

    calls = Calls()
    handle = register_module_forward_hook(calls.note)
    try:
        yield calls
    finally:
        handle.remove()
