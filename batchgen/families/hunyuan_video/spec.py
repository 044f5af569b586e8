"""HunyuanVideo text-to-video: geometry, FLOPs and bytes from the dimensions alone.

Video and text attend to each other as one sequence of N tokens of width d, the text at its end and
padded. With a feed-forward of r widths, a double block takes (8 + 4r)Nd^2 FLOPs for projections and
feed-forwards of its two streams, a single block as many; each takes 4N^2d for attention. The text
is refined before, at every step, since the refiner sees the timestep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from batchgen.caches.blocks import Attention
from batchgen.config.kernels import MASKED
from batchgen.config.schema import ModelSpec
from batchgen.errors import ConfigError
from batchgen.families.dims import ComponentDims, stored
from batchgen.families.encoders import (
    ClipDims,
    LlmDims,
    clip_flops,
    clip_parameters,
    llm_flops,
    llm_parameters,
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
from batchgen.families.hunyuan_video.vae import (
    HunyuanVae,
    vae_decode_bytes,
    vae_decode_flops,
    vae_parameters,
    vae_tiles,
)
from batchgen.families.parts import FLOW_SCHEDULER, encoder, tokenizer
from batchgen.families.recalled import Recalled
from batchgen.families.sequence import MOST_RANKS, RINGS, legal_ulysses
from batchgen.request import MAX_FRAMES, MAX_SIDE, Bucket, ModelDefaults

NUMERICS_VERSION = 1
PIPELINE = "HunyuanVideoPipeline"
MEDIA: Literal["video", "image"] = "video"
OWN_ENGINE = False
COMPONENTS = (
    Component(
        name="transformer",
        loads="diffusers.HunyuanVideoTransformer3DModel",
        original=True,
        stage="denoise",
        dims="transformer",
        stacks=("transformer_blocks", "single_transformer_blocks"),
        flows=("hidden_states", "encoder_hidden_states"),
        drawn=0,
        recalled=(  # blocks modulate by timestep, guidance and pooled text: 27 % of the weights
            Recalled("transformer_blocks.*.norm1.linear", "combined", like="norm_out.linear"),
            Recalled(
                "transformer_blocks.*.norm1_context.linear", "combined", like="norm_out.linear"
            ),
            Recalled("single_transformer_blocks.*.norm.linear", "combined", like="norm_out.linear"),
            Recalled("norm_out.linear", "combined"),
        ),
    ),
    encoder("text_encoder", "LlamaModel", "llama", "layers"),
    encoder("text_encoder_2", "CLIPTextModel", "clip_text_model"),
    Component(name="vae", loads="diffusers.AutoencoderKLHunyuanVideo", stage="decode", dims="vae"),
    tokenizer(),
    tokenizer("_2"),
    FLOW_SCHEDULER,
)
_TIME = 256  # channels of a sinusoidal embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class HunyuanTransformer(ComponentDims):
    """Dimensions of the diffusion transformer, as in its diffusers config."""

    num_layers: int = 20  # blocks with a stream each for video and text
    num_single_layers: int = 40  # blocks with one stream for both
    num_refiner_layers: int = 2  # of the text
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    mlp_ratio: float = 4.0
    patch_size: int = 2
    patch_size_t: int = 1
    in_channels: int = 16
    out_channels: int = 16
    text_embed_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = True  # guidance_scale is an input
    rope_axes_dim: tuple[int, ...] = (16, 56, 56)

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaDims(LlmDims):
    """A Llama 3, of which hidden states are used."""

    vocab_size: int = 128320
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    tie_word_embeddings: bool = False
    max_tokens: int = stored(256, None)
    template_tokens: int = stored(95, None)  # before the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Dimensions of a HunyuanVideo."""

    transformer: HunyuanTransformer
    vae: HunyuanVae = field(default_factory=HunyuanVae)
    text_encoder: LlamaDims = field(default_factory=LlamaDims)
    text_encoder_2: ClipDims = field(default_factory=ClipDims)
    scheduler: FlowScheduler = field(
        default_factory=lambda: FlowScheduler(shift=7.0, use_dynamic_shifting=False)
    )

    def __post_init__(self) -> None:
        """ConfigError unless lists have the lengths that layers need, and where the schedule would
        follow the row's size, which its pipeline does not tell."""
        axes = self.transformer.rope_axes_dim
        if len(axes) != 3:
            raise ConfigError(f"model.transformer.rope_axes_dim: {list(axes)} must have 3 entries")
        if self.scheduler.use_dynamic_shifting:
            raise ConfigError("model.scheduler.use_dynamic_shifting: true is not served")
        self.vae.check()
        self.scheduler.check()


def dims(model: ModelSpec) -> Dims:
    assert isinstance(model.dims, Dims)
    return model.dims


def capabilities(model: ModelSpec) -> Capabilities:
    """A ring gives other last bits, Ulysses the same."""
    guided = dims(model).transformer.guidance_embeds
    return Capabilities(
        tiles=vae_tiles(dims(model).vae, BYTES[model.dtype]),
        cfg=(1, 2),
        attention=MASKED,
        ulysses=legal_ulysses(heads(model), MOST_RANKS),
        ring=RINGS,
        cache_strategies=(*OUTPUT_CACHES, *BLOCK_CACHES),
        solvers=("euler",),
        columns=(*(("guidance_scale",) if guided else ()), "true_cfg_scale", "lora"),
    )


def serves(index: Mapping[str, Any]) -> bool:
    return bool(index.get("_class_name") == PIPELINE)


def settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    """As published with the model."""
    return ModelDefaults(
        width=1280,
        height=720,
        num_frames=129,
        fps=24,
        num_steps=50,
        guidance_scale=6.0,
        solver="euler",
        sigma_shift=dims.scheduler.row_shift,
    )


def branches(model: ModelSpec, row: Scales) -> Any:
    """1, since guidance_scale is an input of the one branch; 2 if true_cfg_scale adds the negative
    prompt."""
    return 1 + (row.true_cfg_scale > 1.0)


def boundary(model: ModelSpec) -> float | None:
    return None


def max_tokens(model: ModelSpec) -> int:
    """Most tokens of a text for Llama, without the template; CLIP always cuts at its 77."""
    return dims(model).text_encoder.max_tokens


def layers(model: ModelSpec) -> int:
    return dims(model).transformer.num_layers + dims(model).transformer.num_single_layers


def heads(model: ModelSpec) -> int:
    return dims(model).transformer.num_attention_heads


def width(model: ModelSpec) -> int:
    return dims(model).transformer.width


def stride(model: ModelSpec) -> Stride:
    """Sizes are whole patches of latent cells."""
    spec, vae = dims(model).transformer, dims(model).vae
    frames = vae.temporal_factor * spec.patch_size_t
    longest = (MAX_FRAMES - 1) // frames * frames + 1
    return Stride(vae.spatial_factor * spec.patch_size, frames, MAX_SIDE, longest)


def latent_shape(model: ModelSpec, bucket: Bucket) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a bucket."""
    vae = dims(model).vae
    frames = 1 + (bucket.num_frames - 1) // vae.temporal_factor
    return frames, bucket.height // vae.spatial_factor, bucket.width // vae.spatial_factor


def grid(model: ModelSpec, bucket: Bucket) -> tuple[int, int, int]:
    """Video tokens along each axis."""
    spec, (frames, height, width) = dims(model).transformer, latent_shape(model, bucket)
    return frames // spec.patch_size_t, height // spec.patch_size, width // spec.patch_size


def video_tokens(model: ModelSpec, bucket: Bucket) -> int:
    frames, height, width = grid(model, bucket)
    return frames * height * width


def tokens(model: ModelSpec, bucket: Bucket) -> int:
    """Video tokens and those of the padded text."""
    return video_tokens(model, bucket) + max_tokens(model)


def forward_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of one item of one forward (module docstring)."""
    spec, text = dims(model).transformer, float(max_tokens(model))
    n, d = float(tokens(model, bucket)), spec.width
    blocks = layers(model) * (n * _linear(spec) + 4 * n * n * d)
    refiner = spec.num_refiner_layers * (24 * text * d * d + 4 * text * text * d)
    doors = 2 * d * (_patch(spec) * (n - text) + spec.text_embed_dim * text)
    return blocks + refiner + doors + 2 * _once_per_item(spec)


def _linear(spec: HunyuanTransformer) -> float:
    """FLOPs of a block's projections and feed-forwards for one token."""
    return (8 + 4 * spec.mlp_ratio) * spec.width**2


def _patch(spec: HunyuanTransformer) -> int:
    """Channels of a token as it enters and as it leaves."""
    return spec.patch_size_t * spec.patch_size**2 * (spec.in_channels + spec.out_channels)


def attention_flops(model: ModelSpec, bucket: Bucket) -> Mapping[Attention, float]:
    """FLOPs of all attentions of one forward; the output of a single block's is projected with its
    feed-forward, outside."""
    spec, n = dims(model).transformer, float(tokens(model, bucket))
    d = spec.width
    linear = (8 * spec.num_layers + 6 * spec.num_single_layers) * n * d * d
    return {"self": linear + layers(model) * 4 * n * n * d}


def _once_per_item(spec: HunyuanTransformer) -> int:
    """Weights of layers that see one vector per item: modulation of every block and of the output,
    embeddings of timestep, guidance and pooled texts."""
    d = spec.width
    embedders = (2 + spec.guidance_embeds) * (_TIME * d + d * d)
    pooled = (spec.pooled_projection_dim + spec.text_embed_dim) * d + 2 * d * d
    blocks = 12 * spec.num_layers + 3 * spec.num_single_layers + 2 * spec.num_refiner_layers
    return (blocks + 2) * d * d + embedders + pooled


def encode_flops(model: ModelSpec) -> float:
    """FLOPs of Llama and CLIP for one text with its template."""
    text = dims(model).text_encoder
    llama = llm_flops(text, text.max_tokens + text.template_tokens)
    return llama + clip_flops(dims(model).text_encoder_2)


def decode_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of the decoder for one row."""
    return vae_decode_flops(dims(model).vae, *latent_shape(model, bucket))


def parameters(model: ModelSpec, component: str) -> int:
    """Number of weights of a component, without biases and norms."""
    if component == "text_encoder":
        return llm_parameters(dims(model).text_encoder)
    if component == "text_encoder_2":
        return clip_parameters(dims(model).text_encoder_2)
    if component == "vae":
        return vae_parameters(dims(model).vae)
    spec = dims(model).transformer
    once = 12 * spec.num_layers + 3 * spec.num_single_layers  # in the blocks already
    refiner = 12 * spec.num_refiner_layers * spec.width**2
    doors = spec.width * (_patch(spec) + spec.text_embed_dim)
    rest = _once_per_item(spec) - once * spec.width**2
    return sum(block_parameters(model)) + refiner + doors + rest


def block_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Number of weights of each block, double blocks first, with their modulation."""
    spec = dims(model).transformer
    single = _linear(spec) / 2
    double = round(2 * single) + 12 * spec.width**2
    one = round(single) + 3 * spec.width**2
    return (double,) * spec.num_layers + (one,) * spec.num_single_layers


def fp8_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Those of each block without its modulation."""
    spec = dims(model).transformer
    single = _linear(spec) / 2
    return (round(2 * single),) * spec.num_layers + (round(single),) * spec.num_single_layers


def forward_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """About 20 widths per token."""
    return tokens(model, bucket) * BYTES[model.dtype] * 20 * width(model)


def decode_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """Of the decoder for one row."""
    return vae_decode_bytes(dims(model).vae, BYTES[model.dtype], *latent_shape(model, bucket))
