"""Drives a run to its end from this process: wait, submit again what died, collect."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import numpy as np

from batchgen.config.build import build
from batchgen.config.schema import JobConfig
from batchgen.ledger.attempts import latest_submission, missing_rows
from batchgen.ledger.catalog import CatalogSummary, collect
from batchgen.ledger.status import RunStatus, read_status
from batchgen.paths import RunPaths
from batchgen.processes import wait_until_gone
from batchgen.runner.executors import executor_named
from batchgen.runner.submit import Settings, is_alive, jobs_of, submit

POLL_S = 0.25
DRAIN_S = 30.0
Watch = Callable[[RunStatus], None]


def drive(
    run: RunPaths, settings: Settings, watch: Watch, rows: np.ndarray | None = None
) -> CatalogSummary:
    """Submit `rows` (default: all that is missing), wait and submit again until no row is without a verdict or `max_attempts` is spent;
    then write the catalog. `watch` sees the status a few times a second. KeyboardInterrupt drains
    the ranks and goes on to the caller."""
    config = build(JobConfig, settings.resolved)
    wanted = rows
    try:
        for _ in range(config.slurm.max_attempts):
            if submit(run, settings, wanted) is None:
                break
            wait(run, watch)
            wanted = missing_rows(run, failed_too=False)
            if len(wanted) == 0:
                break
    except KeyboardInterrupt:
        cancel(run)
        raise
    return collect(run)


def wait(run: RunPaths, watch: Watch) -> None:
    """Return when the latest submission can commit no more."""
    number = latest_submission(run)
    while is_alive(run, number):
        watch(read_status(run))
        time.sleep(POLL_S)
    watch(read_status(run))


def cancel(run: RunPaths) -> int:
    """Drain the latest submission's ranks, and kill those that do not; returns how many ranks were
    at work. Committed rows stay, rows in flight are left for a resume."""
    number = latest_submission(run)
    jobs = jobs_of(run, number) if number else []
    ranks = [a.process for a in read_status(run).attempts if a.alive]
    for name in {job.executor for job in jobs}:
        executor_named(name).cancel([job for job in jobs if job.executor == name])
    local = [p for p in ranks if p.alive()] + [j.process for j in jobs if j.process]
    for process in ranks:
        _signal(process.pid, signal.SIGTERM)
    if not wait_until_gone(local, DRAIN_S):
        for process in local:
            if process.alive():
                _signal(process.pid, signal.SIGKILL)
        wait_until_gone(local, DRAIN_S)
    return len(ranks)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
