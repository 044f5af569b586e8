"""Shows what a submit would give to Slurm, without submitting it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from batchgen.config.compose import Composed
from batchgen.config.schema import JobConfig
from batchgen.paths import RunPaths
from batchgen.planning.layout import resolve_layout
from batchgen.planning.plan import make_plan, read_costs
from batchgen.planning.work import planned_work
from batchgen.records import Layout
from batchgen.runner.executors import check_profile
from batchgen.runner.submit import cut
from batchgen.scheduler import commands as scheduler
from batchgen.scheduler.commands import SchedulerError
from batchgen.scheduler.options import check_folder

ASSUMED_ARRAY = 1001  # Slurm's default of MaxArraySize
RUN = "RUN"  # stands for the run folder that a submit would make


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a submit would do."""

    rows: int
    shards: int
    scripts: tuple[str, ...] = ()  # one per array, then the steward's; none on one machine
    max_array_size: int | None = None  # the limit that the arrays were cut for
    assumed: bool = False  # the limit is assumed, since Slurm did not answer


def dry_run(composed: Composed) -> DryRun:
    """Plan the job, cut it into shards and make the batch scripts. Leaves nothing behind and needs
    no Slurm. Raises what a plan raises."""
    slurm = composed.config.slurm
    check_profile(slurm)
    check_folder(slurm.executor, Path(composed.config.output.root_dir).absolute())
    with tempfile.TemporaryDirectory(prefix="batchgen-") as folder:
        plan = Path(folder) / "plan.parquet"
        made = make_plan(composed.config, plan)
        layout = resolve_layout(composed.config, planned_work(made.buckets))
        is_alias = read_costs(plan).is_alias
        rows = np.flatnonzero(~is_alias)
        shards = int(cut(plan, rows, composed.config, layout).shard.max(initial=-1)) + 1
    if slurm.executor != "slurm":
        return DryRun(len(rows), shards)
    try:
        window, assumed = scheduler.max_array_size(), False
    except SchedulerError:
        window, assumed = ASSUMED_ARRAY, True
    scripts = _scripts(composed.config, layout, shards, window, len(is_alias))
    return DryRun(len(rows), shards, scripts, window, assumed)


def _scripts(
    config: JobConfig, layout: Layout, shards: int, window: int, rows: int
) -> tuple[str, ...]:
    from batchgen.runner.executors.slurm import in_groups, steward_batch, task_batches, waits_for
    from batchgen.scheduler.batch import after

    run = RunPaths(Path(config.output.root_dir).absolute() / RUN)
    slurm, together = in_groups(config.slurm, layout)
    batches = task_batches(run, 1, shards, slurm, window, together)
    ids = [f"ARRAY-{number + 1}" for number in range(len(batches))]
    tasks = [after(batch, waits_for(ids[:n], slurm)) for n, batch in enumerate(batches)]
    steward = after(steward_batch(run, 1, slurm, rows), ids)
    return tuple(batch.script() for batch in (*tasks, steward))
