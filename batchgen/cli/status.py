"""`status`, `cancel`, `logs`: look at a run and end it. `status` uses the standard library alone."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

from batchgen.cli.result import OK, ROWS_LEFT, Result
from batchgen.cli.runs import add_run_argument, find_run
from batchgen.ledger.status import RunStatus, read_status
from batchgen.paths import RunPaths

WATCH_S = 2.0
TAIL_LINES = 40


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = verbs.add_parser(
        "status",
        help="rows done, failed, running and left",
        description="Rows done, failed, running and left; attempts, rate and what it cost so far.",
        epilog="examples:\n  batchgen status latest\n  batchgen status latest --watch",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_argument(status)
    status.add_argument("--watch", action="store_true", help="refresh until the run has ended")
    status.set_defaults(handler=handle_status)
    cancel = verbs.add_parser(
        "cancel",
        help="end a run's ranks; what is committed stays",
        description="Drain the ranks of a run, then kill what does not end. Resume goes on later.",
        epilog="example:\n  batchgen cancel latest",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_argument(cancel)
    cancel.set_defaults(handler=handle_cancel)
    logs = verbs.add_parser(
        "logs",
        help="logs of the latest submission, or the failures",
        description="The end of each rank's log, or every failed row with its traceback.",
        epilog="examples:\n  batchgen logs latest\n  batchgen logs latest --failed",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_argument(logs)
    logs.add_argument("--failed", action="store_true", help="failed rows with their tracebacks")
    logs.set_defaults(handler=handle_logs)


def handle_status(args: argparse.Namespace) -> Result:
    """Exit code 0 when every row is ok, 1 while rows are failed or left."""
    run = find_run(args)
    status = read_status(run)
    while args.watch and status.alive:
        _show(run, status)
        time.sleep(WATCH_S)
        status = read_status(run)
    _show(run, status)
    data: dict[str, object] = {"run": str(run.root), **asdict(status)}
    return Result(OK if status.ok == status.rows else ROWS_LEFT, data)
