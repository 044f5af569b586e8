"""Where the seconds of a rank go: a stopwatch that stands on one account at any moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from time import perf_counter
from typing import Literal

from batchgen.records import RankSeconds

Account = Literal["load", "move", "encode", "denoise", "shared_decode"]
_BUSY = ("encode", "denoise")
_WAITS = "tail"  # as long as no work has followed; then it was `idle`


class Clock:
    """Switched by the one thread that renders, read by any. It starts waiting."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._booked = asdict(RankSeconds())
        self._account, self._since = _WAITS, perf_counter()
        self._rows: dict[int, float] = {}  # busy seconds by row_index, until a line closes it
        self._unshared = 0.0  # busy seconds that no row was told to have

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

    def share(self, rows: Mapping[int, float]) -> None:
        """All busy seconds up to now went to rows: `rows` has what each of them took in all, by
        row_index."""
        with self._lock:
            self._settle()
            self._rows.update(rows)
            self._unshared = 0.0

    def close(self, row_index: int) -> float:
        """A line says what became of a row; its busy seconds."""
        with self._lock:
            return self._rows.pop(row_index, 0.0)

    def merge(self, row_index: int, into: int) -> float:
        """Give a row's busy seconds to another, which is in flight no more; returns them."""
        with self._lock:
            seconds = self._rows.pop(row_index, 0.0)
            self._rows[into] = self._rows.get(into, 0.0) + seconds
            return seconds

    def read(self) -> RankSeconds:
        """So far, what it stands on now included."""
        with self._lock:
            self._settle()
            spent = RankSeconds(**self._booked)
            return replace(spent, open=sum(self._rows.values(), self._unshared))

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
        if self._account in _BUSY:
            self._unshared += now - self._since
        self._since = now

    def _fold(self) -> None:
        self._booked["idle"] += self._booked[_WAITS]
        self._booked[_WAITS] = 0.0
