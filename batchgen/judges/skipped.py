"""How a judge says that it has nothing to say."""

from __future__ import annotations


class Skipped(Exception):
    """There is no number for this row, for the given reason; that is no fault of row or judge."""
