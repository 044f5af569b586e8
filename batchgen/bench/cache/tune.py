"""Finds the threshold at which an adaptive strategy comes to a budget."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

LOWEST, HIGHEST = 1e-4, 10.0
NEAR = 1.05  # ratio of two thresholds that are as good as one


def threshold_for(share: float, measure: Callable[[float], float]) -> float:
    """The least threshold, but for NEAR, that computes no more than `share` of the evaluations;
    HIGHEST where none does. `measure`: the share at a threshold; it hardly ever rises with it."""
    low, high = LOWEST, HIGHEST
    while high / low > NEAR:
        middle = sqrt(low * high)
        if measure(middle) <= share:
            high = middle
        else:
            low = middle
    return high
