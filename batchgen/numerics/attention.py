"""Attention kernels: which one torch runs."""

from __future__ import annotations

import torch

_KERNELS = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "overrideable"}


def sdpa_kernel(heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> str:
    """Which kernel torch's scaled_dot_product_attention picks for these dimensions; torch tells
    it by a private function alone, and without that the name is plain `sdpa`."""
    choose = getattr(torch, "_fused_sdp_choice", None)
    if choose is None:
        return "sdpa"
    query = torch.zeros(1, heads, 8, head_dim, dtype=dtype, device=device)
    choice = _KERNELS.get(int(choose(query, query, query)), "unknown")
    return f"sdpa-cpu-{choice}" if device.type == "cpu" else f"sdpa-{choice}"
