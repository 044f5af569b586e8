"""Drives a run to its end from this process: wait, submit again what died, collect; and ends it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from batchgen.config.build import build
from batchgen.config.schema import JobConfig
from batchgen.ledger.catalog import CatalogSummary, collect
from batchgen.ledger.status import AttemptStatus, RunStatus, live_attempts, read_status
from batchgen.ledger.winners import missing_rows
from batchgen.media.durable import write_bytes_atomic
from batchgen.paths import RunPaths
from batchgen.processes import ProcessId, children_of
from batchgen.runner.executors import executor_named
from batchgen.runner.jobs import is_alive, jobs_of, last_submission
from batchgen.runner.submit import Settings, submit

POLL_S = 0.25
DRAIN_S = 30.0
Watch = Callable[[RunStatus], None]


def drive(
    run: RunPaths, settings: Settings, watch: Watch, rows: np.ndarray | None = None
) -> CatalogSummary:
    """Submit `rows` (default: all that is missing), wait, and submit again what has no verdict,
    until none is left, `max_attempts` is spent, somebody cancels, or every rank ends by the same
    error without a row; then write the catalog. `watch` sees the status a few times a second.
    KeyboardInterrupt drains the ranks and goes on to the caller."""
    config = build(JobConfig, settings.resolved)
    wanted = rows
    try:
        for _ in range(config.slurm.max_attempts):
            if submit(run, settings, wanted) is None:
                break
            settings = Settings(settings.resolved, settings.overrides)
            status = wait(run, watch)
            wanted = missing_rows(run).pending
            if rows is not None:
                wanted = np.intersect1d(wanted, rows)
            if len(wanted) == 0 or _is_hopeless(run, status):
                break
    except KeyboardInterrupt:
        cancel(run)
        raise
    return collect(run)


def wait(run: RunPaths, watch: Watch) -> RunStatus:
    """Return the status when the latest submission can commit no more."""
    number = last_submission(run)
    while is_alive(run, number):
        watch(read_status(run))
        time.sleep(POLL_S)
    status = read_status(run)
    watch(status)
    return status


def _is_hopeless(run: RunPaths, status: RunStatus) -> bool:
    """Whether another try would be in vain: somebody ended this one, or all its ranks met the same
    error before their first row."""
    ranks = [a for a in status.attempts if a.attempt.submission == status.submission]
    if run.cancelled(status.submission).exists() or any(a.ended == "cancelled" for a in ranks):
        return True
    return bool(ranks) and len({a.error for a in ranks}) == 1 and all(map(_fell_at_once, ranks))


def _fell_at_once(rank: AttemptStatus) -> bool:
    return bool(rank.error) and rank.commits == 0


def cancel(run: RunPaths) -> int:
    """Drain the run's ranks and kill those that do not; returns how many were at work. What is
    committed stays, rows in flight are left for a resume. Ranks that are still starting find the
    mark in the submission's folder."""
    number = last_submission(run)
    if not is_alive(run, number):
        return 0
    write_bytes_atomic(run.cancelled(number), b"")
    jobs = jobs_of(run, number)
    for name in {job.executor for job in jobs}:
        executor_named(name).cancel([job for job in jobs if job.executor == name])
    met: set[ProcessId] = set()
    deadline = time.monotonic() + DRAIN_S
    while (ranks := _others(run)) or is_alive(run, number):
        for process in ranks - met:
            _signal(process, signal.SIGTERM)
        met |= ranks
        if time.monotonic() > deadline:
            _kill(run, number)
            break
        time.sleep(0.1)
    return len(met)


def _others(run: RunPaths) -> set[ProcessId]:
    """Ranks at work on this machine, but for this process itself (executor `inline`)."""
    live = {attempt.process for attempt in live_attempts(run)}
    return {p for p in live if p.alive()} - {ProcessId.current()}


def _kill(run: RunPaths, number: int) -> None:
    controllers = [job.process for job in jobs_of(run, number) if job.process is not None]
    ranks = [child for process in controllers for child in children_of(process)]
    for process in (*controllers, *ranks, *_others(run)):
        _signal(process, signal.SIGKILL)


def _signal(process: ProcessId, number: signal.Signals) -> None:
    if process.alive():
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
