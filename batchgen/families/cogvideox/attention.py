"""The attention of CogVideoX by way of diffusers' dispatch.

diffusers' own processor calls torch's attention itself, so that nobody can divide it over ranks.
This one computes the same, to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor


class OneStreamAttention:
    """In place of diffusers' CogVideoXAttnProcessor2_0: the text, then the video, attend to each
    other through the same layers."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(items, tokens, width) of the video, and of the text -> what these attend to.
        `image_rotary_emb`: of the video's places, in models that turn by them. There is no mask."""
        text = encoder_hidden_states.shape[1]
        joint = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            project(joint).unflatten(2, (attn.heads, -1))
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        found = dispatch_attention_fn(
            _turned(attn.norm_q(query), text, image_rotary_emb),
            _turned(attn.norm_k(key), text, image_rotary_emb),
            value,
            dropout_p=0.0,
            is_causal=False,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        joint = attn.to_out[1](attn.to_out[0](found.flatten(2, 3).to(query.dtype)))
        return joint[:, text:], joint[:, :text]


def _turned(x: Tensor, text: int, places: tuple[Tensor, Tensor] | None) -> Tensor:
    """(items, tokens, heads, channels) with those behind the text turned by their places."""
    if places is None:
        return x
    turned = apply_rotary_emb(x[:, text:], places, sequence_dim=1)
    return torch.cat([x[:, :text], turned], dim=1)
