"""A submit that was cut off after Slurm had taken its tasks: found again by the jobs' name."""

from __future__ import annotations

import json
import time

from batchgen.ledger.attempts import maker_of
from batchgen.ledger.intent import Intent, last_render
from batchgen.paths import RunPaths
from batchgen.runner.executors import Job
from batchgen.runner.executors.slurm import launch_steward
from batchgen.runner.jobs import write_jobs
from batchgen.runner.scheduler import QueuedTask, job_name, queued
from batchgen.runner.submit import profile_of

MAKING_S = (
    60.0  # from the intent to the steward's sbatch, for a maker whose life cannot be looked up
)


def give_a_steward(run: RunPaths) -> list[QueuedTask]:
    """If the latest submission's tasks are with Slurm and nobody waits behind them, submit a
    steward and note the jobs; returns the tasks. Empty when there is nothing to mend.
    SchedulerError if Slurm does not answer."""
    intent = last_render(run)
    if intent is None or json.loads(intent.config)["slurm"]["executor"] != "slurm":
        return []
    if _is_being_made(run, intent):
        return []
    tasks = queued(run, intent.number)
    if not tasks or any(t.name != job_name(run, intent.number) for t in tasks):
        return []  # a steward is among them
    arrays = sorted({task.array_id for task in tasks})
    launch_steward(run, intent.number, profile_of(json.loads(intent.config)), arrays)
    write_jobs(run, intent.number, [Job("slurm", job, n) for n, job in enumerate(arrays)])
    return tasks


def _is_being_made(run: RunPaths, intent: Intent) -> bool:
    if run.jobs(intent.number).exists():
        return False
    maker = maker_of(run, intent.number)
    alive = maker.alive() if maker else False
    return alive if alive is not None else time.time() - intent.created < MAKING_S
