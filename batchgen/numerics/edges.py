"""Batch-invariant edges: modules that run item by item, so that packing does not change pixels.

The last bits of a few modules depend on the number of items: a matrix product of one row uses
another kernel than one of two, so every Linear that sees one vector per item does; and a patch
convolution chooses its algorithm by that number. Run item by item, they make a pack bit-equal to
each item alone, at a cost within the noise of a forward. The engine's self-test finds out whether a
device's other kernels keep the promise.

A pipeline that runs the branches of guidance as one forward has other bits than one of a branch
alone. `in_batches` gives an item's edges the bits of such a batch: they see the item repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

_MARK = "_runs_item_by_item"
_batches: list[tuple[int, ...]] = []  # the forward's; no context variable: torch.compile traces it


@contextmanager
def in_batches(sizes: Sequence[int]) -> Iterator[None]:
    """Inside, the edges of a forward see its items one by one, each as a batch of so many: of 2
    where the pipeline runs both branches of a row as one forward."""
    _batches.append(tuple(sizes))
    try:
        yield
    finally:
        _batches.pop()


def batch_sizes(items: int) -> tuple[int, ...]:
    """Of so many items, those that `in_batches` has said; 1 each where it has said nothing."""
    return (_batches[-1] if _batches else ()) or (1,) * items


def make_batch_invariant(model: nn.Module) -> None:
    """Apply the rule to every module of a transformer. State-dict keys do not change, and doing it
    twice has no further effect."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            _split(module, only_vectors=True)
        elif isinstance(module, (nn.Conv2d, nn.Conv3d)) and prod(module.kernel_size) > 1:
            _split(module, only_vectors=False)


def split_by_items(module: nn.Module) -> None:
    """Let a module whose every tensor has one row per item run item by item, as its edges do; its
    parts see items as it does. Doing it twice has no further effect."""
    inner: Any = module.forward
    if hasattr(inner, _MARK):
        return

    @wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Tensor:
        items = next(x.shape[0] for x in args if isinstance(x, Tensor))
        found = []
        for number, size in enumerate(batch_sizes(items)):
            own = [_copies(x, number, size) for x in args]
            named = {name: _copies(x, number, size) for name, x in kwargs.items()}
            with in_batches((1,)):  # all that is inside is of one item
                found.append(inner(*own, **named)[:1])
        return torch.cat(found)

    setattr(forward, _MARK, True)
    module.forward = forward


def _copies(x: Any, number: int, size: int) -> Any:
    """One item's row, so many times."""
    return torch.cat([x[number : number + 1]] * size) if isinstance(x, Tensor) else x


def is_edge(module: nn.Module, x: Tensor, items: int) -> bool:
    """Whether the rule runs `module` item by item on input `x` of so many items."""
    split: bool | None = getattr(module, _MARK, None)
    return split is not None and _sees_items(split, x, items)


def _sees_items(only_vectors: bool, x: Tensor, items: int) -> bool:
    """A Linear sees one vector per item; or the tokens of all items, one behind the other."""
    return x.shape == (items, x.shape[-1]) if only_vectors else x.shape[0] % items == 0


def _split(module: nn.Module, *, only_vectors: bool) -> None:
    if getattr(module, _MARK, None) is None:
        module.forward = _looped(module.forward, only_vectors)
        setattr(module, _MARK, only_vectors)


def _looped(inner: Any, only_vectors: bool) -> Any:
    @wraps(inner)
    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        sizes = batch_sizes(x.shape[0])
        if sizes == (1,) or not _sees_items(only_vectors, x, len(sizes)):
            y: Tensor = inner(_as_alone(x), *args, **kwargs)
            return y
        items = zip(x.chunk(len(sizes)), sizes, strict=True)
        return torch.cat([_first(inner, one, size, *args, **kwargs) for one, size in items])

    return forward


def _first(inner: Any, x: Tensor, size: int, *args: Any, **kwargs: Any) -> Tensor:
    """What the first of `size` copies of an item comes to."""
    y: Tensor = inner(torch.cat([x] * size) if size > 1 else x, *args, **kwargs)
    return y[: x.shape[0]]


def _as_alone(x: Tensor) -> Tensor:
    """Contiguous if each item is: a part of the tokens is cut out of a pack, of one item's it is
    not, and a product takes another way for either."""
    return x.contiguous() if x.shape[0] > 1 and x[0].is_contiguous() else x
