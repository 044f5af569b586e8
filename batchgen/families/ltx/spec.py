"""LTX-Video text-to-video: geometry, FLOPs and bytes from the dimensions alone.

With N video tokens, T text tokens and width d, each of L blocks takes 28Nd^2 + 4Td^2 + 4N^2d + 4NTd
FLOPs: projections of its attention to the video and of that to the text, feed-forward of 4d, and
both attentions. Blocks modulate by tables of their own: nothing per item beside the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from batchgen.caches.blocks import Attention
from batchgen.config.kernels import DISPATCHED
from batchgen.config.schema import ModelSpec
from batchgen.errors import ConfigError
from batchgen.families.dims import ComponentDims, stored
from batchgen.families.encoders import T5Dims, t5_flops, t5_parameters
from batchgen.families.family import (
    BLOCK_CACHES,
    BYTES,
    OUTPUT_CACHES,
    Capabilities,
    Component,
    Scales,
    Stride,
)
from batchgen.families.flow import FlowScheduler
from batchgen.families.ltx.vae import LtxVae, vae_decode_flops, vae_parameters, vae_tiles
from batchgen.families.parts import FLOW_SCHEDULER, encoder, tokenizer
from batchgen.families.recalled import Recalled
from batchgen.families.sequence import MOST_RANKS, RINGS, legal_ulysses
from batchgen.request import MAX_FRAMES, MAX_SIDE, Bucket, ModelDefaults

NUMERICS_VERSION = 1
PIPELINE = "LTXPipeline"
MEDIA: Literal["video", "image"] = "video"
OWN_ENGINE = False
COMPONENTS = (
    Component(
        name="transformer",
        loads="diffusers.LTXVideoTransformer3DModel",
        original=True,
        stage="denoise",
        dims="transformer",
        stacks=("transformer_blocks",),
        recalled=(
            Recalled("time_embed.emb.timestep_embedder", "timestep"),
            Recalled("time_embed.linear", "timestep"),
            Recalled("caption_projection", "text"),
            Recalled("transformer_blocks.*.attn2.to_k", "text"),
            Recalled("transformer_blocks.*.attn2.to_v", "text"),
        ),
    ),
    encoder("text_encoder", "T5EncoderModel", "t5", "encoder.block"),
    Component(name="vae", loads="diffusers.AutoencoderKLLTXVideo", stage="decode", dims="vae"),
    tokenizer(),
    FLOW_SCHEDULER,
)
_TIME = 256  # channels of the sinusoidal embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class LtxTransformer(ComponentDims):
    """Dimensions of the diffusion transformer, as in its diffusers config."""

    num_layers: int = 28
    num_attention_heads: int = 32
    attention_head_dim: int = 64
    cross_attention_dim: int = 2048
    in_channels: int = 128
    out_channels: int = 128
    caption_channels: int = 4096
    patch_size: int = 1
    patch_size_t: int = 1

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class LtxT5(T5Dims):
    """T5 v1.1."""

    vocab_size: int = 32128
    feed_forward_proj: str = "gated-gelu"
    max_tokens: int = stored(128, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Dimensions of an LTX-Video."""

    transformer: LtxTransformer
    vae: LtxVae = field(default_factory=LtxVae)
    text_encoder: LtxT5 = field(default_factory=LtxT5)
    scheduler: FlowScheduler = field(
        default_factory=lambda: FlowScheduler(
            shift=1.0,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
            shift_terminal=0.1,
        )
    )

    def __post_init__(self) -> None:
        """ConfigError unless tokens are latent cells and lists have the lengths that layers
        need."""
        spec = self.transformer
        for key, value, legal in (
            ("patch_size", spec.patch_size, 1),
            ("patch_size_t", spec.patch_size_t, 1),
            ("cross_attention_dim", spec.cross_attention_dim, spec.width),
        ):
            if value != legal:
                raise ConfigError(f"model.transformer.{key}: {value} is not served; legal: {legal}")
        self.vae.check()
        self.scheduler.check()


def dims(model: ModelSpec) -> Dims:
    assert isinstance(model.dims, Dims)
    return model.dims


def capabilities(model: ModelSpec) -> Capabilities:
    noise = ("decode_timestep", "decode_noise_scale")
    return Capabilities(
        pairs=True,
        cfg=(1, 2),
        attention=(*DISPATCHED, "radial"),
        ulysses=legal_ulysses(heads(model), MOST_RANKS),
        ring=RINGS,
        cache_strategies=(*OUTPUT_CACHES, *BLOCK_CACHES),
        tiles=vae_tiles(dims(model).vae, BYTES[model.dtype]),
        solvers=("euler",),
        sigma_shift=not dims(model).scheduler.use_dynamic_shifting,
        columns=(
            "guidance_scale",
            "guidance_rescale",
            "lora",
            *(noise if dims(model).vae.timestep_conditioning else ()),
        ),
    )


def serves(index: Mapping[str, Any]) -> bool:
    return bool(index.get("_class_name") == PIPELINE)


def settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    """As published with the model; a decoder that takes noise gets a little."""
    noisy = dims.vae.timestep_conditioning
    return ModelDefaults(
        width=704,
        height=480,
        num_frames=161,
        fps=25,
        num_steps=50,
        guidance_scale=3.0,
        decode_timestep=0.05 if noisy else 0.0,
        decode_noise_scale=0.025 if noisy else None,
        solver="euler",
        sigma_shift=dims.scheduler.row_shift,
    )


def branches(model: ModelSpec, row: Scales) -> Any:
    """2 if guidance_scale is above 1; else 1."""
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
    """Sizes are whole latent cells."""
    vae = dims(model).vae
    longest = (MAX_FRAMES - 1) // vae.temporal_factor * vae.temporal_factor + 1
    return Stride(vae.spatial_factor, vae.temporal_factor, MAX_SIDE, longest)


def latent_shape(model: ModelSpec, bucket: Bucket) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a bucket: each cell is a token."""
    vae = dims(model).vae
    frames = 1 + (bucket.num_frames - 1) // vae.temporal_factor
    return frames, bucket.height // vae.spatial_factor, bucket.width // vae.spatial_factor


def tokens(model: ModelSpec, bucket: Bucket) -> int:
    frames, height, width = latent_shape(model, bucket)
    return frames * height * width


def forward_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of one item of one forward (module docstring)."""
    spec, n, t = dims(model).transformer, float(tokens(model, bucket)), float(max_tokens(model))
    d = spec.width
    block = 28 * n * d * d + 4 * t * d * d + 4 * n * n * d + 4 * n * t * d
    doors = 2 * n * d * (spec.in_channels + spec.out_channels)
    text = 2 * t * (spec.caption_channels * d + d * d)
    return spec.num_layers * block + doors + text + 2 * _once_per_item(spec)


def attention_flops(model: ModelSpec, bucket: Bucket) -> Mapping[Attention, float]:
    """FLOPs of all attentions of one forward."""
    n, t, d = float(tokens(model, bucket)), float(max_tokens(model)), width(model)
    cross = 4 * n * d * d + 4 * t * d * d + 4 * n * t * d
    return {"self": layers(model) * (8 * n * d * d + 4 * n * n * d), "cross": layers(model) * cross}


def _once_per_item(spec: LtxTransformer) -> int:
    """Weights of layers that see one vector per item: embedding of the timestep, and what blocks
    modulate by."""
    return _TIME * spec.width + 7 * spec.width**2


def encode_flops(model: ModelSpec) -> float:
    """FLOPs of T5's encoder for one text, padded to its maximum length."""
    return t5_flops(dims(model).text_encoder)


def decode_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of the decoder's convolutions for one row."""
    return vae_decode_flops(dims(model).vae, *latent_shape(model, bucket))


def parameters(model: ModelSpec, component: str) -> int:
    """Number of weights of a component, without biases and norms."""
    if component == "text_encoder":
        return t5_parameters(dims(model).text_encoder)
    if component == "vae":
        return vae_parameters(dims(model).vae)
    spec = dims(model).transformer
    doors = spec.width * (spec.in_channels + spec.out_channels + spec.caption_channels + spec.width)
    return sum(block_parameters(model)) + doors + _once_per_item(spec)


def block_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Number of weights of each block."""
    return (16 * width(model) ** 2,) * layers(model)


def fp8_parameters(model: ModelSpec) -> tuple[int, ...]:
    """All: a block's modulation is a table."""
    return block_parameters(model)


def forward_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """About 20 widths per token."""
    return tokens(model, bucket) * BYTES[model.dtype] * 20 * width(model)


def decode_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """About 6 maps of the last stage, before pixels are unfolded from its channels, and the
    video."""
    vae = dims(model).vae
    pixels = bucket.width * bucket.height * bucket.num_frames
    stage = 6 * BYTES[model.dtype] * pixels * vae.last_channels // vae.patch_size**2
    return stage + 3 * 4 * pixels
