"""The attention of Stable Diffusion 3 by way of diffusers' dispatch.

diffusers' own processor calls torch's attention itself, so that nobody can divide it over ranks.
This one computes the same, to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor


class JointAttention:
    """In place of diffusers' JointAttnProcessor2_0: the image, then the text, attend to each other;
    without text the image to itself."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Any:
        """(items, tokens, width) of the image, and of the text -> what these attend to. There is no
        mask."""
        image, text = hidden_states.shape[1], encoder_hidden_states
        streams = [_normed(attn, hidden_states, "to_{}", "norm_{}")]
        if text is not None:
            streams.append(_normed(attn, text, "add_{}_proj", "norm_added_{}"))
        joint = [torch.cat(parts, dim=1) for parts in zip(*streams, strict=True)]
        found = dispatch_attention_fn(
            *joint,
            dropout_p=0.0,
            is_causal=False,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        found = found.flatten(2, 3).to(joint[0].dtype)
        drawn = attn.to_out[1](attn.to_out[0](found[:, :image]))
        if text is None:
            return drawn
        read = found[:, image:]
        return drawn, read if attn.context_pre_only else attn.to_add_out(read)


def _normed(attn: Any, x: Tensor, project: str, norm: str) -> list[Tensor]:
    """Queries, keys and values of a stream, (items, tokens, heads, channels)."""
    found = []
    for name in "qkv":
        part = getattr(attn, project.format(name))(x).unflatten(-1, (attn.heads, -1))
        normed = getattr(attn, norm.format(name), None)  # values have none
        found.append(part if normed is None else normed(part))
    return found
