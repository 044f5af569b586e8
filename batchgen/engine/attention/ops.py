"""Kernels that batchgen calls itself, over (B, S, H, D)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module
from torch.nn.attention.flex_attention import BlockMask

SPARGE_TOPK = 0.5  # share of key blocks that its authors' default keeps


def flex(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None = None) -> Tensor:
    """FlexAttention: fused on CUDA; on a CPU its plain form, which holds all scores at once."""
    heads = (x.transpose(1, 2) for x in (q, k, v))
    y: Tensor = (_fused() if q.device.type == "cuda" else _plain)(*heads, block_mask=mask)
    return y.transpose(1, 2)


@lru_cache(maxsize=1)
def _fused() -> Callable[..., Any]:
    return torch.compile(flex_module.flex_attention, dynamic=False)


def _plain(*tensors: Tensor, block_mask: BlockMask | None) -> Any:
    """As it is, operation by operation: torch would trace it first, to no gain."""
    module: Any = flex_module
    module._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
    try:
        return module.flex_attention(*tensors, block_mask=block_mask)
    finally:
        module._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = False


def sparge(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SpargeAttn. Never seen running: written from its documentation."""
    kernel = importlib.import_module("spas_sage_attn").spas_sage2_attn_meansim_topk_cuda
    heads = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    y: Tensor = kernel(*heads, topk=SPARGE_TOPK, is_causal=False)
    return y.transpose(1, 2)
