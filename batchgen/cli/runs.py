"""RUN on the command line."""

from __future__ import annotations

import argparse

from batchgen.cli.completion import completed_by, run_names
from batchgen.paths import RUNS, RunPaths
from batchgen.runner import find

RUN_HELP = "run folder, its unique prefix, or `latest`; also behind a path (/data/runs/latest)"


def add_run_argument(parser: argparse.ArgumentParser, *, looks: bool = False) -> None:
    """RUN and --root. A verb that only `looks` takes the latest run where none is named."""
    run = parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    if looks:
        run.nargs, run.required, run.default = "?", False, find.LATEST
    completed_by(run, run_names)
    parser.add_argument("--root", default=RUNS, help=f"where runs are looked for (default: {RUNS})")


def find_run(args: argparse.Namespace) -> RunPaths:
    """The run that `args.run` names; RunStateError with the existing runs if there is none."""
    return find.find_run(args.run, args.root)
