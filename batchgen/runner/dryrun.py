"""What a submit would hand to Slurm, without handing it over."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from batchgen.config.compose import Composed
from batchgen.paths import RunPaths
from batchgen.planning.plan import make_plan, read_costs
from batchgen.runner import scheduler
from batchgen.runner.executors import executor_for
from batchgen.runner.submit import cut

RUN = "RUN"  # stands for the folder that a submit would make


@dataclass(frozen=True, slots=True)
class DryRun:
    """A submission that is not made."""

    rows: int
    shards: int
    scripts: tuple[str, ...]  # one per array, the steward's last; none for executors of one machine


def dry_run(composed: Composed) -> DryRun:
    """Plan the job, cut it, and make the batch scripts; leaves nothing behind.

    Raises what a submit raises before it starts anything.
    """
    slurm = composed.config.slurm
    executor_for(slurm)
    with tempfile.TemporaryDirectory(prefix="batchgen-") as folder:
        plan = Path(folder) / "plan.parquet"
        make_plan(composed.config, plan)
        rows = np.flatnonzero(~read_costs(plan).is_alias)
        shards = int(cut(plan, rows, composed.config).shard.max(initial=-1)) + 1
    scripts: list[str] = []
    if slurm.executor == "slurm":
        from batchgen.runner.executors.slurm import after, steward_batch, task_batches, waits_for

        run = RunPaths(Path(composed.config.output.root_dir).absolute() / RUN)
        batches = task_batches(run, 1, shards, slurm, scheduler.max_array_size())
        ids = [f"ARRAY-{number + 1}" for number in range(len(batches))]
        tasks = [after(batch, waits_for(ids[:n], slurm)) for n, batch in enumerate(batches)]
        scripts = [batch.script() for batch in (*tasks, after(steward_batch(run, 1, slurm), ids))]
    return DryRun(len(rows), shards, tuple(scripts))
