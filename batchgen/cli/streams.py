"""Standard streams and signals of this process: to lose a reader or a terminal ends no work."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from types import FrameType
from typing import TextIO

from batchgen.errors import Told

SILENT = (errno.EPIPE, errno.EIO)  # the reader has seen enough; the terminal is closed
ENDING = (signal.SIGTERM, signal.SIGHUP)


class Stream(io.TextIOWrapper):
    """Standard output or error. What cannot be written is dropped, and so is all after it: whoever
    reads has gone, and the exit code is to tell of the work. What its encoding cannot hold is
    escaped."""

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
        os.dup2(nothing, self.fileno())  # takes what is still buffered
        os.close(nothing)
        if self is sys.stdout and error.errno not in SILENT:
            print(f"batchgen: stdout cannot be written: {error.strerror}", file=sys.stderr)


def survive_streams() -> None:
    """Make the streams of this process such; closed ones lead nowhere. Otherwise the next file that
    is opened would take the number of a closed one, and what is printed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    sys.stdout, sys.stderr = _stream(sys.stdout, 1), _stream(sys.stderr, 2)


def _stream(old: TextIO, number: int) -> Stream:
    """`old` lives on as `sys.__stdout__` does; it is None where the stream was closed."""
    if isinstance(old, io.TextIOWrapper):
        by_line = old.line_buffering
        return Stream(old.buffer, old.encoding, "backslashreplace", line_buffering=by_line)
    return Stream(open(number, "wb"), "utf-8", "backslashreplace")


def reader_is_gone() -> bool:
    """Whether what is printed reaches nobody any more."""
    return isinstance(sys.stdout, Stream) and sys.stdout.gone


def answer_signals() -> None:
    """SIGTERM and a closed terminal end a verb as Ctrl-C does: by an exception, so that nothing is
    left half made. Ignored signals (`nohup`) stay ignored."""
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


class _End:
    """A rank in this process has put its own answer to SIGTERM there, and saves its rows: it passes
    the signal on here when it has."""

    first = 0  # the signal that came, whatever is passed on

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.first = self.first or number
        if signal.getsignal(signal.SIGTERM) not in (self, signal.SIG_IGN):
            signal.raise_signal(signal.SIGTERM)
            return
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)  # the next one, usual after these, changes nothing
        raise Told(signal.Signals(self.first).name)


_end = _End()
