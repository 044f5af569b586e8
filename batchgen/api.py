"""The verbs of the command line as functions with typed results; they print nothing, but for a
line of progress in a notebook.

JOB is the path of a job file, followed by overrides as on the command line: `plan("jobs/demo.yaml",
"slurm=inline", "tag=x")`. RUN is a run folder, its unique prefix in `root`, or `latest`. What the
command line answers with exit code 2 is raised as `errors.UsageError` (ConfigError, ManifestError,
RunStateError ...), with the same words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from batchgen.bars import notebook_lines
from batchgen.paths import RUNS, RunPaths, at_home
from batchgen.runner.find import find_run
from batchgen.words import Tabled

if TYPE_CHECKING:
    from batchgen.catalog.collect import CatalogSummary
    from batchgen.catalog.verify import VerifyReport
    from batchgen.ledger.status import RunStatus
    from batchgen.planning.pricing.forecast import Forecast
    from batchgen.planning.store import Plan
    from batchgen.runner.submit import Submission

Where = str | Path
Hashing = Literal["sampled", "full"]


@dataclass(frozen=True, slots=True)
class Planned(Tabled):
    """What a job would do. Hours and seconds are of the profile's device."""

    plan_id: str
    rows: int
    unique_rows: int
    cost_s: float
    forecast: Forecast


@dataclass(frozen=True, slots=True)
class Started(Tabled):
    """What goes on in the background."""

    run: Path
    submission: int  # 0: nothing was left to start
    rows: int
    shards: int
    jobs: tuple[str, ...]  # ids of Slurm, or of processes


def plan(job: Where, *overrides: str, hash_weights: Hashing = "sampled") -> Planned:
    """Check a job and its manifest, and forecast what a run of it takes. Renders nothing.
    ConfigError too if that is above `system.max_gpu_hours`."""
    from batchgen.config.composing.compose import compose_job
    from batchgen.planning.pricing.forecast import refuse_over_budget
    from batchgen.planning.pricing.layout import refuse_misfit
    from batchgen.runner.foresee import foreseen

    composed = compose_job(at_home(job), list(overrides))

    def check(made: Plan) -> None:
        refuse_misfit(composed.config, made)

    with (
        notebook_lines(),
        foreseen(composed, None, hash_weights=hash_weights, check=check) as found,
    ):
        refuse_over_budget(found.forecast, composed.config.system.max_gpu_hours)
        made = found.plan
        sizes = (made.plan_id, made.rows, made.unique_rows, made.cost_s_total)
        return Planned(*sizes, found.forecast)


def run(job: Where, *overrides: str, hash_weights: Hashing = "sampled") -> CatalogSummary:
    """Render a job to its end, with its catalog and its report; an interrupt drains the ranks."""
    from batchgen.runner.begin import begin
    from batchgen.runner.steward import drive

    with notebook_lines() as watch:
        begun = begin(at_home(job), overrides, verb="run", hash_weights=hash_weights)
        begun.note("run", str(job), *overrides)
        return drive(begun.run, begun.settings, watch)


def decode(run: Where = "latest", *overrides: str, root: Where = RUNS) -> CatalogSummary:
    """Decode the latents of a run that was drawn under `output.format=latents`, in a run of its
    own, to its end; the summary names it."""
    from batchgen.runner.decode import begin_decoding
    from batchgen.runner.steward import drive

    source = find_run(run, root)
    with notebook_lines() as watch:
        begun = begin_decoding(source, overrides, verb="decode")
        begun.note("decode", str(source.root), *overrides)
        return drive(begun.run, begun.settings, watch)


def submit(job: Where, *overrides: str, hash_weights: Hashing = "sampled") -> Started:
    """Start a job in the background and return at once."""
    from batchgen.runner import submit as submissions
    from batchgen.runner.begin import begin

    with notebook_lines():
        begun = begin(at_home(job), overrides, verb="submit", hash_weights=hash_weights)
    begun.note("submit", str(job), *overrides)
    return _started(begun.run, submissions.submit(begun.run, begun.settings))


def status(
    run: Where = "latest", *, root: Where = RUNS, offline: bool = False, watch: bool = False
) -> RunStatus:
    """How far a run is; asks the scheduler too unless `offline`. With `watch` it returns once
    nothing of the run is at work or waits for it."""
    from batchgen.ledger.status import read_status
    from batchgen.runner.steward import wait
    from batchgen.scheduler.queue import look, with_queue

    found = find_run(run, root)
    if watch:
        with notebook_lines() as lines:
            wait(found, lines)
    return with_queue(read_status(found), None if offline else look(found))


@overload
def resume(
    run: Where = ...,
    *overrides: str,
    root: Where = ...,
    rerender_changed: bool = ...,
    quarantined: bool = ...,
    detach: Literal[False] = ...,
) -> CatalogSummary: ...
@overload
def resume(
    run: Where = ...,
    *overrides: str,
    root: Where = ...,
    rerender_changed: bool = ...,
    quarantined: bool = ...,
    detach: Literal[True],
) -> Started: ...
def resume(
    run: Where = "latest",
    *overrides: str,
    root: Where = RUNS,
    rerender_changed: bool = False,
    quarantined: bool = False,
    detach: bool = False,
) -> CatalogSummary | Started:
    """Render every row that has no published result, to the end or, with `detach`, in the
    background."""
    from batchgen.runner import begin, steward
    from batchgen.runner import submit as submissions
    from batchgen.runner.create import refuse_unwritable
    from batchgen.runner.resume import prepare_resume

    found = find_run(run, root)
    refuse_unwritable(found)
    if begin.mend(found, new_settings=bool(overrides or rerender_changed)):
        return _followed(found, detach)
    settings = prepare_resume(found, list(overrides), rerender_changed=rerender_changed)
    rows = begin.with_quarantined(found, settings) if quarantined else None
    with begin.going_on(found, settings, ["resume", *overrides]):
        if not detach:
            with notebook_lines() as watch:
                return steward.drive(found, settings, watch, rows)
        begin.refuse_inline(settings, "detach")
        return _started(found, submissions.submit(found, settings, rows))


def _followed(run: RunPaths, detach: bool) -> CatalogSummary | Started:
    """A run whose tasks were found at work: what they do is waited for, or nothing is."""
    from batchgen.runner.steward import publish, wait

    if detach:
        return _started(run, None)
    with notebook_lines() as watch:
        wait(run, watch)
        return publish(run)


def collect(run: Where = "latest", *, root: Where = RUNS) -> CatalogSummary:
    """Write the catalog from what is committed; any time."""
    from batchgen.catalog import collect as catalog

    with notebook_lines():
        return catalog.collect(find_run(run, root))


def verify(
    run: Where = "latest", *, root: Where = RUNS, repair: bool = False, purge: bool = False
) -> VerifyReport:
    """Hold the catalog against the media, both ways; a repair sets damage aside first."""
    from batchgen.catalog import verify as checks
    from batchgen.errors import UsageError
    from batchgen.ledger.upkeep.repair import set_records_aside
    from batchgen.runner.jobs import refuse_if_alive

    found = find_run(run, root)
    if purge and not repair:
        raise UsageError("purge needs repair")
    if repair:
        set_records_aside(found)
        refuse_if_alive(found)
    with notebook_lines():
        return checks.verify(found, repair=repair, purge=purge)


def write_report(run: Where = "latest", *, root: Where = RUNS) -> Path:
    """Write the page of a run, also of one that goes on, and return its path."""
    from batchgen import report

    with notebook_lines():
        return report.write_report(find_run(run, root))


def _started(run: RunPaths, started: Submission | None) -> Started:
    if started is None:
        return Started(run.root, 0, 0, 0, ())
    jobs = tuple(job.job_id for job in started.jobs)
    return Started(run.root, started.number, started.rows, started.shards, jobs)
