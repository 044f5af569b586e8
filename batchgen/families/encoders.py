"""Text encoders that several families use: dimensions, FLOPs, weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batchgen.families.dims import ComponentDims, stored, stored_dims


@dataclass(frozen=True, slots=True, kw_only=True)
class T5Dims(ComponentDims):
    """Dimensions of the encoder of a T5 or UMT5, as in its transformers config."""

    vocab_size: int = 256384
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    max_tokens: int = stored(512, None)  # an argument of the pipeline's call

    def block_weights(self) -> tuple[int, ...]:
        inner = self.num_heads * self.d_kv
        return (4 * self.d_model * inner + 3 * self.d_model * self.d_ff,) * self.num_layers


def t5_flops(text: T5Dims) -> float:
    """FLOPs for one text, padded to `max_tokens`."""
    inner = text.num_heads * text.d_kv
    per_token = 2 * (4 * text.d_model * inner + 3 * text.d_model * text.d_ff)
    attention = 4 * text.max_tokens * inner
    return float(text.num_layers * text.max_tokens * (per_token + attention))


def t5_parameters(text: T5Dims) -> int:
    """Number of weights, with the embedding table and the gated feed-forward."""
    return sum(text.block_weights()) + text.vocab_size * text.d_model


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipDims(ComponentDims):
    """Dimensions of the text encoder of a CLIP, as in its transformers config."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    eos_token_id: int = 2  # token whose state is the pooled one; 2 = the highest id in the text


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectedClipDims(ClipDims):
    """The same, with a projection of the pooled state."""

    projection_dim: int = 768


def clip_flops(text: ClipDims) -> float:
    """FLOPs for one text, padded to the maximum length."""
    d, n = text.hidden_size, text.max_position_embeddings
    linear = 2 * n * (4 * d * d + 2 * d * text.intermediate_size)
    return float(text.num_hidden_layers * (linear + 4 * n * n * d))


def clip_parameters(text: ClipDims) -> int:
    """Number of weights, with the embedding tables."""
    d = text.hidden_size
    block = 4 * d * d + 2 * d * text.intermediate_size
    tables = (text.vocab_size + text.max_position_embeddings) * d
    return text.num_hidden_layers * block + tables


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmDims(ComponentDims):
    """Dimensions of a language model whose hidden states are conditions, as in its transformers
    config: Qwen3 by default."""

    vocab_size: int = 151936
    hidden_size: int = 2560
    intermediate_size: int = 9728
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int | None = 128  # None: hidden_size / num_attention_heads
    tie_word_embeddings: bool = True
    max_tokens: int = stored(512, None)  # an argument of the pipeline's call

    @property
    def channels(self) -> int:
        """Of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def block_weights(self) -> tuple[int, ...]:
        return (llm_layer(self),) * self.num_hidden_layers

    def random_extras(self) -> dict[str, Any]:
        """Numbers of tokens that a small vocabulary has too."""
        return {"bos_token_id": None, "eos_token_id": 1}


def llm_flops(text: LlmDims, tokens: int) -> float:
    """FLOPs of all layers for one text of so many tokens."""
    inner = text.num_attention_heads * text.channels
    attention = 4 * tokens * inner
    return float(tokens * text.num_hidden_layers * (2 * llm_layer(text) + attention))


def llm_layer(text: LlmDims) -> int:
    """Number of weights of one layer."""
    heads = 2 * text.num_attention_heads + 2 * text.num_key_value_heads
    return text.hidden_size * (heads * text.channels + 3 * text.intermediate_size)


def llm_parameters(text: LlmDims, head: bool = False) -> int:
    """Number of weights; `head`: with a layer of its own that would choose the next token."""
    tables = text.vocab_size * text.hidden_size * (1 + head)
    return text.num_hidden_layers * llm_layer(text) + tables


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenVlDims(LlmDims):
    """Dimensions of a Qwen2.5-VL, of which only the language model runs."""

    vocab_size: int = stored(152064, "text_config.vocab_size")
    hidden_size: int = stored(3584, "text_config.hidden_size")
    intermediate_size: int = stored(18944, "text_config.intermediate_size")
    num_hidden_layers: int = stored(28, "text_config.num_hidden_layers")
    num_attention_heads: int = stored(28, "text_config.num_attention_heads")
    num_key_value_heads: int = stored(4, "text_config.num_key_value_heads")
    head_dim: int | None = stored(None, None)
    tie_word_embeddings: bool = False
    vision_depth: int = stored(32, "vision_config.depth")
    vision_width: int = stored(1280, "vision_config.hidden_size")
    vision_inner: int = stored(3420, "vision_config.intermediate_size")
    vision_heads: int = stored(16, "vision_config.num_heads")
    vision_out: int = stored(3584, "vision_config.out_hidden_size")

    def random_extras(self) -> dict[str, Any]:
        """The places of rotary channels, which divide a head's."""
        third = 3 * self.channels // 16
        rope = {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [self.channels // 2 - 2 * third, third, third],
        }
        tokens = {"bos_token_id": None, "eos_token_id": 1}
        text = stored_dims(self)["text_config"] | tokens | {"rope_parameters": rope}
        return {"text_config": text}


def qwen_vl_parameters(text: QwenVlDims) -> int:
    """Number of weights of language model, head and vision tower."""
    d, merged = text.vision_width, 4 * text.vision_width
    tower = text.vision_depth * (4 * d * d + 3 * d * text.vision_inner)
    doors = 2 * 3 * 14 * 14 * d + merged * merged + merged * text.vision_out
    return llm_parameters(text, head=not text.tie_word_embeddings) + tower + doors


@dataclass(frozen=True, slots=True, kw_only=True)
class BertDims(ComponentDims):
    """Dimensions of a BERT, as in its transformers config."""

    vocab_size: int = 47020
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    max_position_embeddings: int = 512

    def block_weights(self) -> tuple[int, ...]:
        d = self.hidden_size
        return (4 * d * d + 2 * d * self.intermediate_size,) * self.num_hidden_layers


def bert_flops(text: BertDims, tokens: int) -> float:
    """FLOPs for one text of so many tokens, with the pooler, which is not used."""
    d = text.hidden_size
    linear = 2 * tokens * (4 * d * d + 2 * d * text.intermediate_size)
    return float(text.num_hidden_layers * (linear + 4 * tokens * tokens * d) + 2 * d * d)


def bert_parameters(text: BertDims) -> int:
    """Number of weights, with the embedding tables and the pooler."""
    d = text.hidden_size
    tables = (text.vocab_size + text.max_position_embeddings + 2) * d
    return sum(text.block_weights()) + tables + d * d
