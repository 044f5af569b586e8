"""Wan2.1 image-to-video: a Wan whose transformer sees the first frame, or first and last, beside
the latents, and attends to what CLIP sees in them.

With I tokens of the images of width i, its forward takes L x (4Id^2 + 4NId) + 2I x (i^2 + id) FLOPs
beside those of `wan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from batchgen.caches.blocks import Attention
from batchgen.config.schema import ModelSpec
from batchgen.errors import ConfigError
from batchgen.families.family import Capabilities, Component
from batchgen.families.vision import ClipVisionDims, clip_vision_flops, clip_vision_parameters
from batchgen.families.wan import spec as wan
from batchgen.families.wan.spec import (
    boundary,
    branches,
    decode_bytes,
    decode_flops,
    encode_flops,
    forward_bytes,
    heads,
    layers,
    max_tokens,
    settings,
    stride,
    tokens,
    width,
)
from batchgen.request import Bucket, ModelDefaults

__all__ = [
    "COMPONENTS",
    "MEDIA",
    "NUMERICS_VERSION",
    "OWN_ENGINE",
    "PIPELINE",
    "Dims",
    "attention_flops",
    "block_parameters",
    "boundary",
    "branches",
    "capabilities",
    "decode_bytes",
    "decode_flops",
    "defaults",
    "encode_flops",
    "forward_bytes",
    "forward_flops",
    "fp8_parameters",
    "heads",
    "image_flops",
    "layers",
    "max_tokens",
    "parameters",
    "serves",
    "settings",
    "stride",
    "tokens",
    "width",
]

NUMERICS_VERSION = 1
PIPELINE = "WanImageToVideoPipeline"
MEDIA: Literal["video", "image"] = "video"
OWN_ENGINE = False
TEXT_TOKENS = 512  # the transformer counts on it
COMPONENTS = (
    wan.TRANSFORMER,
    wan.TEXT_ENCODER,
    # in float32, as its makers advise
    Component(
        name="image_encoder",
        loads="transformers.CLIPVisionModel",
        model_type="clip_vision_model",
        stage="encode",
        dims="image_encoder",
        float32=True,
    ),
    Component(
        name="image_processor",
        kind="processor",
        loads="transformers.CLIPImageProcessor",
        stage="encode",
        dims="image_encoder",
    ),
    replace(wan.VAE, also=("encode",)),
    wan.SCHEDULER,
    wan.TOKENIZER,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WanI2VTransformer(wan.WanTransformer):
    """Dimensions of the diffusion transformer, as in its diffusers config."""

    in_channels: int = 36  # latents, a mask of four, the latents of the given frames
    image_dim: int = 1280
    added_kv_proj_dim: int = 5120
    pos_embed_seq_len: int | None = None  # tokens of two images, where the last is given too


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims(wan.Dims):
    """Dimensions of a Wan with given frames."""

    transformer: WanI2VTransformer
    image_encoder: ClipVisionDims = field(default_factory=ClipVisionDims)

    def __post_init__(self) -> None:
        wan.Dims.__post_init__(self)
        if self.text_encoder.max_tokens != TEXT_TOKENS:
            raise ConfigError(
                f"model.text_encoder.max_tokens: {self.text_encoder.max_tokens}, but a transformer "
                f"that sees images counts on {TEXT_TOKENS}"
            )


def dims(model: ModelSpec) -> Dims:
    assert isinstance(model.dims, Dims)
    return model.dims


def images(model: ModelSpec) -> int:
    """How many each row is given."""
    return 1 if dims(model).transformer.pos_embed_seq_len is None else 2


def capabilities(model: ModelSpec) -> Capabilities:
    given = ("image", "last_image")[: images(model)]
    return replace(wan.capabilities(model), columns=("guidance_scale", *given, "lora"), needs=given)


def serves(index: Mapping[str, Any]) -> bool:
    """Whether it is a Wan that draws from an image with one transformer and CLIP."""
    second = (index.get("transformer_2") or [None])[0]
    return (
        index.get("_class_name") == PIPELINE
        and second is None
        and not index.get("expand_timesteps")
    )


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    """Defaults of Wan2.1 at 480p."""
    return replace(wan.defaults(dims, scheduler), num_steps=40)


def image_tokens(model: ModelSpec) -> int:
    """Of all images of a row."""
    return images(model) * dims(model).image_encoder.tokens


def _attention(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of attending to the images."""
    d, seen = width(model), image_tokens(model)
    added = 4 * seen * dims(model).transformer.added_kv_proj_dim * d
    return float(layers(model) * (added + 4 * tokens(model, bucket) * seen * d))


def forward_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of one item of one forward (module docstring)."""
    i = dims(model).transformer.image_dim
    embedded = 2 * image_tokens(model) * (i * i + i * width(model))
    return wan.forward_flops(model, bucket) + _attention(model, bucket) + embedded


def attention_flops(model: ModelSpec, bucket: Bucket) -> Mapping[Attention, float]:
    """FLOPs of all attentions of one forward."""
    plain = wan.attention_flops(model, bucket)
    return {**plain, "cross": plain["cross"] + _attention(model, bucket)}


def image_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of encoding what one row is given, by CLIP and by the autoencoder."""
    seen = images(model) * clip_vision_flops(dims(model).image_encoder)
    return seen + wan.given_flops(model, bucket)


def parameters(model: ModelSpec, component: str) -> int:
    """Number of weights of a component."""
    if component == "image_encoder":
        return clip_vision_parameters(dims(model).image_encoder)
    if component != "transformer":
        return wan.parameters(model, component)
    spec = dims(model).transformer
    positions = (spec.pos_embed_seq_len or 0) * spec.image_dim
    embedder = spec.image_dim**2 + spec.image_dim * spec.width + positions
    added = sum(block_parameters(model)) - sum(wan.block_parameters(model))
    return wan.parameters(model, component) + added + embedder


def block_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Number of weights of each block."""
    spec = dims(model).transformer
    added = 2 * spec.added_kv_proj_dim * spec.width
    return tuple(block + added for block in wan.block_parameters(model))


def fp8_parameters(model: ModelSpec) -> tuple[int, ...]:
    """All: a block's modulation is a table."""
    return block_parameters(model)
