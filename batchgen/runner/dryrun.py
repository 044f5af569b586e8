"""Shows what a submit would give to Slurm, without submitting it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from batchgen.config.composing.compose import Composed
from batchgen.config.schema import JobConfig
from batchgen.paths import RunPaths
from batchgen.planning.plan import make_plan, read_costs
from batchgen.planning.pricing.layout import resolve_layout
from batchgen.planning.pricing.work import read_work
from batchgen.planning.store import piloting
from batchgen.records import Layout
from batchgen.runner.executors import check_profile
from batchgen.runner.loras import judge_of
from batchgen.runner.submit import cut, on_one_rank
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
    waiting: int = 0  # further rows, which are planned when a pilot has ended
    scripts: tuple[str, ...] = ()  # one per array, then the steward's; none on one machine
    max_array_size: int | None = None  # the limit that the arrays were cut for
    assumed: bool = False  # the limit is assumed, since Slurm did not answer


def dry_run(composed: Composed) -> DryRun:
    """Plan the job, cut it into shards and make the batch scripts. Leaves nothing behind and needs
    no Slurm. Raises what a plan raises."""
    config, slurm = composed.config, composed.config.slurm
    check_profile(slurm)
    check_folder(slurm.executor, Path(composed.config.output.root_dir).absolute())
    with tempfile.TemporaryDirectory(prefix="batchgen-") as folder:
        plan = Path(folder) / "plan.parquet"
        made = make_plan(composed.config, plan, judge=judge_of(composed.config))
        is_alias = read_costs(plan).is_alias
        every = rows = np.flatnonzero(~is_alias)
        if pilot := bool(made.pilots):
            config, rows = on_one_rank(config), piloting(made.pilots)
        work = read_work(plan, rows, config.model, config.system.cache.audit_every)
        layout = resolve_layout(config, work)
        cuts = cut(plan, rows, config, layout, together=pilot)
        shards, waiting = int(cuts.shard.max(initial=-1)) + 1, len(every) - len(rows)
    if slurm.executor != "slurm":
        return DryRun(len(rows), shards, waiting)
    try:
        window, assumed = scheduler.max_array_size(), False
    except SchedulerError:
        window, assumed = ASSUMED_ARRAY, True
    scripts = _scripts(config, layout, shards, window, len(is_alias))
    return DryRun(len(rows), shards, waiting, scripts, window, assumed)


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
