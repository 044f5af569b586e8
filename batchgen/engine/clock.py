"""Where the seconds of a rank go: a stopwatch that stands on one account at any moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from time import perf_counter
from typing import Literal

from batchgen.records import RankSeconds

Account = Literal["load", "move", "encode", "denoise"]
_WAITS = "tail"  # as long as no work has followed; then it was `idle`


class Clock:
    """Switched by the one thread that renders, read by any. It starts waiting."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._booked = asdict(RankSeconds())
        self._account, self._since = _WAITS, perf_counter()

    @contextmanager
    def on(self, account: Account) -> Iterator[None]:
        """Book what the block takes, but for blocks of other accounts inside it."""
        before = self._turn(account)
        try:
            yield
        finally:
            self._turn(before)

    def worked(self) -> None:
        """Work of this rank has come to an end, on whichever thread: the waiting so far was no
        tail."""
        with self._lock:
            self._settle()
            self._fold()

    def read(self) -> RankSeconds:
        """So far, what it stands on now included."""
        with self._lock:
            self._settle()
            return RankSeconds(**self._booked)

    def _turn(self, account: str) -> str:
        with self._lock:
            self._settle()
            before, self._account = self._account, account
            if account != _WAITS:
                self._fold()
            return before

    def _settle(self) -> None:
        now = perf_counter()
        self._booked[self._account] += now - self._since
        self._since = now

    def _fold(self) -> None:
        self._booked["idle"] += self._booked[_WAITS]
        self._booked[_WAITS] = 0.0
