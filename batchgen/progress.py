"""How far long work is: the work tells it, and whoever listens draws it. Nobody listens unless a
person watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int], None]  # name of the work, units more, units in all
_listener: ContextVar[Listener | None] = ContextVar("batchgen.progress", default=None)


def tell(work: str, more: int, total: int) -> None:
    """Say that `work` has done so many units more, of `total`. Work may begin anew: then it tells
    more than its total."""
    listener = _listener.get()
    if listener is not None:
        listener(work, more, total)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Call `listener` with all that is told in this thread meanwhile."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)
