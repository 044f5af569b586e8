"""What would keep a run on Slurm from its end: tasks that nobody follows after a submit that was
cut off, and tasks on hold that a steward would wait for. All are found by the jobs' name."""

from __future__ import annotations

import logging
import time

from batchgen.ledger.blame.rows import read_blame
from batchgen.ledger.intent import Intent, profile_of
from batchgen.ledger.submissions import maker_of
from batchgen.paths import RunPaths
from batchgen.runner.executors import Job
from batchgen.runner.jobs import write_jobs
from batchgen.scheduler.commands import (
    QueuedTask,
    SchedulerError,
    cancel_tasks,
    exclude,
    max_array_size,
    queued,
    slurm_intent,
)

log = logging.getLogger(__name__)
# From the intent to the steward's sbatch, for a maker whose life cannot be looked up.
MAKING_S = 60.0
# The last tasks may end together, each while it sees the others at work: they look again.
LOOKS, LOOK_AGAIN_S, FEW = 4, 5.0, 3


def give_a_steward(run: RunPaths) -> list[QueuedTask]:
    """If the latest submission's tasks are with Slurm and nobody waits behind them, submit a
    steward and note the jobs; returns the tasks. Empty when there is nothing to mend.
    SchedulerError if Slurm does not answer."""
    intent = slurm_intent(run)
    if intent is None or _is_being_made(run, intent):
        return []
    tasks = queued(run, intent.number)
    if not tasks or any(task.is_steward for task in tasks):
        return []
    arrays = sorted({task.array_id for task in tasks}, key=int)
    # Every task imports this module as it ends, and hardly any has something to submit.
    from batchgen.runner.executors.slurm import array_count, launch_steward

    slurm = profile_of(run, intent)
    if not launch_steward(run, intent.number, slurm, arrays):
        raise SchedulerError(
            f"{len(tasks)} task(s) are at work and Slurm takes no steward for them"
        )
    if not run.jobs(intent.number).exists():
        stride = array_count(intent.shards, max_array_size(), slurm)
        jobs = [Job("slurm", job, n, stride=stride) for n, job in enumerate(arrays)]
        write_jobs(run, intent.number, jobs)
    return tasks


def free_the_steward(run: RunPaths) -> list[QueuedTask]:
    """If all that keeps the run from going on is on hold by Slurm's own doing (a launch that
    failed, a requeue that was stopped), cancel it: the steward submits its rows again. What a
    person holds is left alone. Called by each task as it ends, and by a resume; returns what was
    ended, nothing if the steward itself is among it: then a resume has to go on."""
    intent = slurm_intent(run)
    if intent is None:
        return []
    for look in range(LOOKS):
        time.sleep(LOOK_AGAIN_S if look else 0)
        tasks = [task for task in queued(run, intent.number) if task.reason != "Dependency"]
        held = [task for task in tasks if task.held_by_slurm]
        if not held or len(tasks) - len(held) > FEW:
            return []
        if len(held) == len(tasks):
            break
    else:
        return []
    cancel_tasks([task.task_id for task in held])
    for task in held:
        log.warning("task %s was on hold (%s): its rows come again", task.task_id, task.reason)
    return [] if any(task.is_steward for task in held) else held


def keep_away(run: RunPaths, submission: int, host: str) -> None:
    """Exclude a bad host from what is pending of a submission. A node where tasks end as they start
    is always free: it would take one element after the other. Called by a task that ends by an
    error."""
    if host not in read_blame(run).bad_hosts:
        return
    tasks = [task for task in queued(run, submission) if task.waits and not task.is_steward]
    for array in sorted({task.array_id for task in tasks}, key=int):
        if exclude(array, host):
            log.warning("array %s keeps away from %s from now on", array, host)


def _is_being_made(run: RunPaths, intent: Intent) -> bool:
    if run.jobs(intent.number).exists():
        return False
    maker = maker_of(run, intent.number)
    alive = maker.alive() if maker else False
    return alive if alive is not None else time.time() - intent.created < MAKING_S
