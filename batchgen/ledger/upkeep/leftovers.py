"""Deletes the drafts that killed processes left behind. Readers pass over drafts."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from batchgen.durable import remove
from batchgen.paths import RunPaths

LEFTOVER_S = 3600.0  # a draft not written to for this long belongs to a dead process
DRAFT_RUN_S = 24 * LEFTOVER_S  # for a draft of a run: reading a large checkpoint takes hours
_DRAFTS = (
    ".plan-*.parquet", ".*.tmp", "catalog/.rows-*", "catalog/.*.tmp", "journal/*/.*.tmp",
    "submissions/*/.*.tmp", "submissions/*/queues/*/.*.tmp", "submissions/*/slurm/*/.submission-*",
    "counters/*/*.tmp", "state/rows/**/.*.tmp",
)  # fmt: skip


def sweep(run: RunPaths) -> None:
    """Delete old drafts in a run folder, and the disk space reserved by dead attempts; never raises
    an error. Drafts of media are left to `verify`."""
    now = _now(run.root)
    for pattern in _DRAFTS:
        for path in run.root.glob(pattern):
            _remove_if_old(path, path, LEFTOVER_S, now)
    for path in run.counters_dir.glob("*/*.reserve"):
        heartbeat = path.with_suffix(".json")
        _remove_if_old(path, heartbeat if heartbeat.exists() else path, LEFTOVER_S, now)


def sweep_drafts(root: Path) -> None:
    """Delete unfinished run folders in `root`; never raises an error."""
    drafts, now = list[Path](), _now(root)
    with suppress(OSError):  # of what is no folder, say
        drafts = list(root.glob(".*.draft"))
    for path in drafts:
        with suppress(OSError):
            newest = max(_with_its_files(path), key=lambda file: file.stat().st_mtime)
            _remove_if_old(path, newest, DRAFT_RUN_S, now)


def _with_its_files(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.iterdir()


def _now(folder: Path) -> float:
    """By the clock that gives files there their times. That of this machine may be hours ahead: all
    drafts, also the own, would look old."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def _remove_if_old(path: Path, sign: Path, age_s: float, now: float) -> None:
    """Delete `path` if the file `sign` was not written to for `age_s` seconds."""
    with suppress(OSError):
        if now - sign.lstat().st_mtime > age_s:
            remove(path)
