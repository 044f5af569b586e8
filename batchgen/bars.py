"""Progress of long work, drawn where a person watches: bars on a terminal, a line for each kind of
work in a notebook, nothing elsewhere."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from batchgen.progress import heard_by

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from batchgen.ledger.status import RunStatus

SOON_S = 0.5  # work that is over by then is not drawn
EVERY_S = 0.5  # a notebook's line is written anew at most so often


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


@contextmanager
def notebook_lines() -> Iterator[Callable[[RunStatus], None]]:
    """The same for a notebook: lines in the output of the cell."""
    show = _shown_by_notebook()
    if show is None:
        yield lambda status: None
        return
    lines = Lines(show)
    with heard_by(lines.more):
        yield lines.watch


def _shown_by_notebook() -> Callable[..., Any] | None:
    """`IPython.display.display` in a notebook's kernel; None elsewhere. Imports nothing: a notebook
    has."""
    python = sys.modules.get("IPython")
    shell = python.get_ipython() if python is not None else None
    kinds = [kind.__name__ for kind in type(shell).__mro__]  # some notebooks have one of their own
    if python is None or "ZMQInteractiveShell" not in kinds:
        return None
    display: Callable[..., Any] = python.display.display
    return display


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


class Heard(ABC):
    """What was told of each kind of work."""

    def __init__(self, soon_s: float = SOON_S) -> None:
        self._soon_s = soon_s
        self._began: dict[str, float] = {}
        self._done: dict[str, int] = {}
        self._drawn: set[str] = set()

    def more(self, work: str, more: int, total: int) -> None:
        """Work tells how far it is."""
        now = time.monotonic()
        began = self._began.setdefault(work, now)
        self._done[work] = self._done.get(work, 0) + more
        if work in self._drawn or now - began > self._soon_s:
            self._drawn.add(work)
            self._draw(work, min(self._done[work], total), total, "")

    def watch(self, status: RunStatus) -> None:
        """The render of a run."""
        loads = any(a.life == "running" and a.phase == "load" for a in status.attempts)
        notes = [f"{status.running} running"] if status.running else ["loading"] * loads
        notes += [f"{status.failed} failed"] if status.failed else []
        self._draw("render", status.ok + status.failed, status.rows, ", ".join(notes))

    @abstractmethod
    def _draw(self, work: str, done: int, total: int, note: str) -> None:
        """Show how far work is."""


class Bars(Heard):
    """One bar for each kind of work."""

    def __init__(self, progress: Progress, soon_s: float = SOON_S) -> None:
        super().__init__(soon_s)
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def _draw(self, work: str, done: int, total: int, note: str) -> None:
        if work not in self._bars:
            self._bars[work] = self._progress.add_task(work, total=total, note=note)
        self._progress.update(self._bars[work], total=total, completed=done, note=note)


class Lines(Heard):
    """One line for each kind of work, through `IPython.display.display`."""

    def __init__(self, show: Callable[..., Any], soon_s: float = SOON_S) -> None:
        super().__init__(soon_s)
        self._show = show
        self._lines: dict[str, Any] = {}
        self._written: dict[str, float] = {}

    def _draw(self, work: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if done < total and now - self._written.get(work, -EVERY_S) < EVERY_S:
            return
        self._written[work] = now
        text = {"text/plain": f"{work:8} {done:,} of {total:,}" + (f", {note}" if note else "")}
        if work in self._lines:
            self._lines[work].update(text, raw=True)
        else:
            self._lines[work] = self._show(text, raw=True, display_id=True)
