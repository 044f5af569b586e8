"""Turns a decoder's output into frames."""

from __future__ import annotations

import torch
from torch import Tensor


def to_frames(video: Tensor) -> Tensor:
    """(3, frames, height, width) in -1..1 -> uint8 (frames, height, width, 3), rounded as diffusers
    does for `output_type="pil"`: (x / 2 + 0.5) clamped to 0..1, times 255, rounded half to even."""
    pixels = (video * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 3, 0)
    return (pixels.float() * 255).round().to(torch.uint8).contiguous()
