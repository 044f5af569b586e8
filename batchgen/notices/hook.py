"""A user's command that is given events, one after the other, beside whoever has them.

Nobody waits for it but the process at its end, for seconds. It has a session of its own, so that
neither a Ctrl-C reaches it nor one of its children is left behind. What fails is counted and said
in the log: the first time, and at the end how often.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import IO, Any

log = logging.getLogger(__name__)
TIMEOUT_S = 30.0  # of one event
PATIENCE_S = 10.0  # of a process at its end, for all events that wait
WAITING = 64  # events; more are not told


class Hook:
    """The command, through `sh`. Each event is one line of JSON on its standard input."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._events: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._deadline = float("inf")  # of time.monotonic(), for all events
        self.told = self.failed = 0

    def tell(self, event: Mapping[str, Any]) -> None:
        """Have the command told; returns at once, and drops the event if too many wait."""
        text = json.dumps(event, ensure_ascii=False, allow_nan=False)
        line = text.encode("utf-8", "backslashreplace") + b"\n"
        self.told += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="on_event", daemon=True)
            self._thread.start()
        try:
            self._events.put_nowait(line)
        except queue.Full:
            self._note(f"{WAITING} events wait already")

    def close(self) -> None:
        """Wait a while for what was told; what is not done by then is killed."""
        if self._thread is None:
            return
        self._deadline = time.monotonic() + PATIENCE_S
        with contextlib.suppress(queue.Full):
            self._events.put(None, timeout=PATIENCE_S)
        self._thread.join(PATIENCE_S + 1.0)
        if waiting := self._events.qsize():
            self.failed += waiting
        if self.failed:
            log.warning("output.on_event: %d of %d events were not told", self.failed, self.told)

    def _work(self) -> None:
        while (line := self._events.get()) is not None:
            if time.monotonic() > self._deadline:
                self._note("there was no time left at the end")
                continue
            try:
                self._run(line)
            except Exception as error:  # no shell, no memory, no disk: never the run's trouble
                self._note(f"{type(error).__name__}: {error}")

    def _run(self, line: bytes) -> None:
        # Files instead of pipes: a command that reads nothing, or leaves a child, holds nobody up.
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
            given.write(line)
            given.seek(0)
            process = subprocess.Popen(
                ["/bin/sh", "-c", self._command],
                stdin=given,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
            began = time.monotonic()
            code = self._wait(process)
            if code is None:
                took = time.monotonic() - began
                self._note(f"it was still at work after {took:.1f} s and was killed")
            elif code != 0:
                self._note(f"exit status {code}: {_end_of(said)}")

    def _wait(self, process: subprocess.Popen[bytes]) -> int | None:
        """Its exit status; None if it had to be killed, with all that it started."""
        ends = time.monotonic() + TIMEOUT_S
        try:
            while process.poll() is None:
                if time.monotonic() > min(ends, self._deadline):
                    return None
                time.sleep(0.02)
            return process.returncode
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _note(self, reason: str) -> None:
        self.failed += 1
        if self.failed == 1:
            log.warning("output.on_event: %s: %s", self._command, reason)


def _end_of(said: IO[bytes]) -> str:
    """The last line that the command printed as an error."""
    said.seek(max(0, said.seek(0, os.SEEK_END) - 1000))
    lines = said.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed no error"
