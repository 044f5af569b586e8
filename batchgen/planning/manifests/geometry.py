"""Sizes and frame counts that a model can draw, and what becomes of those it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from batchgen.config.schema import ModelSpec
from batchgen.families.family import Stride

Policy = Literal["error", "round", "pad"]


@dataclass(frozen=True, slots=True)
class Grid:
    """Values that a model can draw: `offset + k * step` up to `limit`."""

    step: int
    offset: int
    limit: int
    rule: str  # the legal values, for messages


def grids(stride: Stride) -> dict[str, Grid]:
    """The grid of each field that `output.geometry` moves."""
    step, sides = stride.frames, stride.pixels
    counts = f"{step}n+1 (1, {step + 1}, {2 * step + 1}, ...) up to {stride.max_frames}"
    if stride.max_frames == 1:
        counts = "1 (the model draws images)"
    side = Grid(sides, 0, stride.max_side, f"legal: multiples of {sides} up to {stride.max_side}")
    frames = Grid(step, 1, stride.max_frames, f"legal: {counts}")
    return {"width": side, "height": side, "num_frames": frames}


def snap(values: np.ndarray, grid: Grid, policy: Policy) -> np.ndarray:
    """int64 `values` on the grid (at least one step where its offset is 0): the nearest (`round`,
    ties up) or the next above (`pad`, whose media are cut to what was asked for once they are
    drawn: `media.cut`). The upper limit is left to `off_grid`: a size far beyond it is a mistake,
    not a matter of rounding."""
    if policy == "error":
        return values
    up = grid.step - 1 if policy == "pad" else grid.step // 2
    snapped = (values - grid.offset + up) // grid.step * grid.step + grid.offset
    result: np.ndarray = np.maximum(snapped, grid.offset or grid.step)
    return result


def off_grid(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Mask of values that are not on the grid."""
    mask: np.ndarray = (
        ((values - grid.offset) % grid.step != 0)
        | (values < max(grid.offset, 1))
        | (values > grid.limit)
    )
    return mask


@dataclass(frozen=True, slots=True)
class NamedSizes:
    """`resolution` + `aspect_ratio` -> width and height, from the model's table."""

    sizes: dict[str, tuple[int, int]]  # "480p 16:9" -> width, height
    resolution: str  # where a row names only its aspect ratio
    aspect_ratio: str  # where a row names only its resolution
    judged: bool = True  # False where no model is given: every name is taken for legal

    def find(self, resolution: str | None, aspect_ratio: str | None) -> tuple[int, int] | None:
        """Width and height, or None when the model has no such size."""
        if not self.judged:
            return 1, 1
        key = f"{resolution or self.resolution} {aspect_ratio or self.aspect_ratio}"
        return self.sizes.get(key.strip().lower())

    def rule(self) -> str:
        """Legal names, for messages."""
        if not self.sizes:
            return "the model has no named sizes: set width and height"
        return f"legal: {', '.join(self.sizes)}"


def named_sizes(model: ModelSpec, resolution: str | None, aspect_ratio: str | None) -> NamedSizes:
    """The model's named sizes; the job's halves stand in for missing ones, then the model's own."""
    sizes = {name.lower(): size for name, size in model.sizes.items()}
    own = (model.request_defaults.width, model.request_defaults.height)
    default = next((name for name, size in sizes.items() if size == own), next(iter(sizes), " "))
    default_resolution, _, default_aspect = default.partition(" ")
    return NamedSizes(sizes, resolution or default_resolution, aspect_ratio or default_aspect)
