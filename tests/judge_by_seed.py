"""A judge for ranks of tests: it says whether a row was drawn with one of some seeds."""

from __future__ import annotations

from typing import Any


def refused(frames: Any, request: Any, *, seeds: list[int]) -> float:
    return float(request.seed in seeds)
