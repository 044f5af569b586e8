"""The jobs of a submission as they were started, and whether any is at work."""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import cache

from batchgen.durable import write_json
from batchgen.errors import RunStateError
from batchgen.ledger.events import from_plain
from batchgen.ledger.intent import Intent, own_render, profile_of, submission_numbers
from batchgen.ledger.status import live_attempts
from batchgen.ledger.submissions import maker_of
from batchgen.paths import RunPaths, as_typed
from batchgen.processes import ProcessId
from batchgen.regular import Damaged, read_control
from batchgen.runner.executors import Executor, Job, executor_named
from batchgen.scheduler.commands import NoScheduler

log = logging.getLogger(__name__)


def write_jobs(run: RunPaths, number: int, jobs: list[Job]) -> None:
    """Write down, durably, the jobs that were started for a submission."""
    write_json(run.jobs(number), {"jobs": [asdict(job) for job in jobs]})


def jobs_of(run: RunPaths, number: int) -> list[Job]:
    """The started jobs of a submission; empty if it was cut off before they were written."""
    path, way = run.jobs(number), "once nothing of the run is at work, delete it"
    try:
        found = read_control(path)
        return [from_plain(Job, fields) for fields in found["jobs"]] if found is not None else []
    except Damaged as error:
        raise Damaged(f"{error}; {way}") from None
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise Damaged(f"{path} is damaged ({reason}); {way}") from None


def last_submission(run: RunPaths) -> int:
    """Number of the latest submission; 0 when there is none."""
    return (submission_numbers(run) or [0])[-1]


def executor_of(run: RunPaths, intent: Intent) -> Executor:
    """The executor that a submission was started with."""
    return executor_named(profile_of(run, intent).executor)


def is_alive(run: RunPaths) -> bool:
    """Whether the run may still gain rows: a job, a rank, or the maker of a submission is at work.

    SchedulerError if Slurm has to be asked and does not answer. If Slurm's commands are missing,
    the heartbeats of ranks decide; waiting jobs are then not seen.
    """
    number, render = last_submission(run), own_render(run)
    if render is not None and _renders(run, render):
        return True
    if number == 0 or run.jobs(number).exists():
        return False
    maker = maker_of(run, number)
    return maker is not None and maker != ProcessId.current() and bool(maker.alive())


def _renders(run: RunPaths, intent: Intent) -> bool:
    try:
        return executor_of(run, intent).is_alive(run, intent.number, jobs_of(run, intent.number))
    except NoScheduler as error:
        _say_once(f"{error} Going by the heartbeats in {run.root}; its queue cannot be seen")
        return bool(live_attempts(run))


@cache
def _say_once(text: str) -> None:
    log.warning("%s", text)


def refuse_if_alive(run: RunPaths) -> None:
    """RunStateError if the latest submission is at work: two would render the same rows."""
    if is_alive(run):
        raise RunStateError(
            f"submission {last_submission(run)} of {run.root.name} is at work; wait for it, or "
            f"end it with `batchgen cancel {as_typed(run.root)}`"
        )
