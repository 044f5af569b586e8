"""Figures in words, as tables print them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """In the largest unit of which there are two."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
