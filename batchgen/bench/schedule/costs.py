"""Row costs of made-up manifests, for the simulator: seconds of one replica, in manifest order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SHORT_SHARE = 0.8  # rows of the cheap kind in a bimodal manifest
GIANT_SHARE = 0.25  # of the ideal run time: what the giant row takes at full speed


def make_costs(
    kind: str, *, rows: int, total_s: float, replicas: int, spread: float, seed: int
) -> np.ndarray:
    """`rows` costs that add up to `total_s` replica seconds; the largest is `spread` times the
    smallest. Kind `giant` has one further row that takes GIANT_SHARE of `total_s / replicas`."""
    costs = KINDS[kind](np.random.default_rng(seed), rows, spread)
    giant = GIANT_SHARE * total_s / replicas if kind == "giant" else 0.0
    costs *= (total_s - giant) / costs.sum()
    if giant:
        costs = np.insert(costs, len(costs) // 2, giant)
    return costs


def _log_uniform(rng: np.random.Generator, rows: int, spread: float) -> np.ndarray:
    return np.exp(rng.uniform(0, np.log(spread), rows))


def _bimodal(rng: np.random.Generator, rows: int, spread: float) -> np.ndarray:
    return np.where(rng.uniform(size=rows) < SHORT_SHARE, 1.0, spread)


def _sorted(rng: np.random.Generator, rows: int, spread: float) -> np.ndarray:
    """As manifests often come: all prompts at one size, then all at the next."""
    return np.sort(_log_uniform(rng, rows, spread))


KINDS: dict[str, Callable[[np.random.Generator, int, float], np.ndarray]] = {
    "log-uniform": _log_uniform,
    "bimodal": _bimodal,
    "sorted": _sorted,
    "giant": _log_uniform,
}
