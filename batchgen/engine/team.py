"""The ranks of a replica: one leads, all do the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from batchgen.engine.orders import Orders


class Team(Protocol):
    """How orders reach every rank of a replica."""

    def share(self, script: Iterator[Orders] | None) -> Orders:
        """The leader's next orders, on every rank; the others have no script."""


class Alone:
    """A replica of one rank."""

    def share(self, script: Iterator[Orders] | None) -> Orders:
        assert script is not None
        return next(script)
