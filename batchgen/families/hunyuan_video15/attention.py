"""The attention of HunyuanVideo 1.5 with a mask of the text's tokens alone.

diffusers' own processor makes a mask of a row for each query, from how many of them it holds: that
takes memory in their square, and a rank that holds a share of them makes a wrong one. Those rows
only part what padding attends to from what all others do, and nothing attends to padding: what the
video attends to is the same without them, to the bit.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn as dispatched
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor
from torch.nn import functional as F


def dispatch_attention_fn(
    query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor, **settings: Any
) -> Tensor:
    """diffusers' own, over all tokens (items, tokens, heads, channels). `attn_mask` (items, 1, 1,
    text tokens) says which of the last are attended to; all before them are."""
    whole = F.pad(attn_mask, (key.shape[1] - attn_mask.shape[-1], 0), value=True)
    found: Tensor = dispatched(query, key, value, attn_mask=whole, **settings)
    return found


class JointAttention:
    """In place of diffusers' HunyuanVideo15AttnProcessor2_0: the video, then the text, attend to
    each other."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """(items, tokens, width) of the video, and of the text, of which `attention_mask` (items,
        tokens) are no padding -> what these attend to. `image_rotary_emb`: of the video's
        places."""
        video = hidden_states.shape[1]
        names = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
        q, k, v = _heads(attn, hidden_states, names[0])
        q, k = attn.norm_q(q), attn.norm_k(k)
        q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
        text_q, text_k, text_v = _heads(attn, encoder_hidden_states, names[1])
        text_q, text_k = attn.norm_added_q(text_q), attn.norm_added_k(text_k)
        found = dispatch_attention_fn(
            torch.cat([q, text_q], dim=1),
            torch.cat([k, text_k], dim=1),
            torch.cat([v, text_v], dim=1),
            attn_mask=attention_mask.bool()[:, None, None],
            dropout_p=0.0,
            is_causal=False,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        found = found.flatten(2, 3).to(q.dtype)
        drawn = attn.to_out[1](attn.to_out[0](found[:, :video]))
        return drawn, attn.to_add_out(found[:, video:])


def _heads(attn: Any, x: Tensor, names: tuple[str, ...]) -> list[Tensor]:
    """Queries, keys and values, (items, tokens, heads, channels)."""
    return [getattr(attn, name)(x).unflatten(2, (attn.heads, -1)) for name in names]
