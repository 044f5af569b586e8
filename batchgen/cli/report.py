"""`report`: one HTML page of a run."""

from __future__ import annotations

import argparse

from batchgen.bars import progress_bars
from batchgen.cli.result import OK, Result
from batchgen.cli.runs import add_run_argument, find_run
from batchgen.cli.verbs import Verbs, add_verb

DESCRIPTION = """\
Write report.html into the run folder: what was drawn, what failed, where the time went.
The page works offline and while the run goes on; write it again to see more. It shows the media
beside it, so copy it together with media/."""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    report = add_verb(
        verbs,
        "report",
        handle_report,
        summary="one HTML page: contact sheet, failures, where the time went",
        description=DESCRIPTION,
        epilog="example:\n  batchgen report latest",
    )
    add_run_argument(report, looks=True)


def handle_report(args: argparse.Namespace) -> Result:
    """Exit code 0 whatever the rows are."""
    from batchgen.report import write_report

    run = find_run(args)
    with progress_bars():
        page = write_report(run)
    print(f"report   {page}")
    return Result(OK, {"run": str(run.root), "report": str(page)})
