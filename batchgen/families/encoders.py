"""Text encoders that several families use: dimensions, FLOPs, weights."""

from __future__ import annotations

from dataclasses import dataclass

from batchgen.families.dims import ComponentDims, stored


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


def t5_flops(text: T5Dims) -> float:
    """FLOPs for one text, padded to `max_tokens`."""
    inner = text.num_heads * text.d_kv
    per_token = 2 * (4 * text.d_model * inner + 3 * text.d_model * text.d_ff)
    attention = 4 * text.max_tokens * inner
    return float(text.num_layers * text.max_tokens * (per_token + attention))


def t5_parameters(text: T5Dims) -> int:
    """Number of weights, with the embedding table and the gated feed-forward."""
    inner = text.num_heads * text.d_kv
    block = 4 * text.d_model * inner + 3 * text.d_model * text.d_ff
    return text.num_layers * block + text.vocab_size * text.d_model


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
class ClipVisionDims(ComponentDims):
    """Dimensions of the image encoder of a CLIP, as in its transformers config."""

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "gelu"

    @property
    def tokens(self) -> int:
        """Of one image: its patches, and one for the whole."""
        return (self.image_size // self.patch_size) ** 2 + 1


def clip_vision_flops(image: ClipVisionDims) -> float:
    """FLOPs for one image."""
    d, n = image.hidden_size, image.tokens
    linear = 2 * n * (4 * d * d + 2 * d * image.intermediate_size)
    patches = 2 * n * 3 * image.patch_size**2 * d
    return float(image.num_hidden_layers * (linear + 4 * n * n * d) + patches)


def clip_vision_parameters(image: ClipVisionDims) -> int:
    """Number of weights, with the patches and the table of positions."""
    d = image.hidden_size
    block = 4 * d * d + 2 * d * image.intermediate_size
    return image.num_hidden_layers * block + (3 * image.patch_size**2 + image.tokens) * d


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
