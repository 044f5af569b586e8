"""Mends what would keep a run on Slurm from its end: tasks without a steward after a submit that
was cut off, and held tasks that the steward would wait for for ever. All are found by job name."""

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
from batchgen.words import counted

log = logging.getLogger(__name__)
# Longest time from intent to steward, for a maker that cannot be asked if it is alive.
MAKING_S = 60.0
# The last tasks may end together, and each may still see the others at work: so they look again.
LOOKS, LOOK_AGAIN_S, FEW = 4, 5.0, 3


def give_a_steward(run: RunPaths) -> list[QueuedTask]:
    """If the latest submission has tasks with Slurm but no steward, submit a steward, write the
    jobs down and return the tasks. Empty if there is nothing to mend; SchedulerError if Slurm does
    not answer."""
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
            f"{counted(len(tasks), 'task')} at work, and Slurm takes no steward for them"
        )
    if not run.jobs(intent.number).exists():
        stride = array_count(intent.shards, max_array_size(), slurm)
        jobs = [Job("slurm", job, n, stride=stride) for n, job in enumerate(arrays)]
        write_jobs(run, intent.number, jobs)
    return tasks


def free_the_steward(run: RunPaths) -> list[QueuedTask]:
    """If only tasks held by Slurm itself (after a failed launch or a stopped requeue) keep the run
    from going on, cancel them: the steward submits their rows again. Tasks held by a person are
    left alone.

    Called by each task as it ends, and by a resume. Returns the cancelled tasks, or nothing if the
    steward was one of them: then the resume has to do its work.
    """
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
        log.warning(
            "task %s was on hold (%s) and is cancelled: its rows are submitted again",
            task.task_id,
            task.reason,
        )
    return [] if any(task.is_steward for task in held) else held


def keep_away(run: RunPaths, submission: int, host: str) -> None:
    """Exclude a bad host from the pending tasks of a submission. A node where tasks end as soon as
    they start is always free, and would take one element after the other. Called by a task that
    ends with an error."""
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
