"""Progress bars of long work; none unless standard error is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from batchgen.progress import heard_by

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from batchgen.ledger.status import RunStatus

SOON_S = 0.5  # work that is over by then has no bar


@contextmanager
def progress_bars() -> Iterator[Callable[[RunStatus], None]]:
    """Draws what is told by `batchgen.progress`, and yields a function that draws the status of a
    render; call it from time to time."""
    if not sys.stderr.isatty():
        yield lambda status: None
        return
    with _progress() as progress:
        bars = Bars(progress)
        with heard_by(bars.more):
            yield bars.watch


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))


class Bars:
    """One bar for each kind of work."""

    def __init__(self, progress: Progress, soon_s: float = SOON_S) -> None:
        self._progress = progress
        self._soon_s = soon_s
        self._began: dict[str, float] = {}
        self._done: dict[str, int] = {}
        self._bars: dict[str, TaskID] = {}

    def more(self, work: str, more: int, total: int) -> None:
        """Work tells how far it is."""
        now = time.monotonic()
        began = self._began.setdefault(work, now)
        self._done[work] = self._done.get(work, 0) + more
        if work in self._bars or now - began > self._soon_s:
            self._draw(work, min(self._done[work], total), total, "")

    def watch(self, status: RunStatus) -> None:
        """The render of a run."""
        loads = any(a.life == "running" and a.phase == "load" for a in status.attempts)
        notes = [f"{status.running} running"] if status.running else ["loading"] * loads
        notes += [f"{status.failed} failed"] if status.failed else []
        self._draw("render", status.ok + status.failed, status.rows, ", ".join(notes))

    def _draw(self, work: str, done: int, total: int, note: str) -> None:
        if work not in self._bars:
            self._bars[work] = self._progress.add_task(work, total=total, note=note)
        self._progress.update(self._bars[work], total=total, completed=done, note=note)
