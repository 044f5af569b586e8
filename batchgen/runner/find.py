"""Finds the run folder for what a person types as RUN."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from itertools import islice
from pathlib import Path

from batchgen.errors import RunStateError, closest, reason_of
from batchgen.paths import RUNS, RunPaths, at_home

LATEST = "latest"
_STAMP = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]{6}$")
_SHOWN = 10
# Of folders beside one without runs: how many are looked at, entries of each, how many are named.
_LOOKED_AT, _ENTRIES, _NEAR = 50, 500, 3


def find_run(named: str | Path, root: str | Path = RUNS) -> RunPaths:
    """The run that `named` means: a run folder, the unique prefix of one in `root`, `latest`, or
    either of these behind the path of another root (`/data/runs/latest`). RunStateError that says
    where it was looked for, with runs that are there."""
    direct, folder = at_home(named), at_home(root)
    try:
        if _is_run(direct):
            return RunPaths(direct.absolute())
    except OSError as error:
        raise RunStateError(f"RUN {str(named)!r}: {error.strerror}") from None
    if direct.suffix in (".yaml", ".yml") and direct.is_file():
        raise RunStateError(
            f"{direct} is a job, not a run; its latest run: {LATEST!r}, or its output.root_dir "
            f"with /{LATEST} behind it"
        )
    if direct.parent != Path() and direct.parent.is_dir():
        folder, named = direct.parent, direct.name
    runs = runs_in(folder)
    if not runs:
        above = [up / folder.name for up in folder.absolute().parents[1:]]
        near = [str(other) for other in (*_beside(folder), *above) if _has_run(other)]
        there = f" There are runs in {', '.join(near[:_NEAR])}." if near else ""
        example = near[0] if near else "FOLDER"
        raise RunStateError(
            f"there is no run in {folder.absolute()}.{there} Runs of a job with another "
            f"output.root_dir: --root {example}, or {example}/{named}"
        )
    if named == LATEST:
        return RunPaths(max(runs.values(), key=_age).absolute())
    matching = sorted(name for name in runs if name.startswith(str(named)))
    if len(matching) == 1:
        return RunPaths(runs[matching[0]].absolute())
    if matching:
        more = ", ..." if len(matching) > _SHOWN else ""
        shown = ", ".join(matching[:_SHOWN])
        raise RunStateError(f"{str(named)!r} fits several runs: {shown}{more}")
    newest = f"; the latest of {len(runs)} is {max(runs.values(), key=_age).name}"
    hint = closest(str(named), runs) or newest
    raise RunStateError(f"no run {str(named)!r} in {folder.absolute()}{hint}")


def _beside(folder: Path) -> list[Path]:
    """Some folders beside one, in the order of their names, each as one types it."""
    with suppress(OSError):
        others = sorted(path for path in folder.absolute().parent.iterdir() if path.is_dir())
        seen = [path.name for path in others if not path.name.startswith(".")]
        return [folder.parent / name for name in seen[:_LOOKED_AT]]
    return []


def _has_run(folder: Path) -> bool:
    """Whether one of its first entries is a run."""
    with suppress(OSError):  # another user's, say
        listed = islice(folder.iterdir(), _ENTRIES)
        return any(not path.name.startswith(".") and _is_run(path) for path in listed)
    return False


def runs_in(root: Path) -> dict[str, Path]:
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


def _age(run: Path) -> tuple[str, float]:
    """Runs in the order in which they were made: by the time in their name, else by their file."""
    match = _STAMP.search(run.name)
    return match.group(1) if match else "", os.lstat(run / "run.json").st_mtime
