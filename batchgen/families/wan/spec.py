"""Wan text-to-video: geometry, FLOPs and bytes from the dimensions alone.

With N video tokens, T text tokens, width d, feed-forward width f and L blocks, one forward takes L
x (8Nd^2 + 4Nd^2 + 4Td^2 + 4Ndf + 4N^2d + 4NTd) FLOPs: self projections, cross projections of the
video and of the text, feed-forward, self attention, cross attention. That is 283 TFLOP for the 1.3B
model at 832x480x81 and 6523 TFLOP for the 14B model at 1280x720x81.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from batchgen.caches.blocks import Attention
from batchgen.config.kernels import DISPATCHED
from batchgen.config.schema import ModelSpec
from batchgen.errors import ConfigError
from batchgen.families.dims import ComponentDims
from batchgen.families.encoders import T5Dims, t5_flops, t5_parameters
from batchgen.families.family import (
    BLOCK_CACHES,
    OUTPUT_CACHES,
    Capabilities,
    Component,
    Scales,
    Stride,
)
from batchgen.families.recalled import Recalled
from batchgen.families.sequence import MOST_RANKS, RINGS, legal_ulysses
from batchgen.families.tiling import TiledDecoder, reach_of
from batchgen.families.wan import autoencoder
from batchgen.families.wan.autoencoder import WanVae
from batchgen.families.wan.scheduler import shift_of, solver_of
from batchgen.request import Bucket, ModelDefaults

NUMERICS_VERSION = 2  # 2: no guidance at scales below 1, as in the pipeline
PIPELINE = "WanPipeline"
MEDIA: Literal["video", "image"] = "video"
OWN_ENGINE = False

TOKENIZER = Component(
    name="tokenizer",
    kind="tokenizer",
    loads="transformers.AutoTokenizer",
    stage="encode",
    dims="text_encoder",
)
TEXT_ENCODER = Component(
    name="text_encoder",
    loads="transformers.UMT5EncoderModel",
    model_type="umt5",
    stage="encode",
    dims="text_encoder",
    layers=("encoder.block",),
)
TRANSFORMER = Component(
    name="transformer",
    loads="diffusers.WanTransformer3DModel",
    original=True,
    stage="denoise",
    dims="transformer",
    stacks=("blocks",),
    recalled=(
        Recalled("condition_embedder.timesteps_proj", "timestep"),
        Recalled("condition_embedder.time_embedder", "timestep"),
        Recalled("condition_embedder.time_proj", "timestep"),
        Recalled("condition_embedder.text_embedder", "text"),
        Recalled("blocks.*.attn2.to_k", "text"),
        Recalled("blocks.*.attn2.to_v", "text"),
    ),
)
# always in float32, as its makers advise: in bfloat16 its pictures have visible bands
VAE = Component(
    name="vae", loads="diffusers.AutoencoderKLWan", stage="decode", dims="vae", float32=True
)
SCHEDULER = Component(
    name="scheduler",
    kind="scheduler",
    loads="diffusers.UniPCMultistepScheduler",  # or another one of flow matching
    stage="denoise",
)
COMPONENTS = (TRANSFORMER, TEXT_ENCODER, VAE, SCHEDULER, TOKENIZER)

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class WanTransformer(ComponentDims):
    """Dimensions of the diffusion transformer, as in its diffusers config."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    ffn_dim: int
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    patch_size: tuple[int, ...] = (1, 2, 2)
    cross_attn_norm: bool = True
    qk_norm: str = "rms_norm_across_heads"
    rope_max_seq_len: int = 1024
    eps: float = 1e-6

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Dimensions of a Wan."""

    transformer: WanTransformer
    vae: WanVae = field(default_factory=WanVae)
    text_encoder: T5Dims = field(default_factory=T5Dims)

    def __post_init__(self) -> None:
        """ConfigError unless lists have the lengths that the layers need."""
        for key, values, length in (
            ("transformer.patch_size", self.transformer.patch_size, 3),
            ("vae.temperal_downsample", self.vae.temperal_downsample, len(self.vae.dim_mult) - 1),
        ):
            if len(values) != length:
                raise ConfigError(f"model.{key}: {list(values)} must have {length} entries")


def dims(model: ModelSpec) -> Dims:
    assert isinstance(model.dims, Dims)
    return model.dims


def capabilities(model: ModelSpec) -> Capabilities:
    heads, vae = dims(model).transformer.num_attention_heads, dims(model).vae
    return Capabilities(
        cfg=(1, 2),
        ulysses=legal_ulysses(heads, MOST_RANKS),
        ring=RINGS,
        attention=(*DISPATCHED, "radial"),
        tiles=TiledDecoder(
            vae.spatial_factor,
            vae.temporal_factor,
            reach_of(len(vae.dim_mult), convolutions=2 * (vae.num_res_blocks + 1)),
            vae.base_dim * vae.dim_mult[-1],
        ),
        cache_strategies=(*OUTPUT_CACHES, *BLOCK_CACHES),
        columns=("guidance_scale", "lora"),
    )


def serves(index: Mapping[str, Any]) -> bool:
    """Whether it is a Wan with one transformer. TI2V is not: it spreads its timesteps over the
    frames."""
    second = (index.get("transformer_2") or [None])[0]
    return (
        index.get("_class_name") == PIPELINE
        and second is None
        and not index.get("expand_timesteps")
    )


def settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    """Defaults of Wan2.1 at 480p."""
    return ModelDefaults(
        width=832,
        height=480,
        num_frames=81,
        fps=16,
        num_steps=50,
        guidance_scale=5.0,
        solver=solver_of(scheduler),
        sigma_shift=shift_of(scheduler, 3.0),
    )


def branches(model: ModelSpec, row: Scales) -> Any:
    """2 if guidance_scale is above 1, as in WanPipeline; else 1."""
    return 1 + (row.guidance_scale > 1.0)


def boundary(model: ModelSpec) -> float | None:
    return None


def max_tokens(model: ModelSpec) -> int:
    return dims(model).text_encoder.max_tokens


def layers(model: ModelSpec) -> int:
    return dims(model).transformer.num_layers


def heads(model: ModelSpec) -> int:
    return dims(model).transformer.num_attention_heads


def width(model: ModelSpec) -> int:
    return dims(model).transformer.width


def stride(model: ModelSpec) -> Stride:
    """Sizes are whole patches of latent cells; the rotary table bounds each axis of the token
    grid."""
    transformer, vae = dims(model).transformer, dims(model).vae
    frames, height, width = transformer.patch_size
    pixels = vae.spatial_factor * max(height, width)
    limit = transformer.rope_max_seq_len
    longest = 1 + (limit * frames - 1) * vae.temporal_factor
    return Stride(pixels, vae.temporal_factor * frames, limit * pixels, longest)


def latent_shape(model: ModelSpec, bucket: Bucket) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a bucket."""
    factor = dims(model).vae.spatial_factor
    frames = 1 + (bucket.num_frames - 1) // dims(model).vae.temporal_factor
    return frames, bucket.height // factor, bucket.width // factor


def token_grid(model: ModelSpec, bucket: Bucket) -> tuple[int, int, int]:
    """Frames, rows and columns of tokens: latent cells divided by the patch."""
    latents = latent_shape(model, bucket)
    patch = dims(model).transformer.patch_size
    frames, rows, columns = (-(-cells // p) for cells, p in zip(latents, patch, strict=True))
    return frames, rows, columns


def tokens(model: ModelSpec, bucket: Bucket) -> int:
    """Video tokens of one item."""
    return prod(token_grid(model, bucket))


def forward_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of one item of one forward (module docstring)."""
    n, t = float(tokens(model, bucket)), float(dims(model).text_encoder.max_tokens)
    d, f = dims(model).transformer.width, dims(model).transformer.ffn_dim
    linear = 12 * n * d * d + 4 * t * d * d + 4 * n * d * f
    attention = 4 * n * n * d + 4 * n * t * d
    return dims(model).transformer.num_layers * (linear + attention)


def attention_flops(model: ModelSpec, bucket: Bucket) -> Mapping[Attention, float]:
    """FLOPs of all attentions of one forward."""
    n, t = float(tokens(model, bucket)), float(dims(model).text_encoder.max_tokens)
    d, layers = dims(model).transformer.width, dims(model).transformer.num_layers
    own = 8 * n * d * d + 4 * n * n * d
    return {
        "self": layers * own,
        "cross": layers * (4 * n * d * d + 4 * t * d * d + 4 * n * t * d),
    }


def encode_flops(model: ModelSpec) -> float:
    """FLOPs of UMT5's encoder for one text, padded to its maximum length."""
    return t5_flops(dims(model).text_encoder)


def decode_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of the decoder's convolutions for one row."""
    return autoencoder.decode_flops(dims(model).vae, *latent_shape(model, bucket))


def given_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of encoding given frames, with grey ones where none is given, as one video."""
    return autoencoder.encode_flops(dims(model).vae, *latent_shape(model, bucket))


def parameters(model: ModelSpec, component: str) -> int:
    """Number of weights of a component."""
    if component == "text_encoder":
        return t5_parameters(dims(model).text_encoder)
    if component == "vae":
        return autoencoder.weights(dims(model).vae)
    return transformer_parameters(model)


def transformer_parameters(model: ModelSpec) -> int:
    """Number of weights of blocks and embeddings; biases and norms are below one percent."""
    spec = dims(model).transformer
    d = spec.width
    patch = spec.patch_size[0] * spec.patch_size[1] * spec.patch_size[2]
    blocks = sum(block_parameters(model))
    text = spec.text_dim * d + d * d
    time = spec.freq_dim * d + d * d + 6 * d * d
    return blocks + text + time + patch * d * (spec.in_channels + spec.out_channels)


def block_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Number of weights of each block."""
    spec = dims(model).transformer
    return (8 * spec.width**2 + 2 * spec.width * spec.ffn_dim,) * spec.num_layers


def fp8_parameters(model: ModelSpec) -> tuple[int, ...]:
    """All: a block's modulation is a table."""
    return block_parameters(model)


def forward_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """About 12 widths and 2 feed-forward widths per token."""
    transformer = dims(model).transformer
    per_token = 12 * transformer.width + 2 * transformer.ffn_dim
    return tokens(model, bucket) * _BYTES[model.dtype] * per_token


def decode_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """Maps of the widest full-resolution stage in float32, and the video. For each of the four
    frames that are made at a time 16: what a convolution is given, what comes of it, and what all
    of them keep of the frames before; for a frame that nothing follows 11. (Counted live on a CPU.)
    """
    at_once = min(bucket.num_frames, dims(model).vae.temporal_factor)
    maps = 16 if bucket.num_frames > 1 else 11
    decode = maps * 4 * at_once * bucket.width * bucket.height * dims(model).vae.base_dim
    video = 3 * 4 * bucket.width * bucket.height * bucket.num_frames
    return decode + video
