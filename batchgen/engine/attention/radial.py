"""Radial attention: the further apart two frames are, the fewer of their tokens attend to each
other (arXiv 2506.19852).

Tokens of neighbouring frames all see each other. From a distance of 2 on a token sees those whose
place in their frame is near its own, half as many each time the distance doubles; where not even
one would be left, just its own place, and of ever fewer frames. All see the first frame.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil, floor, log2
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


def reach(distance: int, per_frame: int, decay: float) -> int:
    """How far from its own place a token sees in a frame at this distance; -1: nothing of it."""
    if distance < 2:
        return per_frame
    width = per_frame * decay / 2 ** floor(log2(distance))
    if width >= 1:
        return floor(width)
    return 0 if distance % ceil(1 / width) == 0 else -1


@lru_cache(maxsize=16)
def radial_mask(frames: int, per_frame: int, decay: float, device: torch.device) -> BlockMask:
    """The mask over `frames` x `per_frame` tokens, frame after frame, of all items and heads."""
    reaches = torch.tensor([reach(d, per_frame, decay) for d in range(frames)], device=device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        there = key // per_frame
        distance = (query // per_frame - there).abs()
        apart = (query % per_frame - key % per_frame).abs()
        return (there == 0) | (apart <= reaches[distance])

    tokens = frames * per_frame
    mask: Any = create_block_mask(sees, None, None, tokens, tokens, device=device)
    assert isinstance(mask, BlockMask)
    return mask
