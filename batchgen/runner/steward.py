"""Drives a run to its end: wait, submit again what is missing, collect. Also cancels a run.

`drive` does all of it from a person's process; `follow_up` does one step, in the job that waits
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
from batchgen.errors import BatchgenError, EndedBySignal, RunStateError, UsageError
from batchgen.failpoints import failpoint
from batchgen.ledger.intent import Intent, last_render, own_render
from batchgen.ledger.status import RunStatus, live_attempts, read_status
from batchgen.ledger.upkeep.losses import wait_for_unseen
from batchgen.notices import notices_of, write_metrics
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
SCHEDULER_PATIENCE_S = 900.0  # a restart of Slurm's controller must not end the run
Watch = Callable[[RunStatus], None]


def drive(
    run: RunPaths, settings: Settings, watch: Watch, rows: np.ndarray | None = None
) -> CatalogSummary:
    """Submit `rows` (default: all missing rows), wait, submit again as long as `next_move` finds it
    worth while (on a cluster the steward does this), and write the catalog. `watch` is shown the
    status from time to time.

    KeyboardInterrupt drains the ranks and is raised again; a signal from elsewhere (EndedBySignal)
    leaves them at work. StorageError if the run folder goes away.
    """
    anchor = Anchor(run)
    try:
        started = submit(run, settings, rows)
        while started is not None:
            wait(run, watch)
            anchor.check()
            tell_end(run)
            move = next_move(run) if executor_named(settings.executor).NEEDS_DRIVER else None
            started = submit(run, move.settings, move.rows) if move else None
    except EndedBySignal:
        raise
    except KeyboardInterrupt:
        try:
            cancel(run)
        except BatchgenError as trouble:  # the interrupt is raised, not this
            log.error("%s; ranks at work see the mark in the run folder and end", trouble)
        raise
    finally:
        anchor.close()
    write_verdicts(run)
    summary = publish(run)
    tell_end(run, over=True)
    return summary


def publish(run: RunPaths) -> CatalogSummary:
    """Write the catalog and the report of a run. RunStateError or StorageError if there can be no
    catalog; a report that cannot be written is only logged, since the rows do not need it."""
    from batchgen.report import write_report

    summary = collect(run)
    try:
        write_report(run)
    except BatchgenError as error:
        log.warning("no report: %s", error)
    return summary


def tell_end(run: RunPaths, *, over: bool = False) -> None:
    """Say, unless somebody has, that no rank is at work and, if it is `over`, that nothing more is
    submitted. Also brings the run's metrics up to date."""
    write_metrics(run)
    with notices_of(run) as notices:
        notices.submission_ended()
        if over:
            notices.run_ended()


def wait(run: RunPaths, watch: Watch) -> None:
    """Return when the run can gain no more rows by itself. StorageError if the run folder goes
    away; its ranks then end by themselves."""
    anchor, intent = Anchor(run), last_render(run)
    pause = executor_of(run, intent).POLL_S if intent else 0.0
    try:
        while _may_be_alive(run):
            watch(read_status(run))
            time.sleep(pause)
            anchor.check()
        watch(read_status(run))
    except UsageError:  # because the folder is gone?
        anchor.check()
        raise
    finally:
        anchor.close()


def _may_be_alive(run: RunPaths) -> bool:
    try:
        return is_alive(run)
    except SchedulerError as error:  # Slurm will answer again, and its tasks run on
        log.warning("%s", error)
        return True


def follow_up(run: RunPaths, number: int) -> int:
    """What the steward job of submission `number` does: submit what is left, or write the catalog.

    Returns its exit status: 1 if the run ends with rows left or failed. Does nothing harmful if
    another process went on meanwhile, or an earlier start of this job was killed halfway.
    """
    failpoint("steward")
    wait_for_unseen(run)
    try:
        if patiently(lambda: _others_go_on(run, number), SCHEDULER_PATIENCE_S):
            log.info("the run is at work again")
            return 0
        tell_end(run)
        if _submitted_again(run):
            return 0
        write_verdicts(run)
    except NoScheduler as error:  # in a container without Slurm's commands, for example
        log.error("%s; nothing is submitted again: set slurm.steward_python", error)
    try:
        summary = publish(run)
    except RunStateError as error:  # a damaged run folder: another start would find the same
        log.error("no catalog: %s", error)
        tell_end(run, over=True)
        return 1
    tell_end(run, over=True)
    log.info("catalog: %d of %d rows ok", summary.ok, summary.rows)
    return 0 if summary.ok == summary.rows else 1


def _submitted_again(run: RunPaths) -> bool:
    """Submit what is left; returns whether something was submitted."""
    try:
        move = next_move(run)
    except SchedulerError:
        raise
    except BatchgenError as error:
        log.error("what is left cannot be planned from here: %s", error)
        return False
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
    """Whether this steward has nothing to do: tasks are at work, or another steward goes first,
    being of a later submission, or of the same one and submitted earlier."""
    if give_a_steward(run) or is_alive(run):
        return True
    own = int(os.environ.get("SLURM_JOB_ID", "0"))
    same = job_name(run, number, steward=True)
    earlier = {job_name(run, n, steward=True) for n in range(1, number)}
    stewards = [task for task in queued(run, last_submission(run)) if task.name not in earlier]
    return any(task.name != same or int(task.job_id) < own for task in stewards)


def cancel(run: RunPaths) -> int | None:
    """Drain the run's ranks and kill those that do not end; returns how many were at work, None if
    nothing was.

    Committed rows stay, and rows in flight are saved for a resume. The ranks find a mark in the
    submission's folder; so do those that are still starting, and no help of Slurm is needed.
    """
    met, announced = _ranks(run), 0
    deadline = time.monotonic() + DRAIN_S
    while (intent := own_render(run)) is not None:
        if intent.number != announced:  # a steward may have begun another submission meanwhile
            if not _tell_to_end(run, intent):
                return len(met) if announced else None
            announced = intent.number
        if not is_alive(run):
            tell_end(run, over=True)
            return len(met)
        met |= _ranks(run)
        executor = executor_of(run, intent)
        if time.monotonic() > deadline:
            executor.kill(run, intent.number, jobs_of(run, intent.number))
            if not is_alive(run):
                tell_end(run, over=True)
            return len(met)
        time.sleep(min(1.0, executor.POLL_S))
    return None


def _tell_to_end(run: RunPaths, intent: Intent) -> bool:
    """Leave the mark and drain. False, with the mark taken away, if nothing is at work."""
    mark = run.cancelled(intent.number)
    write_bytes_atomic(mark, b"")
    if not is_alive(run):
        mark.unlink()
        return False
    with suppress(NoScheduler):  # the ranks find the mark without Slurm
        executor_of(run, intent).drain(run, intent.number, jobs_of(run, intent.number))
    return True


def _ranks(run: RunPaths) -> set[ProcessId]:
    """Ranks at work, without this process itself (executor `inline`)."""
    return {attempt.process for attempt in live_attempts(run)} - {ProcessId.current()}
