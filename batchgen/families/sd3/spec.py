"""Stable Diffusion 3 and 3.5: geometry, FLOPs and bytes from the dimensions alone.

Text and image have a stream each of width d and attend to each other as one sequence of N tokens:
24Nd^2 FLOPs a block for projections and feed-forwards, 4N^2d for attention. The last block draws
the image alone. Some blocks of 3.5 have a second attention, over the image's n tokens alone: 8nd^2
and 4n^2d more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from batchgen.caches.blocks import Attention
from batchgen.config.kernels import DISPATCHED
from batchgen.config.schema import ModelSpec
from batchgen.errors import ConfigError
from batchgen.families.autoencoders import (
    KlVae,
    kl_decode_bytes,
    kl_decode_flops,
    kl_parameters,
    kl_tiles,
)
from batchgen.families.dims import ComponentDims, stored
from batchgen.families.encoders import (
    ProjectedClipDims,
    clip_flops,
    clip_parameters,
    t5_flops,
    t5_parameters,
)
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
from batchgen.families.flux.spec import FluxT5
from batchgen.families.parts import FLOW_SCHEDULER, KL_VAE, encoder, tokenizer
from batchgen.families.recalled import Recalled
from batchgen.families.sequence import MOST_RANKS, RINGS, legal_ulysses
from batchgen.request import Bucket, ModelDefaults

NUMERICS_VERSION = 1
PIPELINE = "StableDiffusion3Pipeline"
MEDIA: Literal["video", "image"] = "image"
OWN_ENGINE = False
# of the second CLIP, and of T5
COLUMNS = ("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3")
COMPONENTS = (
    Component(
        name="transformer",
        loads="diffusers.SD3Transformer2DModel",
        original=True,
        stage="denoise",
        dims="transformer",
        stacks=("transformer_blocks",),
        flows=("encoder_hidden_states", "hidden_states"),
        recalled=(  # blocks modulate by timestep and pooled text: a third of the weights
            Recalled("time_text_embed.timestep_embedder", "timestep"),
            Recalled("time_text_embed.text_embedder", "text"),
            Recalled("transformer_blocks.*.norm1.linear", "combined", like="norm_out.linear"),
            Recalled(
                "transformer_blocks.*.norm1_context.linear", "combined", like="norm_out.linear"
            ),
            Recalled("norm_out.linear", "combined"),
        ),
    ),
    encoder("text_encoder", "CLIPTextModelWithProjection", "clip_text_model"),
    encoder("text_encoder_2", "CLIPTextModelWithProjection", "clip_text_model"),
    encoder("text_encoder_3", "T5EncoderModel", "t5", "encoder.block"),
    KL_VAE,
    tokenizer(),
    tokenizer("_2"),
    tokenizer("_3"),
    FLOW_SCHEDULER,
)

_TIME = 256  # channels of the sinusoidal embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class Sd3Transformer(ComponentDims):
    """Dimensions of the diffusion transformer, as in its diffusers config."""

    num_layers: int
    num_attention_heads: int
    pos_embed_max_size: int  # tokens along a side that have a place
    qk_norm: str | None = None
    dual_attention_layers: tuple[int, ...] = ()
    attention_head_dim: int = 64
    in_channels: int = 16
    out_channels: int = 16
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 1536
    pooled_projection_dim: int = 2048
    patch_size: int = 2
    sample_size: int = 128

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Sd3T5(FluxT5):
    """T5 v1.1."""

    max_tokens: int = stored(256, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Dimensions of a Stable Diffusion 3."""

    transformer: Sd3Transformer
    vae: KlVae = field(default_factory=lambda: KlVae(scaling_factor=1.5305, shift_factor=0.0609))
    text_encoder: ProjectedClipDims = field(default_factory=ProjectedClipDims)
    text_encoder_2: ProjectedClipDims = field(
        default_factory=lambda: ProjectedClipDims(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=20,
            hidden_act="gelu",
            projection_dim=1280,
        )
    )
    text_encoder_3: Sd3T5 = field(default_factory=Sd3T5)
    scheduler: FlowScheduler = field(
        default_factory=lambda: FlowScheduler(shift=3.0, use_dynamic_shifting=False)
    )

    def __post_init__(self) -> None:
        """ConfigError unless lists have the lengths that the layers need, text has the width of
        the blocks, and steps draw no noise."""
        spec = self.transformer
        if spec.caption_projection_dim != spec.width:
            raise ConfigError(
                f"model.transformer.caption_projection_dim: {spec.caption_projection_dim} must be "
                f"num_attention_heads x attention_head_dim, {spec.width}"
            )
        self.vae.check()
        self.scheduler.check()


def dims(model: ModelSpec) -> Dims:
    assert isinstance(model.dims, Dims)
    return model.dims


def capabilities(model: ModelSpec) -> Capabilities:
    """A ring gives other last bits, Ulysses the same."""
    return Capabilities(
        tiles=kl_tiles(dims(model).vae, BYTES[model.dtype]),
        pairs=True,
        cfg=(1, 2),
        attention=DISPATCHED,
        ulysses=legal_ulysses(heads(model), MOST_RANKS),
        ring=RINGS,
        cache_strategies=(*OUTPUT_CACHES, *BLOCK_CACHES),
        solvers=("euler",),
        sigma_shift=not dims(model).scheduler.use_dynamic_shifting,
        columns=("guidance_scale", *COLUMNS, "lora"),
    )


def serves(index: Mapping[str, Any]) -> bool:
    return bool(index.get("_class_name") == PIPELINE)


def settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    """The pipeline's."""
    return ModelDefaults(
        width=1024,
        height=1024,
        num_frames=1,
        fps=1,
        num_steps=28,
        guidance_scale=7.0,
        solver="euler",
        sigma_shift=dims.scheduler.row_shift,
    )


def branches(model: ModelSpec, row: Scales) -> Any:
    """2 if guidance_scale is above 1; else 1."""
    return 1 + (row.guidance_scale > 1.0)


def boundary(model: ModelSpec) -> float | None:
    return None


def max_tokens(model: ModelSpec) -> int:
    """Most tokens for T5; the CLIPs always cut at their 77."""
    return dims(model).text_encoder_3.max_tokens


def layers(model: ModelSpec) -> int:
    return dims(model).transformer.num_layers


def heads(model: ModelSpec) -> int:
    return dims(model).transformer.num_attention_heads


def width(model: ModelSpec) -> int:
    return dims(model).transformer.width


def stride(model: ModelSpec) -> Stride:
    """Sizes are whole patches, of which each side has as many as there are places; one frame."""
    spec = dims(model).transformer
    pixels = spec.patch_size * dims(model).vae.factor
    return Stride(pixels, 1, spec.pos_embed_max_size * pixels, 1)


def cells(model: ModelSpec, bucket: Bucket) -> tuple[int, int]:
    """Rows and columns of image tokens."""
    side = dims(model).transformer.patch_size * dims(model).vae.factor
    return bucket.height // side, bucket.width // side


def image_tokens(model: ModelSpec, bucket: Bucket) -> int:
    height, width = cells(model, bucket)
    return height * width


def text_tokens(model: ModelSpec) -> int:
    """Of CLIP, then of T5."""
    return dims(model).text_encoder.max_position_embeddings + max_tokens(model)


def tokens(model: ModelSpec, bucket: Bucket) -> int:
    """Image and text tokens together."""
    return image_tokens(model, bucket) + text_tokens(model)


def apart(model: ModelSpec, bucket: Bucket) -> tuple[int, ...]:
    """Second attentions see the image alone (`AttendsApart`)."""
    return (image_tokens(model, bucket),) * len(dims(model).transformer.dual_attention_layers)


def forward_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of one item of one forward (module docstring)."""
    spec, text = dims(model).transformer, text_tokens(model)
    n, d = float(tokens(model, bucket)), spec.width
    image = n - text
    blocks = spec.num_layers * (24 * n * d * d + 4 * n * n * d) - 18 * text * d * d
    second = len(spec.dual_attention_layers) * (8 * image * d * d + 4 * image * image * d)
    patch = spec.patch_size**2 * (spec.in_channels + spec.out_channels)
    doors = 2 * d * (patch * image + spec.joint_attention_dim * text)
    return blocks + second + doors + 2 * _once_per_item(spec)


def attention_flops(model: ModelSpec, bucket: Bucket) -> Mapping[Attention, float]:
    """FLOPs of the attentions over text and image."""
    n, d = float(tokens(model, bucket)), width(model)
    return {"self": layers(model) * (8 * n * d * d + 4 * n * n * d)}


def _once_per_item(spec: Sd3Transformer) -> int:
    """Weights of layers that see one vector per item: modulation of every block and of the output,
    embeddings of timestep and pooled text."""
    d = spec.width
    modulation = 12 * spec.num_layers - 4 + 3 * len(spec.dual_attention_layers) + 2
    return modulation * d * d + _TIME * d + spec.pooled_projection_dim * d + 2 * d * d


def encode_flops(model: ModelSpec) -> float:
    """FLOPs of both CLIPs and T5 for one text."""
    own = dims(model)
    clips = clip_flops(own.text_encoder) + clip_flops(own.text_encoder_2)
    return clips + t5_flops(own.text_encoder_3)


def decode_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of the decoder for one row."""
    return kl_decode_flops(dims(model).vae, bucket)


def parameters(model: ModelSpec, component: str) -> int:
    """Number of weights of a component, without biases and norms."""
    if component in ("text_encoder", "text_encoder_2"):
        clip: ProjectedClipDims = getattr(dims(model), component)
        return clip_parameters(clip) + clip.hidden_size * clip.projection_dim
    if component == "text_encoder_3":
        return t5_parameters(dims(model).text_encoder_3)
    if component == "vae":
        return kl_parameters(dims(model).vae)
    spec = dims(model).transformer
    patch = spec.patch_size**2 * (spec.in_channels + spec.out_channels)
    once = _TIME * spec.width + (spec.pooled_projection_dim + 2 * spec.width) * spec.width
    doors = spec.width * (patch + spec.joint_attention_dim) + 2 * spec.width**2
    return sum(block_parameters(model)) + doors + once


def block_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Number of weights of each block, with its modulation."""
    spec = dims(model).transformer
    squares = [24 + 12 + (4 + 3) * second for second in _dual(spec)]
    squares[-1] -= 9 + 4  # the text goes no further: no feed-forward, little modulation
    return tuple(count * spec.width**2 for count in squares)


def _dual(spec: Sd3Transformer) -> list[bool]:
    """Which blocks have a second attention."""
    return [number in spec.dual_attention_layers for number in range(spec.num_layers)]


def fp8_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Those of each block without its modulation."""
    squares = [24 + 4 * dual for dual in _dual(dims(model).transformer)]
    squares[-1] -= 9  # the text goes no further: no feed-forward
    return tuple(count * width(model) ** 2 for count in squares)


def forward_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """About 20 widths per token."""
    return tokens(model, bucket) * BYTES[model.dtype] * 20 * width(model)


def decode_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """Peak bytes beside the weights while one row is decoded."""
    return kl_decode_bytes(dims(model).vae, bucket, BYTES[model.dtype])
