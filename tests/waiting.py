"""Waiting for what another process or thread does: for what can be seen, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def wait_for(what: Callable[[], T], timeout_s: float = 60.0) -> T:
    """What it says once that is true; fails after a time that only something broken takes."""
    deadline = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)
    return found


def process_state(pid: int) -> str:
    """The letter of /proc: `T` is stopped, `Z` has ended; empty once it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(pid: int) -> list[int]:
    """Pids of the processes that its main thread has started and not waited for."""
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
