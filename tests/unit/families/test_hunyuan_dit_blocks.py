"""What HunyuanDiT's blocks hand on to each other."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from batchgen.families.hunyuan_dit.model import _join
from batchgen.numerics.around import surrounded


class Half(nn.Module):
    """A block that may be broken."""

    broken = False

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        if self.broken:
            raise torch.OutOfMemoryError("no room")
        return x + 1 if skip is None else x + skip


def test_a_forward_that_failed_leaves_nothing_to_the_next_one() -> None:
    blocks = [Half() for _ in range(6)]
    _join(blocks)
    seen: list[weakref.ref[torch.Tensor]] = []

    def forward() -> torch.Tensor:
        x = torch.zeros(1)
        for block in blocks:
            x = surrounded(block, block)(x)
            seen.append(weakref.ref(x))
        return x

    plain = forward()
    blocks[4].broken = True
    with pytest.raises(torch.OutOfMemoryError):
        forward()
    blocks[4].broken = False
    first = seen[6]
    gc.collect()
    again = forward()
    assert torch.equal(again, plain)
    gc.collect()
    assert first() is None
