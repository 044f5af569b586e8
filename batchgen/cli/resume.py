"""`resume` and `retry`: go on with a run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from batchgen.cli.collect import SHOWN_FAILURES
from batchgen.cli.result import Result
from batchgen.cli.runs import add_run_argument, find_run
from batchgen.cli.verbs import (
    Verbs,
    add_budget_argument,
    add_overrides,
    add_verb,
    overrides_of,
)
from batchgen.errors import RunStateError, UsageError, closest
from batchgen.paths import as_typed

if TYPE_CHECKING:
    import numpy as np

    from batchgen.paths import RunPaths
    from batchgen.runner.submit import Settings

RESUME_EPILOG = """\
examples:
  batchgen resume latest                             what is missing or failed
  batchgen resume latest slurm.ranks_per_node=4      on other nodes
  batchgen resume latest output.quality=10 --rerender-changed
  batchgen resume latest --quarantined               the rows too that killed their process
"""
RETRY_EPILOG = """\
examples:
  batchgen retry latest                              the failed rows
  batchgen retry latest --rows red-circle,blue-ring  these rows, finished or not
  batchgen retry latest --rows row-007 slurm=local   on this machine, to look into it
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    resume = add_verb(
        verbs,
        "resume",
        handle_resume,
        summary="render what is missing or failed",
        description="Render every row of a run that has no published result.",
        epilog=RESUME_EPILOG,
    )
    retry = add_verb(
        verbs,
        "retry",
        handle_retry,
        summary="render failed or named rows again",
        description="Render failed rows, or the rows named, again.",
        epilog=RETRY_EPILOG,
    )
    for parser in (resume, retry):
        add_run_argument(parser)
        add_overrides(
            parser,
            "settings to change; they stay with the run only if they change keys of its rows",
        )
        add_budget_argument(parser)
        parser.add_argument(
            "--detach", action="store_true", help="return at once, as `submit` does"
        )
    resume.add_argument(
        "--rerender-changed",
        action="store_true",
        help="render again the finished rows whose key the new settings change",
    )
    resume.add_argument(
        "--quarantined",
        action="store_true",
        help="take along the quarantined rows: those whose process died again and again",
    )
    retry.add_argument("--rows", help="row ids, separated by commas")


def handle_resume(args: argparse.Namespace) -> Result:
    from batchgen.runner.begin import mend, with_quarantined
    from batchgen.runner.manifest_news import manifest_news
    from batchgen.runner.resume import prepare_resume

    run = _writable_run(args)
    new_settings = bool(args.overrides or args.rerender_changed)
    if done := mend(run, new_settings=new_settings):
        return _mended(args, run, done)
    settings = prepare_resume(run, args.overrides, rerender_changed=args.rerender_changed)
    # without overrides nobody has asked for a replan: say why there is one
    if settings.replan is not None and not args.overrides:
        changed = ", ".join(settings.replan.changed)
        print(
            f"changed  {changed} since the run was planned: its rows are planned anew", flush=True
        )
    # a replan has compared the manifest already
    if settings.replan is None and (news := manifest_news(run)):
        print(news, flush=True)
    if args.quarantined:
        return _go_on(args, run, settings, with_quarantined(run, settings))
    _tell_quarantined(run)
    return _go_on(args, run, settings, None)


def _writable_run(args: argparse.Namespace) -> RunPaths:
    from batchgen.runner.create import refuse_unwritable

    args.overrides = overrides_of(args)
    run = find_run(args)
    refuse_unwritable(run)
    return run


def _tell_quarantined(run: RunPaths) -> None:
    """Print the quarantined rows that a resume leaves out, and how to take them along."""
    from batchgen.ledger.status import read_status
    from batchgen.ledger.upkeep.repair import first_quarantined

    if not read_status(run).quarantined:
        return
    told = first_quarantined(run, SHOWN_FAILURES)
    for row_id, reason in told.rows:
        print(f"left     {row_id} is quarantined: {reason}")
    if told.more:
        print(f"left     ... and {told.more} more are quarantined")
    if told.rows:
        print(f"take     batchgen resume {as_typed(run.root)} --quarantined", flush=True)


def _mended(args: argparse.Namespace, run: RunPaths, done: str) -> Result:
    """Follow the run, which goes on by itself."""
    from batchgen.cli.run import wait_to_end

    print(done)
    return Result(data={"run": str(run.root)}) if args.detach else wait_to_end(run)


def handle_retry(args: argparse.Namespace) -> Result:
    from batchgen.ledger.reading.left import missing_rows
    from batchgen.runner.resume import prepare_resume

    run = _writable_run(args)
    if args.rows is not None and not args.rows.strip(", "):
        raise UsageError(f"--rows: {args.rows!r} names no row; without it: all that failed")
    rows = _named_rows(run, args.rows.split(",")) if args.rows else missing_rows(run).failed
    settings = prepare_resume(run, args.overrides, rerender_changed=False)
    return _go_on(args, run, settings, rows)


def _go_on(
    args: argparse.Namespace, run: RunPaths, settings: Settings, rows: np.ndarray | None
) -> Result:
    from batchgen.cli.run import drive_to_end, started_result
    from batchgen.runner.begin import going_on, refuse_inline
    from batchgen.runner.submit import submit

    args.at_stake = True
    with going_on(run, settings, [args.verb, *_options(args), *args.overrides]):
        if not args.detach:
            return drive_to_end(run, settings, rows)
        refuse_inline(settings, "--detach")
        return started_result(run, submit(run, settings, rows))


def _options(args: argparse.Namespace) -> list[str]:
    """The options that say which rows are rendered."""
    if args.verb == "retry":
        return ["--rows", args.rows] if args.rows else []
    given = {"--rerender-changed": args.rerender_changed, "--quarantined": args.quarantined}
    return [option for option, is_given in given.items() if is_given]


def _named_rows(run: RunPaths, row_ids: list[str]) -> np.ndarray:
    """row_index of the rows that are rendered for `row_ids` (of an alias: its original)."""
    import numpy as np

    from batchgen.planning.plan import row_indices

    known = row_indices(run.plan)
    if unknown := [r for r in row_ids if r not in known]:
        near = closest(unknown[0], known) or f"; its first is {next(iter(known))!r}"
        raise RunStateError(f"--rows: {run.root.name} has no row {unknown[0]!r}{near}")
    return np.unique([known[r] for r in row_ids])
