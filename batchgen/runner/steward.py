"""Drives a run to its end: wait, submit again what is missing, collect; and ends it.

`drive` does so from a person's process; `follow_up` is one move of it, made by the job that waits
behind the arrays of a cluster.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from batchgen.anchor import Anchor
from batchgen.catalog.collect import CatalogSummary, collect
from batchgen.durable import write_bytes_atomic
from batchgen.errors import BatchgenError, RunStateError, Told, UsageError
from batchgen.failpoints import failpoint
from batchgen.ledger.intent import Intent, last_render, own_render
from batchgen.ledger.losses import wait_for_unseen
from batchgen.ledger.status import RunStatus, live_attempts, read_status
from batchgen.paths import RunPaths
from batchgen.processes import ProcessId
from batchgen.runner.decide import next_move
from batchgen.runner.executors import executor_named
from batchgen.runner.jobs import executor_of, is_alive, jobs_of, last_submission
from batchgen.runner.recover import give_a_steward
from batchgen.runner.submit import Settings, submit, write_verdicts
from batchgen.scheduler.commands import NoScheduler, SchedulerError, job_name, patiently, queued

log = logging.getLogger(__name__)
DRAIN_S = 30.0
SCHEDULER_PATIENCE_S = 900.0  # a controller that is restarted must not end the chain
Watch = Callable[[RunStatus], None]


def drive(
    run: RunPaths, settings: Settings, watch: Watch, rows: np.ndarray | None = None
) -> CatalogSummary:
    """Submit `rows` (default: all that is missing), wait, submit again what is left for as long as
    `next_move` finds it worth while (on a cluster its steward does), and write the catalog. `watch`
    sees the status now and then. KeyboardInterrupt drains the ranks and goes on to the caller; a
    signal from elsewhere (Told) leaves them at work. StorageError if the run folder goes away
    meanwhile."""
    anchor = Anchor(run)
    try:
        started = submit(run, settings, rows)
        while started is not None:
            wait(run, watch)
            anchor.check()
            move = next_move(run) if executor_named(settings.executor).NEEDS_DRIVER else None
            started = submit(run, move.settings, move.rows) if move else None
    except Told:
        raise
    except KeyboardInterrupt:
        try:
            cancel(run)
        except BatchgenError as trouble:  # it stays an interrupt
            log.error("%s; ranks at work see the mark in the run folder and end", trouble)
        raise
    finally:
        anchor.close()
    write_verdicts(run)
    return collect(run)


def wait(run: RunPaths, watch: Watch) -> None:
    """Return when the run can gain no more rows by itself. StorageError if the run folder goes away
    meanwhile: its ranks then end by themselves."""
    anchor, intent = Anchor(run), last_render(run)
    pause = executor_of(run, intent).POLL_S if intent else 0.0
    try:
        while _may_be_alive(run):
            watch(read_status(run))
            time.sleep(pause)
            anchor.check()
        watch(read_status(run))
    except UsageError:  # nothing can be read any more: is this why?
        anchor.check()
        raise
    finally:
        anchor.close()


def _may_be_alive(run: RunPaths) -> bool:
    try:
        return is_alive(run)
    except SchedulerError as error:  # it will answer again; what it runs, runs on
        log.warning("%s", error)
        return True


def follow_up(run: RunPaths, number: int) -> int:
    """The steward job of submission `number`: submit what is left, or write the catalog. Returns
    its exit status: 1 if it ends the run with rows left or failed. Harmless when somebody else went
    on meanwhile, or an earlier start of this job was killed halfway."""
    failpoint("steward")
    wait_for_unseen(run)
    try:
        if patiently(lambda: _others_go_on(run, number), SCHEDULER_PATIENCE_S):
            log.info("the run is at work again")
            return 0
        if _submitted_again(run):
            return 0
        write_verdicts(run)
    except NoScheduler as error:  # in a container without them, say
        log.error("%s; nothing is submitted again: set slurm.steward_python", error)
    try:
        summary = collect(run)
    except RunStateError as error:  # the run folder is damaged: another start finds the same
        log.error("no catalog: %s", error)
        return 1
    log.info("catalog: %d of %d rows ok", summary.ok, summary.rows)
    return 0 if summary.ok == summary.rows else 1


def _submitted_again(run: RunPaths) -> bool:
    """Submit what is left, if anything is and it can be done from here."""
    move = next_move(run)
    if move is None:
        return False
    try:
        started = submit(run, move.settings, move.rows, patience_s=SCHEDULER_PATIENCE_S)
    except BatchgenError as error:
        log.error("%d rows cannot be submitted from here: %s", len(move.rows), error)
        return False
    if started is not None:
        log.info("submission %d: %d rows", started.number, started.rows)
    return started is not None


def _others_go_on(run: RunPaths, number: int) -> bool:
    """Whether this steward has nothing to do: tasks are at work, or another steward is here that
    goes first - of a later submission, or of the same one and submitted before."""
    if give_a_steward(run) or is_alive(run):
        return True
    own = int(os.environ.get("SLURM_JOB_ID", "0"))
    same = job_name(run, number, steward=True)
    earlier = {job_name(run, n, steward=True) for n in range(1, number)}
    stewards = [task for task in queued(run, last_submission(run)) if task.name not in earlier]
    return any(task.name != same or int(task.job_id) < own for task in stewards)


def cancel(run: RunPaths) -> int | None:
    """Drain the run's ranks and kill those that do not; returns how many were at work, None if
    nothing was. What is committed stays, rows in flight are saved for a resume. Ranks find the mark
    in the submission's folder, those that are still starting too, and without Slurm's help."""
    met, told = _ranks(run), 0
    deadline = time.monotonic() + DRAIN_S
    while (intent := own_render(run)) is not None:
        if intent.number != told:  # a steward may have submitted another one meanwhile
            if not _tell_to_end(run, intent):
                return len(met) if told else None
            told = intent.number
        if not is_alive(run):
            return len(met)
        met |= _ranks(run)
        executor = executor_of(run, intent)
        if time.monotonic() > deadline:
            executor.kill(run, intent.number, jobs_of(run, intent.number))
            return len(met)
        time.sleep(min(1.0, executor.POLL_S))
    return None


def _tell_to_end(run: RunPaths, intent: Intent) -> bool:
    """Leave the mark and drain; False, with no mark left, if nothing is at work."""
    mark = run.cancelled(intent.number)
    write_bytes_atomic(mark, b"")
    if not is_alive(run):
        mark.unlink()
        return False
    with suppress(NoScheduler):  # the ranks find the mark
        executor_of(run, intent).drain(run, intent.number, jobs_of(run, intent.number))
    return True


def _ranks(run: RunPaths) -> set[ProcessId]:
    """Ranks at work, but for this process itself (executor `inline`)."""
    return {attempt.process for attempt in live_attempts(run)} - {ProcessId.current()}
