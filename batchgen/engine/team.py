"""The ranks of a replica: one leads, all do the same."""

from __future__ import annotations

from typing import Protocol

from batchgen.engine.orders import Orders


class Team(Protocol):
    """How orders reach every rank of a replica."""

    def share(self, orders: Orders | None) -> Orders:
        """The leader's orders, on every rank; the others bring none."""


class Alone:
    """A replica of one rank."""

    def share(self, orders: Orders | None) -> Orders:
        """The orders themselves."""
        assert orders is not None
        return orders
