"""Texts of different lengths in one pack, each as if it were alone.

Padding in front of other tokens changes the last bits of an attention, whatever the mask. So the
texts of a pack are padded, but each item attends over its own tokens alone. Modules of the text
stream that see few rows have other bits than with many; they run over each item's own rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

_ATTEND = "dispatch_attention_fn"  # what diffusers' processors call, in their own module
FEW = 16  # rows from which on a product's bits no longer depend on their number


class OwnTokens:
    """The attentions of a transformer that sees the text first, then the image."""

    def __init__(self, processors: str, text: Sequence[nn.Module]) -> None:
        """`processors`: name of the module of diffusers that holds the attention processors;
        `text`: modules that see rows of the text alone."""
        self.home = sys.modules[processors]
        self.text = text

    def padded(self, texts: Sequence[Tensor]) -> Tensor:
        """Texts (1, tokens, width), with zeros to the longest: (items, tokens, width)."""
        longest = max(text.shape[1] for text in texts)
        return torch.cat([_filled(text, longest) for text in texts])

    @contextmanager
    def of(self, texts: Sequence[Tensor]) -> Iterator[None]:
        """Forwards inside are of a pack with these texts."""
        lengths = [text.shape[1] for text in texts]
        if min(lengths) == max(lengths) and (len(texts) == 1 or min(lengths) >= FEW):
            yield
            return
        few = self.text if min(lengths) < FEW else ()
        inner = getattr(self.home, _ATTEND)
        undo = [_trimmed(module, lengths) for module in few]
        setattr(self.home, _ATTEND, _attend(inner, lengths))
        try:
            yield
        finally:
            setattr(self.home, _ATTEND, inner)
            for module, forward in undo:
                module.forward = forward


def _filled(text: Tensor, tokens: int) -> Tensor:
    return torch.cat([text, text.new_zeros(1, tokens - text.shape[1], text.shape[2])], dim=1)


def _attend(inner: Any, lengths: Sequence[int]) -> Any:
    """Attention item by item over its own tokens, zeros elsewhere; tensors (items, tokens, heads,
    channels)."""
    longest = max(lengths)

    @wraps(inner)
    def attend(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        out = torch.zeros_like(query)
        for item, length in enumerate(lengths):
            own = [torch.cat([x[item : item + 1, :length], x[item : item + 1, longest:]], dim=1)
                   for x in (query, key, value)]  # fmt: skip
            found = inner(*own, **settings | {"attn_mask": None})
            out[item, :length], out[item, longest:] = found[0, :length], found[0, length:]
        return out

    return attend


def _trimmed(module: nn.Module, lengths: Sequence[int]) -> tuple[nn.Module, Any]:
    """Let a module run over each item's own rows; returns it with its forward of before."""
    inner = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        items = (inner(x[n : n + 1, :own], *args, **kwargs) for n, own in enumerate(lengths))
        return torch.cat([_filled(item, x.shape[1]) for item in items])

    module.forward = forward
    return module, inner
