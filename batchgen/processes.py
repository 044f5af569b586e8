"""Whether a process of this host is still the one we knew: pid and start time together."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that cannot be confused with a later one of the same number."""

    host: str
    pid: int
    started: int  # clock ticks since boot, field 22 of /proc/PID/stat

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        return cls(socket.gethostname(), pid, _start_ticks(pid) or 0)

    @classmethod
    def current(cls) -> ProcessId:
        return cls.of(os.getpid())

    @property
    def is_local(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """False for a process of another host, which cannot be seen from here."""
        return self.is_local and self.started != 0 and _start_ticks(self.pid) == self.started


def _start_ticks(pid: int) -> int | None:
    """Start time of `pid`; None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the command's name may hold spaces and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def wait_until_gone(processes: list[ProcessId], timeout_s: float) -> bool:
    """Poll until none is alive; False when some still are at the end."""
    deadline = time.monotonic() + timeout_s
    while any(p.is_alive for p in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
