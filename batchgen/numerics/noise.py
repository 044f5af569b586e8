"""Initial noise from the row's seed alone, so that shard, rank, order and batch mates cannot change
it."""

from __future__ import annotations

import torch
from torch import Tensor


def seeded_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal float32 noise on the host, drawn by a CPU generator: what diffusers'
    `randn_tensor` draws with `generator=torch.Generator().manual_seed(seed)`, for any device."""
    return SeededNoise(shape, seed).draw()


class SeededNoise:
    """Noises of one shape that a row's seed gives, one after the other."""

    def __init__(self, shape: tuple[int, ...], seed: int, drawn: int = 0) -> None:
        """`drawn`: so many of them are left out."""
        self.shape = shape
        self._generator = torch.Generator().manual_seed(seed)
        for _ in range(drawn):
            self.draw()

    def draw(self) -> Tensor:
        """The next one, float32, on the host."""
        return torch.randn(self.shape, generator=self._generator, dtype=torch.float32)
