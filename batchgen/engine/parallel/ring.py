"""Attention around a ring: each rank keeps its queries while keys and values pass by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from batchgen.engine.parallel.mesh import Mesh

_ALIGNED = 16  # a row of what is added to scores begins at a multiple, as CUDA's kernel wants it


def ring_attention(
    mesh: Mesh,
    lengths: Sequence[int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    masks: Sequence[Tensor] | None = None,
) -> Tensor:
    """(B, S, H, D) of this rank's chunk -> attention of its queries to the keys of all chunks,
    whose token counts are `lengths`, or to those that `masks` (B, 1, 1, tokens) of the chunks let
    through. The next chunk travels while this one is attended to."""
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
            mask = None if masks is None else masks[(axis.place - step) % axis.size]
            keys, values = held.unbind()
            part = attend_lse(q, keys, values, mask)
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


def attend_lse(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention (B, S, H, D) and its log-sum-exp (B, S, H, 1), both float32, over the keys that
    `mask` (B, 1, 1, S) lets through. Where it lets none through, the attention means nothing, and
    its log-sum-exp is so small that it adds nothing to another."""
    if q.shape[1] == 0:
        return q.float(), q.new_zeros(*q.shape[:3], 1, dtype=torch.float32)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    bias = None if mask is None else _bias(mask, q)
    ops = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = ops._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=bias
        )
    elif q.dtype == torch.float32 or bias is not None:  # the other kernel takes none
        out, lse, *_ = ops._scaled_dot_product_efficient_attention(q, k, v, bias, True)
        lse = lse[:, :, : q.shape[2]]  # the kernel rounds its length up
    else:
        out, lse, *_ = ops._scaled_dot_product_flash_attention(q, k, v, 0.0, False)
    return out.transpose(1, 2).float(), lse.transpose(1, 2).unsqueeze(-1).float()


def _bias(mask: Tensor, q: Tensor) -> Tensor:
    """What is added to the scores (B, H, S, keys): 0, or what leaves a key out. A finite number,
    since without any key a log of nothing would make the sum with other chunks nothing, too."""
    items, _, _, keys = mask.shape
    room = -(-keys // _ALIGNED) * _ALIGNED
    bias = torch.zeros(items, 1, 1, room, dtype=q.dtype, device=q.device)[..., :keys]
    bias.masked_fill_(~mask, torch.finfo(q.dtype).min / 4)
    return bias.expand(items, q.shape[1], q.shape[2], keys)
