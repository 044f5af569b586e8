"""The attentions of HunyuanDiT by way of diffusers' dispatch.

diffusers' own processor calls torch's attention itself, so that nobody can divide it over ranks.
This one computes the same, to the bit.
"""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor


class ImageAttention:
    """In place of diffusers' HunyuanAttnProcessor2_0: the image's tokens attend to each other, or
    to a text's."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """(items, tokens, width) of the image -> what these attend to. `image_rotary_emb`: of their
        places. There is no mask."""
        seen = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(2, (attn.heads, -1)))
        key = attn.norm_k(attn.to_k(seen).unflatten(2, (attn.heads, -1)))
        value = attn.to_v(seen).unflatten(2, (attn.heads, -1))
        query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
        if encoder_hidden_states is None:
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        found = dispatch_attention_fn(
            query,
            key,
            value,
            dropout_p=0.0,
            is_causal=False,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        drawn: Tensor = attn.to_out[1](attn.to_out[0](found.flatten(2, 3).to(query.dtype)))
        return drawn
