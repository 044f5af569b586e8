"""Batch-invariant edges: modules that run item by item, so that packing does not change pixels.

The last bits of a few modules depend on the number of items: a matrix product of one row uses
another kernel than one of two, so every Linear that sees one vector per item does; and a patch
convolution chooses its algorithm by that number. Run item by item, they make a pack bit-equal to
each item alone, at a cost within the noise of a forward. The engine's self-test finds out whether a
device's other kernels keep the promise.
"""

from __future__ import annotations

from functools import wraps
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

_MARK = "_runs_item_by_item"


def make_batch_invariant(model: nn.Module) -> None:
    """Apply the rule to every module of a transformer. State-dict keys do not change, and doing it
    twice has no further effect."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _split(module, only_vectors=True)
        elif isinstance(module, (nn.Conv2d, nn.Conv3d)) and prod(module.kernel_size) > 1:
            _split(module, only_vectors=False)


def is_edge(module: nn.Module, x: Tensor) -> bool:
    """Whether the rule runs `module` item by item on input `x`."""
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
