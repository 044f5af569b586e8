"""What would keep a run on Slurm from its end: tasks that nobody follows after a submit that was
cut off, and tasks on hold that a steward would wait for. All are found by the jobs' name."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import defaultdict

import numpy as np

from batchgen.errors import RunStateError, StorageError
from batchgen.ledger.attempts import maker_of
from batchgen.ledger.blame import read_blame
from batchgen.ledger.deaths import host_of
from batchgen.ledger.intent import Intent
from batchgen.ledger.scan import STATUS_CODES, CommitIndex, index_commits
from batchgen.ledger.winners import winners
from batchgen.paths import RunPaths
from batchgen.runner.executors import Job
from batchgen.runner.executors.slurm import array_count, launch_steward
from batchgen.runner.jobs import write_jobs
from batchgen.runner.scheduler import (
    QueuedTask,
    SchedulerError,
    cancel_tasks,
    exclude,
    max_array_size,
    queued,
    slurm_intent,
)
from batchgen.runner.submit import profile_of

log = logging.getLogger(__name__)
# From the intent to the steward's sbatch, for a maker whose life cannot be looked up.
MAKING_S = 60.0
# The last tasks may end together, each while it sees the others at work: they look again.
LOOKS, LOOK_AGAIN_S, FEW = 4, 5.0, 3
BROKEN_AFTER = 2  # starts of tasks
_NO_HOSTS_FAULT = [error.__name__ for error in (StorageError, RunStateError, KeyboardInterrupt)]


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
    slurm = profile_of(json.loads(intent.config))
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
    """Exclude a host from what is pending of a submission if it is bad, or broke down after it had
    rendered rows. A node where tasks end as they start is always free: it would take one element
    after the other. Called by a task that ends by an error."""
    found = winners(run, index_commits(run))
    if host not in broken_down(found.index) and host not in read_blame(run, found).bad_hosts:
        return
    tasks = [task for task in queued(run, submission) if task.waits and not task.is_steward]
    for array in sorted({task.array_id for task in tasks}, key=int):
        if exclude(array, host):
            log.warning("array %s keeps away from %s from now on", array, host)


def broken_down(index: CommitIndex) -> set[str]:
    """Hosts that rendered rows, and where since then two starts of tasks or more ended by an error
    without any commit. Empty if these are more than half of the hosts that rendered: then it is the
    cluster or the job, and some must be left to come to its end."""
    heard = _last_good(index)
    tried = set(index.journal.tolist())
    fallen: dict[str, set[tuple[int, int, int]]] = defaultdict(set)  # host -> starts
    for place, facts in enumerate(index.journals):
        host, attempt, end = host_of(facts), facts.journal.attempt, facts.end
        if end is None or not end.error or end.reason in _NO_HOSTS_FAULT or place in tried:
            continue
        if end.t > heard.get(host, math.inf):
            fallen[host].add((attempt.submission, attempt.task, attempt.restart))
    broken = {host for host, starts in fallen.items() if len(starts) >= BROKEN_AFTER}
    return broken if 2 * len(broken) <= len(heard) else set()


def _last_good(index: CommitIndex) -> dict[str, float]:
    """When the attempts that rendered rows were last heard of (unix seconds), by host."""
    good = index.accepted & (index.status == STATUS_CODES["ok"])
    heard: dict[str, float] = defaultdict(float)
    for place in np.unique(index.journal[good]).tolist():
        facts = index.journals[place]
        heard[host_of(facts)] = max(heard[host_of(facts)], facts.last_t)
    return dict(heard)


def _is_being_made(run: RunPaths, intent: Intent) -> bool:
    if run.jobs(intent.number).exists():
        return False
    maker = maker_of(run, intent.number)
    alive = maker.alive() if maker else False
    return alive if alive is not None else time.time() - intent.created < MAKING_S
