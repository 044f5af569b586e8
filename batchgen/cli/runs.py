"""From what a person types for RUN to a run folder."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from batchgen.errors import RunStateError, closest
from batchgen.paths import RUNS, RunPaths, at_home

_STAMP = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]{6}$")


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder, its unique prefix, or `latest`")
    parser.add_argument("--root", default=RUNS, help=f"where runs are looked for (default: {RUNS})")


def find_run(args: argparse.Namespace) -> RunPaths:
    """The run that `args.run` names; raises RunStateError with what there is."""
    direct = at_home(args.run)
    if (direct / "run.json").is_file():
        return RunPaths(direct.absolute())
    root = at_home(args.root)
    runs = {p.parent.name: p.parent for p in root.glob("*/run.json")}
    if not runs:
        raise RunStateError(f"there is no run in {root.absolute()} and {args.run} is not one")
    if args.run == "latest":
        newest = max(runs.values(), key=lambda p: (_stamp(p), (p / "run.json").stat().st_mtime))
        return RunPaths(newest.absolute())
    matching = sorted(name for name in runs if name.startswith(args.run))
    if len(matching) == 1:
        return RunPaths(runs[matching[0]].absolute())
    if matching:
        raise RunStateError(f"{args.run!r} fits several runs: {', '.join(matching[:10])}")
    raise RunStateError(f"no run {args.run!r} in {root.absolute()}{closest(args.run, runs)}")


def _stamp(folder: Path) -> str:
    match = _STAMP.search(folder.name)
    return match.group(1) if match else ""
