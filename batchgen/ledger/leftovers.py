"""Deletes the drafts that killed processes left behind. Readers pass over drafts."""

from __future__ import annotations

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
    for pattern in _DRAFTS:
        for path in run.root.glob(pattern):
            _remove_if_old(path, path, LEFTOVER_S)
    for path in run.counters_dir.glob("*/*.reserve"):
        heartbeat = path.with_suffix(".json")
        _remove_if_old(path, heartbeat if heartbeat.exists() else path, LEFTOVER_S)


def sweep_drafts(root: Path) -> None:
    """Delete unfinished run folders in `root`; never raises an error."""
    drafts: list[Path] = []
    with suppress(OSError):  # of what is no folder, say
        drafts = list(root.glob(".*.draft"))
    for path in drafts:
        with suppress(OSError):
            newest = max(_with_its_files(path), key=lambda file: file.stat().st_mtime)
            _remove_if_old(path, newest, DRAFT_RUN_S)


def _with_its_files(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.iterdir()


def _remove_if_old(path: Path, sign: Path, age_s: float) -> None:
    """Delete `path` if the file `sign` was not written to for `age_s` seconds."""
    with suppress(OSError):
        if time.time() - sign.lstat().st_mtime > age_s:
            remove(path)
