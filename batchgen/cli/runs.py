"""Finds the run folder for what a person types as RUN."""

from __future__ import annotations

import argparse
import os
import re
from contextlib import suppress
from pathlib import Path

from batchgen.errors import RunStateError, closest, reason_of
from batchgen.paths import RUNS, RunPaths, at_home

_STAMP = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]{6}$")


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder, its unique prefix, or `latest`")
    parser.add_argument("--root", default=RUNS, help=f"where runs are looked for (default: {RUNS})")


def find_run(args: argparse.Namespace) -> RunPaths:
    """The run that `args.run` names; RunStateError with the existing runs if there is none."""
    direct = at_home(args.run)
    try:
        if _is_run(direct):
            return RunPaths(direct.absolute())
    except OSError as error:
        raise RunStateError(f"RUN {args.run!r}: {error.strerror}") from None
    root = at_home(args.root)
    runs = _runs_in(root)
    if not runs:
        raise RunStateError(f"there is no run in {root.absolute()} and {args.run} is not one")
    if args.run == "latest":
        newest = max(runs.values(), key=lambda p: (_stamp(p), os.lstat(p / "run.json").st_mtime))
        return RunPaths(newest.absolute())
    matching = sorted(name for name in runs if name.startswith(args.run))
    if len(matching) == 1:
        return RunPaths(runs[matching[0]].absolute())
    if matching:
        raise RunStateError(f"{args.run!r} fits several runs: {', '.join(matching[:10])}")
    raise RunStateError(f"no run {args.run!r} in {root.absolute()}{closest(args.run, runs)}")


def _runs_in(root: Path) -> dict[str, Path]:
    """Name -> folder of the runs below `root`; RunStateError if it cannot be read."""
    try:
        listed = list(root.iterdir()) if root.is_dir() else []
    except OSError as error:
        raise RunStateError(f"--root: {reason_of(error)}") from None
    found = {}
    for path in listed:
        with suppress(OSError):  # a folder that this user may not read
            if _is_run(path) and not path.name.startswith("."):  # a dot: it is being made
                found[path.name] = path
    return found


def _is_run(folder: Path) -> bool:
    """Whether the folder holds a run.json, even one that is not a file."""
    try:
        os.lstat(folder / "run.json")
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _stamp(folder: Path) -> str:
    match = _STAMP.search(folder.name)
    return match.group(1) if match else ""
