"""Attention chunk by chunk, as around a ring, in one process."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from batchgen.engine.parallel.ring import attend_lse, merge


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_keys_that_are_masked_add_nothing_wherever_they_are(dtype: torch.dtype) -> None:
    """Of three items one is attended to whole, of one the last chunk is left out, of one all but
    the first key."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 24, 2, 16, generator=draw).to(dtype) for _ in range(3))
    lengths = torch.tensor([24, 16, 1])
    mask = (torch.arange(24) < lengths[:, None])[:, None, None]
    parts = [
        attend_lse(q, *part)
        for part in zip(k.split(8, 1), v.split(8, 1), mask.split(8, -1), strict=True)
    ]
    for order in (parts, parts[::-1]):  # a rank begins with its own chunk
        found, _ = reduce(merge, order)
        heads_first = (x.float().transpose(1, 2) for x in (q, k, v))
        exact = scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(1, 2)
        near = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found, exact, atol=near, rtol=0)
