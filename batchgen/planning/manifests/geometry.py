"""Sizes and frame counts that a model can draw, and what becomes of those it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from batchgen.config.schema import ModelSpec
from batchgen.families.family import Stride

Policy = Literal["error", "round", "pad"]


def snap(values: np.ndarray, step: int, offset: int, policy: Policy) -> np.ndarray:
    """Values `offset + k * step` (k >= 0, at least one step where the offset is 0) for int64
    `values`: the nearest (`round`, ties up) or the next above (`pad`, whose media are cut to what
    was asked for once they are drawn: `media.cut`). A model's upper limit is left to `off_grid`: a
    size far beyond it is a mistake, not a matter of rounding."""
    if policy == "error":
        return values
    up = step - 1 if policy == "pad" else step // 2
    snapped = (values - offset + up) // step * step + offset
    result: np.ndarray = np.maximum(snapped, offset or step)
    return result


def off_grid(values: np.ndarray, step: int, offset: int, limit: int) -> np.ndarray:
    """Mask of values that are not `offset + k * step` inside the model's limit."""
    mask: np.ndarray = (
        ((values - offset) % step != 0) | (values < max(offset, 1)) | (values > limit)
    )
    return mask


def side_rule(stride: Stride) -> str:
    """Legal widths and heights, for messages."""
    return f"legal: multiples of {stride.pixels} up to {stride.max_side}"


def frames_rule(stride: Stride) -> str:
    """Legal frame counts, for messages."""
    step = stride.frames
    if stride.max_frames == 1:
        return "legal: 1 (the model draws images)"
    return f"legal: {step}n+1 (1, {step + 1}, {2 * step + 1}, ...) up to {stride.max_frames}"


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
