"""The progress bar of a render; it is not drawn unless the output is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchgen.ledger.status import RunStatus


@contextmanager
def progress_bar() -> Iterator[Callable[[RunStatus], None]]:
    """Yields a function that draws a status; call it from time to time."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("render"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("render", total=None, note="starting")

        def watch(status: RunStatus) -> None:
            note = f"{status.running} running" if status.running else "loading"
            if status.failed:
                note += f", {status.failed} failed"
            progress.update(task, total=status.rows, completed=status.ok + status.failed, note=note)

        yield watch
