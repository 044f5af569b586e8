"""The jobs of a submission as they were started, and whether they are at work."""

from __future__ import annotations

import json
from dataclasses import asdict

from batchgen.errors import RunStateError
from batchgen.ledger.attempts import maker_of
from batchgen.ledger.intent import submission_numbers
from batchgen.ledger.status import live_attempts
from batchgen.media.durable import write_json
from batchgen.paths import RunPaths
from batchgen.processes import ProcessId
from batchgen.runner.executors import Job, executor_named


def write_jobs(run: RunPaths, number: int, jobs: list[Job]) -> None:
    """Note, durably, what was started for a submission."""
    write_json(run.jobs(number), {"jobs": [asdict(job) for job in jobs]})


def jobs_of(run: RunPaths, number: int) -> list[Job]:
    """The started jobs of a submission; none when it was cut off before they were written."""
    try:
        written = json.loads(run.jobs(number).read_text())["jobs"]
    except FileNotFoundError:
        return []
    for fields in written:
        if fields["process"] is not None:
            fields["process"] = ProcessId(**fields["process"])
    return [Job(**fields) for fields in written]


def last_submission(run: RunPaths) -> int:
    """Number of the latest submission; 0 when there is none."""
    return (submission_numbers(run) or [0])[-1]


def is_alive(run: RunPaths, number: int) -> bool:
    """Whether submission `number` may still commit rows: a job, a rank, or its maker is at work."""
    if any(executor_named(job.executor).is_alive(job) for job in jobs_of(run, number)):
        return True
    if live_attempts(run):
        return True
    if number == 0 or run.jobs(number).exists():
        return False
    maker = maker_of(run, number)
    return maker is not None and maker != ProcessId.current() and bool(maker.alive())


def refuse_if_alive(run: RunPaths) -> None:
    """Raise RunStateError while the latest submission is at work: two would render rows twice."""
    number = last_submission(run)
    if is_alive(run, number):
        raise RunStateError(
            f"submission {number} of {run.root.name} is at work; wait for it, or end it with "
            f"`batchgen cancel {run.root.name}`"
        )
