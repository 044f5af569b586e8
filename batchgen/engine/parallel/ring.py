"""Attention around a ring: each rank keeps its queries while keys and values pass by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from batchgen.engine.parallel.mesh import Mesh


def ring_attention(mesh: Mesh, lengths: Sequence[int], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, S, H, D) of this rank's chunk -> attention of its queries to the keys of all chunks,
    whose token counts are `lengths`. The next chunk travels while this one is attended to."""
    axis = mesh.ring
    held = torch.stack([k, v])
    out, lse = None, None
    for step in range(axis.size):
        passing = None
        if step < axis.size - 1:
            shape = list(held.shape)
            shape[2] = lengths[(axis.place - step - 1) % axis.size]
            passing = mesh.wire.shift(axis, held, shape)
        if held.shape[2]:
            part = attend_lse(q, *held.unbind())
            out, lse = part if out is None or lse is None else merge((out, lse), part)
        if passing is not None:
            held = passing.wait()
    assert out is not None
    return out.to(q.dtype)


def merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from (attention, log-sum-exp) over each, in float32."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    lse = torch.logaddexp(lse_a, lse_b)
    return out_a * (lse_a - lse).exp() + out_b * (lse_b - lse).exp(), lse


def attend_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (B, S, H, D) and its log-sum-exp (B, S, H, 1), both float32."""
    if q.shape[1] == 0:
        return q.float(), q.new_zeros(*q.shape[:3], 1, dtype=torch.float32)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    ops = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = ops._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False)
    elif q.dtype == torch.float32:
        out, lse, *_ = ops._scaled_dot_product_efficient_attention(q, k, v, None, True)
        lse = lse[:, :, : q.shape[2]]  # the kernel rounds its length up
    else:
        out, lse, *_ = ops._scaled_dot_product_flash_attention(q, k, v, 0.0, False)
    return out.transpose(1, 2).float(), lse.transpose(1, 2).unsqueeze(-1).float()
