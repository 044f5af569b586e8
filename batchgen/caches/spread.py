"""Steps spread evenly over a row."""

from __future__ import annotations

from batchgen.caches.strategy import Row


def spread(row: Row, count: int) -> tuple[int, ...]:
    """`count` steps of the row, in order: those that must be computed (all of them, even if they
    are more), and the others as evenly between them as whole steps allow."""
    must = [step for step in range(row.steps) if row.must(step)]
    free = [step for step in range(row.steps) if not row.must(step)]
    more = min(len(free), max(0, count - len(must)))
    # Even gaps from a computed step before the free ones to one behind them, rounded half up.
    places = (
        ((i + 1) * (len(free) + 1) * 2 + more + 1) // (2 * (more + 1)) - 1 for i in range(more)
    )
    return tuple(sorted([*must, *(free[place] for place in places)]))
