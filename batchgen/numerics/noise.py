"""Initial noise from the row's seed alone, so that shard, rank, order and batch mates cannot change
it."""

from __future__ import annotations

import torch
from torch import Tensor


def seeded_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal float32 noise on the host, drawn by a CPU generator: what diffusers'
    `randn_tensor` draws with `generator=torch.Generator().manual_seed(seed)`, for any device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32)
