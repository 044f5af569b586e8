"""Tells whether a process is still the same: pid, start time, and the place where the pid
counts."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, told from all others, since a pid alone is used again."""

    host: str
    pid: int
    place: str  # boot and pid namespace: where equal, `pid` means the same process
    start: int  # clock ticks from boot to the start of the process; 0 = unknown

    @classmethod
    def current(cls, host: str = "") -> ProcessId:
        """This process; `host` is a name to show (default: the machine's own)."""
        return cls.of(os.getpid(), host)

    @classmethod
    def of(cls, pid: int, host: str = "") -> ProcessId:
        """The process that has `pid` on this machine now."""
        return cls(host or socket.gethostname(), pid, _place(), _start_ticks(pid))

    def alive(self) -> bool | None:
        """True or False on the machine where it runs; None on another machine."""
        if not self.place or self.place != _place():
            return None
        return self.start != 0 and _start_ticks(self.pid) == self.start


def children_of(process: ProcessId) -> list[ProcessId]:
    """Direct children of a process of this machine."""
    try:
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [ProcessId.of(int(pid)) for pid in listed]


def wait_until_gone(processes: Sequence[ProcessId], timeout_s: float) -> bool:
    """Poll until none of these processes of this machine is alive; False if some are after
    `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while any(process.alive() for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no /proc: the age of the heartbeat then decides
        return ""


def _start_ticks(pid: int) -> int:
    """Field 22 of /proc/PID/stat; 0 when the process is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = stat.rpartition(")")[2].split()  # the command's name may hold spaces and brackets
    return 0 if fields[0] in "ZX" else int(fields[19])
