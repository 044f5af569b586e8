"""Batch-invariant edges: packing must not change pixels.

A few small modules at a transformer's input give results that depend on the batch size in the
last bits (a matrix product of one row takes another kernel than one of two rows; a convolution
picks its algorithm by batch). Run item by item, they make a whole pack bit-equal to each item
alone, at a cost within the noise of a forward, so they always do. Whether a device's other kernels
keep the promise is asked by the self-test.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from batchgen.engine.family import Family, Item
from batchgen.records import Bucket

_MARK = "_runs_item_by_item"


def run_item_by_item(modules: Iterable[nn.Module]) -> None:
    """Make each module loop over the first dimension of its input. State-dict keys do not change;
    doing it twice does nothing."""
    for module in modules:
        if not getattr(module, _MARK, False):
            module.forward = _looped(module.forward)
            setattr(module, _MARK, True)


def _looped(inner: Any) -> Any:
    @wraps(inner)
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.shape[0] == 1:
            return inner(x, *args, **kwargs)
        return torch.cat([inner(x[i : i + 1], *args, **kwargs) for i in range(x.shape[0])])

    return forward


def pack_equals_solo(family: Family, bucket: Bucket, items: int) -> bool:
    """The self-test: do `items` random items give the same bits in one forward as each alone?"""
    pack: Sequence[Item] = [family.random_item(bucket, seed) for seed in range(items)]
    together = family.forward(pack)
    return all(
        torch.equal(y, family.forward([item])[0]) for y, item in zip(together, pack, strict=True)
    )
