"""Batch-invariant edges: packing must not change pixels.

A few modules give results that depend on the batch in the last bits: a matrix product of one row
takes another kernel than one of two rows, so every Linear that sees one vector per item does; and
so does a patch convolution, which picks its algorithm by batch. Run item by item, they make a whole
pack bit-equal to each item alone, at a cost within the noise of a forward, so they always do.
Whether a device's other kernels keep the promise is asked by the self-test.
"""

from __future__ import annotations

from functools import wraps
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

_MARK = "_runs_item_by_item"


def make_batch_invariant(model: nn.Module) -> None:
    """Apply the rule to every module of a transformer. State-dict keys do not change; doing it
    twice does nothing."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _split(module, only_vectors=True)
        elif isinstance(module, (nn.Conv2d, nn.Conv3d)) and prod(module.kernel_size) > 1:
            _split(module, only_vectors=False)


def is_edge(module: nn.Module, x: Tensor) -> bool:
    """Whether the rule runs `module` item by item on the input `x`."""
    split: bool | None = getattr(module, _MARK, None)
    return split is not None and (not split or x.ndim == 2)


def _split(module: nn.Module, *, only_vectors: bool) -> None:
    if getattr(module, _MARK, None) is None:
        module.forward = _looped(module.forward, only_vectors)
        setattr(module, _MARK, only_vectors)


def _looped(inner: Any, only_vectors: bool) -> Any:
    @wraps(inner)
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.shape[0] == 1 or (only_vectors and x.ndim != 2):
            y: Tensor = inner(x, *args, **kwargs)
            return y
        return torch.cat([inner(x[i : i + 1], *args, **kwargs) for i in range(x.shape[0])])

    return forward
