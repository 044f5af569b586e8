"""Made-up jobs for benches that use the runner; without a model unless overrides name one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.config.composing.compose import compose_job
from batchgen.families.null.model import SLOW
from batchgen.paths import RunPaths
from batchgen.runner.create import create_run
from batchgen.runner.steward import publish
from batchgen.runner.submit import Settings, submit

GROUP_ROWS = 100_000  # of a manifest that are in memory at a time
STEPS = (3, 3, 3, 9)  # of rows in turn: a quarter takes three times as long
JOB = """\
defaults: [base, {{model: null-engine}}, _self_]
manifest: {manifest}
row_defaults: {{num_steps: 3}}
output: {{root_dir: {root}}}
slurm: {{executor: inline}}
"""


@dataclass(frozen=True, slots=True)
class Job:
    """A job file with its manifest, in a folder of its own."""

    path: Path
    rows: int
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds of a run from its manifest to its report."""

    plan: float  # with composing and making the folder
    submit: float  # drawing included: inline
    publish: float  # catalog and report
    drawing: float  # of these, by the thread that draws, from its first row on


def null_job(folder: Path, rows: int, steps: tuple[int, ...] = STEPS) -> Job:
    """Write job and manifest of rows without a model; their steps are `steps` in turn."""
    return _written(folder, rows, (_batch(*ends, steps) for ends in _groups(rows)))


def job_of(folder: Path, rows: Sequence[Mapping[str, object]], *overrides: str) -> Job:
    """Write job and manifest of these rows."""
    job = _written(folder, len(rows), [pa.Table.from_pylist(list(rows))])
    return replace(job, overrides=overrides)


def _written(folder: Path, rows: int, tables: Iterable[pa.Table]) -> Job:
    folder.mkdir(parents=True)
    manifest, job = folder / "manifest.parquet", folder / "job.yaml"
    with ExitStack() as stack:
        writer = None
        for table in tables:
            writer = writer or stack.enter_context(pq.ParquetWriter(manifest, table.schema))
            writer.write_table(table)
    job.write_text(JOB.format(manifest=manifest, root=folder / "runs"))
    return Job(job, rows)


def _groups(rows: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, rows, GROUP_ROWS):
        yield begin, min(rows, begin + GROUP_ROWS)


def _batch(begin: int, end: int, steps: tuple[int, ...]) -> pa.Table:
    numbers = np.arange(begin, end)
    names = [str(number) for number in numbers.tolist()]
    return pa.table(
        {
            "row_id": [f"row-{name}" for name in names],
            "prompt": [f"a street in the rain seen from window {name}, evening" for name in names],
            "seed": pa.array(numbers, pa.int64()),
            "num_steps": pa.array(np.resize(steps, end)[begin:], pa.int32()),
        }
    )


def made(job: Job) -> tuple[RunPaths, Settings]:
    """A planned run of the job."""
    composed = compose_job(job.path, job.overrides)
    return create_run(composed), Settings(composed.resolved, list(composed.overrides))


def run_through(job: Job) -> tuple[RunPaths, Took]:
    """Plan, draw in this process, collect, report."""
    import pandas as pd

    begin = perf_counter()
    run, settings = made(job)
    planned = perf_counter()
    submit(run, settings)
    drawn = perf_counter()
    publish(run)
    end = perf_counter()
    rank = pd.read_parquet(run.catalog_runs).iloc[0]
    drawing = float(rank.busy_s + rank.shared_decode_s + rank.idle_s + rank.tail_s)
    return run, Took(planned - begin, drawn - planned, end - drawn, drawing)


@contextmanager
def at_pace(pace: float) -> Iterator[None]:
    """Rows without a model take so many times their predicted seconds in here; 0: no time."""
    before = os.environ.get(SLOW)
    os.environ[SLOW] = f"*={pace:g}"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SLOW]
        else:
            os.environ[SLOW] = before
