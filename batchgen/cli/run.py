"""`run` and `submit`: make a run folder for a job and start it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from batchgen.cli.result import OK, ROWS_LEFT, Result
from batchgen.cli.verbs import (
    Verbs,
    add_budget_argument,
    add_job_arguments,
    add_verb,
    overrides_of,
)
from batchgen.errors import EndedBySignal, naming
from batchgen.paths import as_typed
from batchgen.words import counted

if TYPE_CHECKING:
    import numpy as np

    from batchgen.paths import RunPaths
    from batchgen.runner.submit import Settings, Submission

RUN_EPILOG = """\
examples:
  batchgen run jobs/demo.yaml
  batchgen run jobs/demo.yaml slurm=inline row_defaults.num_steps=8 tag=quick
  batchgen run jobs/demo.yaml system.determinism=strict slurm.ranks_per_node=2
  batchgen run jobs/demo.yaml --preview 8        # first see some of it
"""
SUBMIT_EPILOG = """\
examples:
  batchgen submit jobs/demo.yaml slurm.ranks_per_node=2
  batchgen submit jobs/demo.yaml slurm=h100x8 --dry-run
  batchgen submit jobs/demo.yaml --json        # last line: {"run": "<folder>", ...}
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    run = add_verb(
        verbs,
        "run",
        handle_run,
        summary="submit, wait with a progress bar, collect, report",
        description="Render a job: submit it, wait with a progress bar, write catalog and report.",
        epilog=RUN_EPILOG,
    )
    submit = add_verb(
        verbs,
        "submit",
        handle_submit,
        summary="start a job and return at once",
        description="Start a job in the background and return at once.",
        epilog=SUBMIT_EPILOG,
    )
    for parser in (run, submit):
        add_job_arguments(parser)
        add_budget_argument(parser)
    run.add_argument(
        "--preview",
        type=int,
        metavar="N",
        help="first see N rows, spread over sizes and tags, at a third of their steps: a run of "
        "its own, of which nothing enters the real one",
    )
    submit.add_argument(
        "--dry-run", action="store_true", help="show what would be submitted, and its batch script"
    )


def handle_run(args: argparse.Namespace) -> Result:
    """Exit code 0 only if every row of the manifest is ok."""
    args.overrides = overrides_of(args)
    if args.preview is not None:
        args.overrides = [*args.overrides, *_preview(args)]
    run, settings = _create(args)
    print(f"run      {run.root}", flush=True)
    return drive_to_end(run, settings)


# Steps are fewer, so what caches were set to does not fit them.
_UNCACHED = (
    "system.cache.enabled=false", "system.cache.on_refused=ignore",
    "system.cache.calibrate=false", "system.cache.min_psnr_db=null",
)  # fmt: skip


def _preview(args: argparse.Namespace) -> list[str]:
    """Overrides that make a preview of the job; writes its manifest."""
    from batchgen.config.composing.compose import compose_job
    from batchgen.config.composing.overrides import verbatim
    from batchgen.planning.preview import preview_manifest
    from batchgen.runner.begin import inputs_of

    job = compose_job(args.job, [*args.overrides, *_UNCACHED]).config
    with naming(inputs_of(job)):
        manifest = preview_manifest(job, args.preview)
    tag = verbatim("tag", f"{job.tag or job.name}-preview")
    return [verbatim("manifest", str(manifest)), tag, "locked=[]", *_UNCACHED]


def drive_to_end(run: RunPaths, settings: Settings, rows: np.ndarray | None = None) -> Result:
    """Drive the run to its end with a progress bar, and print the summary."""
    from batchgen.bars import progress_bars
    from batchgen.cli.collect import summary_result
    from batchgen.runner.steward import drive

    with _going_on(run, settings.executor), progress_bars() as watch:
        summary = drive(run, settings, watch, rows)
    tell_choices(run)
    return summary_result(run, summary)


def tell_choices(run: RunPaths) -> None:
    """Print the ratios that `min_psnr_db` found."""
    from batchgen.cli.plans.caches import choice_lines
    from batchgen.planning.plan import read_plan

    for line in choice_lines(read_plan(run.plan)):
        print(line)


def wait_to_end(run: RunPaths) -> Result:
    """Wait for what another process started, collect, print the summary."""
    from batchgen.bars import progress_bars
    from batchgen.cli.collect import summary_result
    from batchgen.runner.steward import publish, wait

    with _going_on(run, "slurm"), progress_bars() as watch:
        wait(run, watch)
    return summary_result(run, publish(run))


@contextmanager
def _going_on(run: RunPaths, executor: str) -> Iterator[None]:
    """If a signal ends this process alone, says that its ranks go on and how to follow them."""
    from batchgen.runner.jobs import last_submission

    try:
        yield
    except EndedBySignal as told:
        if executor == "inline" or not last_submission(run):
            raise
        name = as_typed(run.root)
        raise EndedBySignal(
            told.name,
            f"; its ranks go on: see `batchgen status {name} --watch`, end them with `batchgen "
            f"cancel {name}`; then `batchgen resume {name}` renders what is left and writes the "
            "catalog",
        ) from None


def handle_submit(args: argparse.Namespace) -> Result:
    from batchgen.runner.submit import submit

    args.overrides = overrides_of(args)
    if args.dry_run:
        return _show(args)
    run, settings = _create(args)
    return started_result(run, submit(run, settings))


def _show(args: argparse.Namespace) -> Result:
    from batchgen.config.composing.compose import compose_job
    from batchgen.runner.dryrun import dry_run

    shown = dry_run(compose_job(args.job, args.overrides))
    for script in shown.scripts:
        print(f"{script}\n")
    if shown.assumed:
        print(f"Slurm does not answer here: MaxArraySize={shown.max_array_size} is assumed")
    then = f" of a pilot, then plan {shown.waiting} more" if shown.waiting else ""
    rows, shards = counted(shown.rows, "row"), counted(shown.shards, "shard")
    print(f"would submit {rows} as {shards}{then}; nothing was started")
    return Result(OK, asdict(shown))


def started_result(run: RunPaths, started: Submission | None) -> Result:
    """Print what was started in the background and how to watch it."""
    if started is None or started.rows == 0:
        return _nothing_started(run)
    print(f"run      {run.root}")
    where = ", ".join(job.job_id for job in started.jobs if job.executor == "slurm")
    print(
        f"started  {counted(started.rows, 'row')} in {counted(started.shards, 'shard')} "
        f"as submission {started.number}" + (f": Slurm job {where}" if where else "")
    )
    if started.pilot:
        slurm = any(job.executor == "slurm" for job in started.jobs)
        way = "the steward does" if slurm else f"batchgen resume {as_typed(run.root)}"
        print(f"then     the other rows are planned when these, a pilot, are drawn: {way}")
    print(f"watch    batchgen status {as_typed(run.root)} --watch")
    data = {"run": str(run.root), "submission": started.number, "rows": started.rows}
    return Result(OK, {**data, "jobs": [job.job_id for job in started.jobs]})


def _nothing_started(run: RunPaths) -> Result:
    """Print why there was nothing to render. Exit code 0 only if every row is ok."""
    from batchgen.cli.collect import SHOWN_FAILURES, go_on_lines
    from batchgen.ledger.status import read_status
    from batchgen.ledger.upkeep.repair import first_quarantined

    status, data = read_status(run), {"run": str(run.root), "rows": 0}
    if status.ok == status.rows:
        print("nothing is left to render")
        return Result(OK, data)
    others = {"failed": status.failed, "quarantined": status.quarantined, "left": status.left}
    counts = ", ".join(f"{count} {name}" for name, count in others.items() if count)
    print(f"nothing to render; {status.ok} of {status.rows} rows ok, {counts}")
    quarantined = first_quarantined(run, SHOWN_FAILURES).rows if status.quarantined else []
    again = [row_id for row_id, _ in quarantined]
    print("\n".join(go_on_lines(run, status.left + status.failed > 0, again)))
    return Result(ROWS_LEFT, data)


def _create(args: argparse.Namespace) -> tuple[RunPaths, Settings]:
    from batchgen.bars import progress_bars
    from batchgen.runner.begin import begin

    with progress_bars():
        begun = begin(args.job, args.overrides, verb=args.verb, hash_weights=args.hash_weights)
    args.made, args.at_stake = str(begun.run.root), True
    begun.note(args.verb, str(args.job), *args.overrides)
    return begun.run, begun.settings
