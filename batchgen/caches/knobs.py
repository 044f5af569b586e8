"""Native knobs of a row, as strategies read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from batchgen.caches.strategy import Row
from batchgen.errors import ConfigError


def whole(row: Row, name: str, plain: int) -> int:
    """A knob that counts, `plain` where it is not set; ConfigError if it is a fraction."""
    value = row.params.get(name, plain)
    if value != int(value):
        raise ConfigError(f"{name} {value:g} is not a whole number")
    return int(value)


def threshold(row: Row, table: Mapping[str, Any] | None, slope: float) -> float:
    """The threshold of an adaptive strategy: the knob of that name; else from the ratio, by the
    table's `thresholds` ([ratio, threshold] pairs, rising) or as `slope` times the ratio. A step of
    fewer goes further: thresholds of a table grow as its number of `steps` by the row's."""
    if "threshold" in row.params:
        return row.params["threshold"]
    return _between(_points(row, table, slope), row.ratio)


def ratio(row: Row, table: Mapping[str, Any] | None, slope: float) -> float:
    """The share of evaluations that the row's threshold is thought to save."""
    if "threshold" not in row.params:
        return row.ratio
    swapped = [(threshold, ratio) for ratio, threshold in _points(row, table, slope)]
    return min(1.0, _between(swapped, row.params["threshold"]))


def _points(row: Row, table: Mapping[str, Any] | None, slope: float) -> list[tuple[float, float]]:
    entry = table or {}
    measured = entry.get("thresholds") or [(1.0, slope)]
    scale = entry.get("steps", row.steps) / row.steps
    return [(0.0, 0.0), *((float(a), float(b) * scale) for a, b in measured if a > 0)]


def _between(points: Sequence[tuple[float, float]], at: float) -> float:
    """The value at `at` of the line through the points; behind the last it goes straight on."""
    pairs = list(pairwise(points))
    (x0, y0), (x1, y1) = next((pair for pair in pairs if at <= pair[1][0]), pairs[-1])
    return y1 if x1 == x0 else y0 + (at - x0) * (y1 - y0) / (x1 - x0)
