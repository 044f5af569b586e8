"""Standard streams and signals of this process: losing a reader or a terminal does not end the
work."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from types import FrameType
from typing import TextIO

from batchgen.errors import Told

SILENT = (errno.EPIPE, errno.EIO)  # the reader has closed the pipe; the terminal is closed
ENDING = (signal.SIGTERM, signal.SIGHUP)


class Stream(io.TextIOWrapper):
    """Standard output or error. After a write that fails all is dropped: the reader is gone, and
    the exit code should be about the work. What the encoding cannot hold is escaped."""

    gone = False

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self.gone = True
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, self.fileno())  # swallows what is still buffered
        os.close(nothing)
        if self is sys.stdout and error.errno not in SILENT:
            print(f"batchgen: stdout cannot be written: {error.strerror}", file=sys.stderr)


def survive_streams() -> None:
    """Make the streams of this process `Stream`s; closed ones lead to the null device. Otherwise
    the next opened file would get a closed one's number, and all that is printed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout, sys.stderr = _stream(sys.stdout, 1), _stream(sys.stderr, 2)


def _stream(old: TextIO, number: int) -> Stream:
    """A `Stream` in place of `old`, which stays open as `sys.__stdout__` does; `old` is None if it
    was closed."""
    if isinstance(old, io.TextIOWrapper):
        by_line = old.line_buffering
        return Stream(old.buffer, old.encoding, "backslashreplace", line_buffering=by_line)
    return Stream(open(number, "wb"), "utf-8", "backslashreplace")


def reader_is_gone() -> bool:
    """Whether a stream has lost its reader."""
    return isinstance(sys.stdout, Stream) and sys.stdout.gone


def answer_signals() -> None:
    """Let SIGTERM and a closed terminal end a verb as Ctrl-C does, by an exception, so that nothing
    is left half made. Ignored signals (`nohup`) stay ignored."""
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


class _End:
    """Raises an exception for the first signal. A rank in this process replaces it as handler of
    SIGTERM, saves its rows, and then raises the signal again here."""

    first = 0  # the signal that came first

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.first = self.first or number
        if signal.getsignal(signal.SIGTERM) not in (self, signal.SIG_IGN):
            signal.raise_signal(signal.SIGTERM)
            return
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)  # a second signal often follows; it changes nothing
        raise Told(signal.Signals(self.first).name)


_end = _End()
