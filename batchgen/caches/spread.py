"""Steps spread evenly over a row."""

from __future__ import annotations

from itertools import pairwise

from batchgen.caches.strategy import Row


def spread(row: Row, count: int) -> tuple[int, ...]:
    """`count` steps of the row, in order: those that must be computed (all of them, even if they
    are more), and the others as evenly between them as whole steps allow."""
    must = [step for step in range(row.steps) if row.must(step)]
    gaps = list(pairwise([*must, row.steps]))
    parts = [1] * len(gaps)
    for _ in range(min(count, row.steps) - len(must)):
        lengths = [(end - start) / part for (start, end), part in zip(gaps, parts, strict=True)]
        parts[lengths.index(max(lengths))] += 1
    return tuple(
        start + ((end - start) * i * 2 + part) // (part * 2)  # rounded half up
        for (start, end), part in zip(gaps, parts, strict=True)
        for i in range(part)
    )
