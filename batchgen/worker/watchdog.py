"""A small process beside each rank that kills it when it makes no step for too long.

Stuck drivers and collectives hold a process for ever, often so that no handler of its own runs.
The rank writes a byte now and then; the end of the pipe is the end of the rank.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

KICK_EVERY_S = 1.0
_SLICE_S = 1.0


class Watchdog:
    """A context; `kick` says that the rank moves. `seconds` 0: there is none. One that `stays` goes
    on behind the context until the process is gone, since drivers hang as it ends too."""

    def __init__(self, seconds: float, *, stays: bool = False) -> None:
        self._seconds, self._stays = seconds, stays
        self._kicked = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1  # a bare number: nothing in this process closes it but `__exit__`

    def __enter__(self) -> Watchdog:
        if self._seconds > 0:
            command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(self._seconds)]
            end, self._pipe = os.pipe()
            self._process = subprocess.Popen(command, stdin=end)
            os.close(end)
            os.set_blocking(self._pipe, False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None or self._stays:
            return
        os.close(self._pipe)
        self._process.wait()
        self._process = None

    def kick(self) -> None:
        """Cheap enough for every tick: writes at most once a second."""
        now = time.monotonic()
        if self._process is None or now - self._kicked < KICK_EVERY_S:
            return
        self._kicked = now
        with suppress(BlockingIOError, BrokenPipeError):  # it is stopped, or somebody killed it
            os.write(self._pipe, b".")


def watch(pid: int, seconds: float) -> None:
    """Read from standard input until it ends; kill `pid` after so long without a byte. Silence is
    counted in slices, so that a machine that slept as a whole is not taken for a hung rank."""
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # sent to a whole job: the rank's to answer
    silent = 0.0
    while silent < seconds:
        readable, _, _ = select.select([0], [], [], _SLICE_S)
        if readable and not os.read(0, 4096):
            return
        silent = 0.0 if readable else silent + _SLICE_S
    print(f"watchdog: process {pid} made no step for {seconds:g} s: killed", file=sys.stderr)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]))
