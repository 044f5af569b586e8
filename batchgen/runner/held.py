"""Tasks that Slurm itself put on hold: the steward must not wait for them for ever."""

from __future__ import annotations

import logging

from batchgen.paths import RunPaths
from batchgen.runner import scheduler
from batchgen.runner.scheduler import QueuedTask, SchedulerError, job_name, queued

log = logging.getLogger(__name__)


def free_the_steward(run: RunPaths, submission: int) -> list[QueuedTask]:
    """If all that is left of the arrays is on hold by Slurm's own doing (a launch that failed, a
    requeue that was stopped), cancel it: the steward submits its rows again. What a person holds is
    left alone. Called by each task as it ends, so the last one does it; returns what was ended."""
    try:
        tasks = [t for t in queued(run, submission) if _is_left(run, submission, t)]
        if not tasks or not all(task.held_by_slurm for task in tasks):
            return []
        scheduler.cancel_tasks([task.task_id for task in tasks])
    except SchedulerError as error:  # then `status` tells, and a person decides
        log.warning("the queue cannot be looked at: %s", error)
        return []
    for task in tasks:
        log.warning(
            "task %s was on hold (%s): its rows are submitted anew", task.task_id, task.reason
        )
    return tasks


def _is_left(run: RunPaths, submission: int, task: QueuedTask) -> bool:
    """Whether the task is one of the arrays' and has not ended yet."""
    return task.name == job_name(run, submission) and task.state != "COMPLETING"
