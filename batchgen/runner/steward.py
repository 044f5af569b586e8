"""Drives a run to its end from this process: wait, submit again what died, collect."""

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
from batchgen.ledger.intent import submission_numbers
from batchgen.ledger.status import RunStatus, live_attempts, read_status
from batchgen.ledger.winners import missing_rows
from batchgen.paths import RunPaths
from batchgen.processes import ProcessId, wait_until_gone
from batchgen.runner.executors import executor_named
from batchgen.runner.submit import Settings, is_alive, jobs_of, submit

POLL_S = 0.25
DRAIN_S = 30.0
Watch = Callable[[RunStatus], None]


def drive(
    run: RunPaths, settings: Settings, watch: Watch, rows: np.ndarray | None = None
) -> CatalogSummary:
    """Submit `rows` (default: all that is missing), wait, and submit again what has no verdict,
    until none is left or `max_attempts` is spent; then write the catalog. `watch` sees the status
    a few times a second. KeyboardInterrupt drains the ranks and goes on to the caller."""
    config = build(JobConfig, settings.resolved)
    wanted = rows
    try:
        for _ in range(config.slurm.max_attempts):
            if submit(run, settings, wanted) is None:
                break
            wait(run, watch)
            wanted = missing_rows(run).pending
            if len(wanted) == 0:
                break
    except KeyboardInterrupt:
        cancel(run)
        raise
    return collect(run)


def wait(run: RunPaths, watch: Watch) -> None:
    """Return when the latest submission can commit no more."""
    number = submission_numbers(run)[-1]
    while is_alive(run, number):
        watch(read_status(run))
        time.sleep(POLL_S)
    watch(read_status(run))


def cancel(run: RunPaths) -> int:
    """Drain the run's ranks and kill those that do not; returns how many were at work. What is
    committed stays, rows in flight are left for a resume."""
    numbers = submission_numbers(run)
    jobs = jobs_of(run, numbers[-1]) if numbers else []
    for name in {job.executor for job in jobs}:
        executor_named(name).cancel([job for job in jobs if job.executor == name])
    ranks = [attempt.process for attempt in live_attempts(run)]
    here = [p for p in ranks if p.alive()]
    for process in here:
        _signal(process, signal.SIGTERM)
    here += [job.process for job in jobs if job.process is not None]
    if not wait_until_gone(here, DRAIN_S):
        for process in here:
            _signal(process, signal.SIGKILL)
        wait_until_gone(here, DRAIN_S)
    return len(ranks)


def _signal(process: ProcessId, number: signal.Signals) -> None:
    if process.alive() and process != ProcessId.current():
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
