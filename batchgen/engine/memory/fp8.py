"""Weights of Linears kept in 8 bits and computed in the precision of what they multiply.

Each row of a weight has a scale, a power of two, so that its largest entry is below 448, the most
that float8_e4m3fn holds. Scaling by powers of two is exact, so what is lost is the rounding to 3
bits of mantissa: |stored - w| <= max(2^-4 |w|, 2^-10 scale), where scale < max |row| / 224.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FP8 = torch.float8_e4m3fn
# Names of modules that keep their precision, as in diffusers' layerwise casting: norms with the
# Linears that modulate them. What is outside of blocks keeps it, too: embeddings, projections. And
# the factors of LoRA adapters, which are small.
SKIPPED = ("norm", "mod", "lora_")
_SCALE = "weight_scale"


def store_in_fp8(blocks: Iterable[nn.Module]) -> None:
    """Keep the Linears of these blocks in 8 bits from now on, but for those that are skipped."""
    for block in blocks:
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear) and not any(part in name for part in SKIPPED):
                _store(module)


def to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of a weight (outputs, inputs) what is stored, and the scale (outputs, 1) of each row."""
    most = weight.detach().float().abs().amax(dim=1, keepdim=True)
    limit = torch.finfo(FP8).max
    exponent = torch.ceil(torch.log2(most / limit))
    scale = torch.where(most > 0, torch.exp2(exponent), torch.ones_like(most))
    return (weight.float() / scale).clamp(-limit, limit).to(FP8), scale


def from_fp8(stored: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight to compute with."""
    return stored.to(dtype) * scale.to(dtype)


def _store(linear: nn.Linear) -> None:
    stored, scale = to_fp8(linear.weight)
    linear.weight = nn.Parameter(stored, requires_grad=False)
    linear.register_buffer(_SCALE, scale, persistent=False)
    made: Any = linear

    def forward(x: Tensor) -> Tensor:
        return functional.linear(x, from_fp8(made.weight, made.weight_scale, x.dtype), made.bias)

    made.forward = forward
