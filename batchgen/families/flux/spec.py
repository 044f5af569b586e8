"""FLUX.1 text-to-image, dev and schnell: geometry, FLOPs and bytes from the dimensions alone.

Text and image attend to each other as one sequence of N tokens of width d. A double block takes
24Nd^2 FLOPs for the projections and feed-forwards of both streams; a single block takes 24Nd^2 too.
Each takes 4N^2d for attention. Modulation is computed once per item.
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
from batchgen.families.dims import ComponentDims
from batchgen.families.encoders import ClipDims, T5Dims, clip_flops, t5_flops, t5_parameters
from batchgen.families.encoders import clip_parameters as clip_weights
from batchgen.families.family import (
    BLOCK_CACHES,
    OUTPUT_CACHES,
    Capabilities,
    Component,
    Scales,
    Stride,
)
from batchgen.families.flow import FlowScheduler
from batchgen.families.recalled import Recalled
from batchgen.families.sequence import MOST_RANKS, RINGS, legal_ulysses
from batchgen.request import MAX_SIDE, Bucket, ModelDefaults

NUMERICS_VERSION = 1
PIPELINE = "FluxPipeline"
MEDIA: Literal["video", "image"] = "image"
OWN_ENGINE = False
COLUMNS = ("true_cfg_scale", "prompt_2", "negative_prompt_2")  # of the second encoder, T5
COMPONENTS = (
    Component(
        name="transformer",
        loads="diffusers.FluxTransformer2DModel",
        original=True,
        stage="denoise",
        dims="transformer",
        stacks=("transformer_blocks", "single_transformer_blocks"),
        flows=("encoder_hidden_states", "hidden_states"),
        recalled=(  # blocks modulate by timestep, guidance and pooled text: 27 % of the weights
            Recalled("time_text_embed.timestep_embedder", "timestep"),
            Recalled("time_text_embed.text_embedder", "text"),
            Recalled("transformer_blocks.*.norm1.linear", "combined", like="norm_out.linear"),
            Recalled(
                "transformer_blocks.*.norm1_context.linear", "combined", like="norm_out.linear"
            ),
            Recalled("single_transformer_blocks.*.norm.linear", "combined", like="norm_out.linear"),
            Recalled("norm_out.linear", "combined"),
        ),
    ),
    Component(
        name="text_encoder",
        loads="transformers.CLIPTextModel",
        model_type="clip_text_model",
        stage="encode",
        dims="text_encoder",
    ),
    Component(
        name="text_encoder_2",
        loads="transformers.T5EncoderModel",
        model_type="t5",
        stage="encode",
        dims="text_encoder_2",
        layers=("encoder.block",),
    ),
    Component(name="vae", loads="diffusers.AutoencoderKL", stage="decode", dims="vae"),
    Component(
        name="tokenizer",
        kind="tokenizer",
        loads="transformers.AutoTokenizer",
        stage="encode",
        dims="text_encoder",
    ),
    Component(
        name="tokenizer_2",
        kind="tokenizer",
        loads="transformers.AutoTokenizer",
        stage="encode",
        dims="text_encoder_2",
    ),
    Component(
        name="scheduler",
        kind="scheduler",
        loads="diffusers.FlowMatchEulerDiscreteScheduler",
        stage="denoise",
        dims="scheduler",
    ),
)

_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_TIME = 256  # channels of a sinusoidal embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxTransformer(ComponentDims):
    """Dimensions of the diffusion transformer, as in its diffusers config."""

    num_layers: int  # blocks with a stream each for text and image
    num_single_layers: int  # blocks with one stream for both
    num_attention_heads: int
    attention_head_dim: int
    guidance_embeds: bool  # guidance_scale is an input (dev; not schnell)
    in_channels: int = 64
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    patch_size: int = 1

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxT5(T5Dims):
    """T5 v1.1."""

    vocab_size: int = 32128
    feed_forward_proj: str = "gated-gelu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Dimensions of a FLUX.1."""

    transformer: FluxTransformer
    vae: KlVae = field(default_factory=KlVae)
    text_encoder: ClipDims = field(default_factory=ClipDims)
    text_encoder_2: FluxT5 = field(default_factory=FluxT5)
    scheduler: FlowScheduler = field(default_factory=FlowScheduler)

    def __post_init__(self) -> None:
        """ConfigError unless lists have the lengths that the layers need and steps draw no
        noise."""
        axes = self.transformer.axes_dims_rope
        if len(axes) != 3:
            raise ConfigError(f"model.transformer.axes_dims_rope: {list(axes)} must have 3 entries")
        self.vae.check()
        self.scheduler.check()


def dims(model: ModelSpec) -> Dims:
    assert isinstance(model.dims, Dims)
    return model.dims


def capabilities(model: ModelSpec) -> Capabilities:
    """dev takes a guidance scale. schnell does not, and its shift does not depend on the row's
    size."""
    guided = dims(model).transformer.guidance_embeds
    return Capabilities(
        tiles=kl_tiles(dims(model).vae, _BYTES[model.dtype]),
        cfg=(1, 2),
        ulysses=legal_ulysses(dims(model).transformer.num_attention_heads, MOST_RANKS),
        ring=RINGS,
        attention=DISPATCHED,
        cache_strategies=(*OUTPUT_CACHES, *BLOCK_CACHES),
        solvers=("euler",),
        sigma_shift=not dims(model).scheduler.use_dynamic_shifting,
        columns=(*(["guidance_scale"] if guided else []), *COLUMNS, "lora"),
    )


def serves(index: Mapping[str, Any]) -> bool:
    return bool(index.get("_class_name") == PIPELINE)


def settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    """Defaults of dev or schnell, whichever the dimensions are of."""
    guided = dims.transformer.guidance_embeds
    return ModelDefaults(
        width=1024,
        height=1024,
        num_frames=1,
        fps=1,
        num_steps=28 if guided else 4,
        guidance_scale=3.5 if guided else 0.0,
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
    """Most tokens for T5; CLIP always cuts at its 77."""
    return dims(model).text_encoder_2.max_tokens


def layers(model: ModelSpec) -> int:
    return dims(model).transformer.num_layers + dims(model).transformer.num_single_layers


def heads(model: ModelSpec) -> int:
    return dims(model).transformer.num_attention_heads


def width(model: ModelSpec) -> int:
    return dims(model).transformer.width


def stride(model: ModelSpec) -> Stride:
    """Sizes are whole pairs of latent cells; one frame."""
    return Stride(2 * dims(model).vae.factor, 1, MAX_SIDE, 1)


def cells(model: ModelSpec, bucket: Bucket) -> tuple[int, int]:
    """Rows and columns of image tokens; each token is 2x2 latent cells."""
    side = 2 * dims(model).vae.factor
    return bucket.height // side, bucket.width // side


def image_tokens(model: ModelSpec, bucket: Bucket) -> int:
    height, width = cells(model, bucket)
    return height * width


def tokens(model: ModelSpec, bucket: Bucket) -> int:
    """Image and text tokens together."""
    return image_tokens(model, bucket) + max_tokens(model)


def forward_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of one item of one forward (module docstring)."""
    spec, text = dims(model).transformer, max_tokens(model)
    n, d = float(tokens(model, bucket)), spec.width
    blocks = layers(model) * (24 * n * d * d + 4 * n * n * d)
    doors = 2 * d * (2 * spec.in_channels * (n - text) + spec.joint_attention_dim * text)
    return blocks + doors + 2 * _once_per_item(spec)


def attention_flops(model: ModelSpec, bucket: Bucket) -> Mapping[Attention, float]:
    """FLOPs of all attentions of one forward; the output of a single block's is projected with its
    feed-forward, outside."""
    spec, n = dims(model).transformer, float(tokens(model, bucket))
    d = spec.width
    linear = (8 * spec.num_layers + 6 * spec.num_single_layers) * n * d * d
    return {"self": linear + layers(model) * 4 * n * n * d}


def _once_per_item(spec: FluxTransformer) -> int:
    """Weights of layers that see one vector per item: modulation of every block and of the output,
    embeddings of timestep, guidance and pooled text."""
    d = spec.width
    embedders = (1 + spec.guidance_embeds) * (_TIME * d + d * d)
    pooled = spec.pooled_projection_dim * d + d * d
    blocks = (12 * spec.num_layers + 3 * spec.num_single_layers) * d * d
    return blocks + 2 * d * d + embedders + pooled


def encode_flops(model: ModelSpec) -> float:
    """FLOPs of CLIP and T5 for one text."""
    return clip_flops(dims(model).text_encoder) + t5_flops(dims(model).text_encoder_2)


def decode_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of the decoder for one row."""
    return kl_decode_flops(dims(model).vae, bucket)


def parameters(model: ModelSpec, component: str) -> int:
    """Number of weights of a component, without biases and norms."""
    if component == "text_encoder":
        return clip_weights(dims(model).text_encoder)
    if component == "text_encoder_2":
        return t5_parameters(dims(model).text_encoder_2)
    if component == "vae":
        return kl_parameters(dims(model).vae)
    return transformer_parameters(model)


def transformer_parameters(model: ModelSpec) -> int:
    """24 d^2 for the two streams of a double block, 12 d^2 for a single block, and the layers that
    see one vector per item."""
    spec = dims(model).transformer
    d = spec.width
    blocks = (24 * spec.num_layers + 12 * spec.num_single_layers) * d * d
    doors = d * (2 * spec.in_channels + spec.joint_attention_dim)
    return blocks + doors + _once_per_item(spec)


def block_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Number of weights of each block, double blocks first, with their modulation."""
    spec = dims(model).transformer
    double, single = (24 + 12) * spec.width**2, (12 + 3) * spec.width**2
    return (double,) * spec.num_layers + (single,) * spec.num_single_layers


def fp8_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Those of each block without its modulation."""
    spec = dims(model).transformer
    double, single = 24 * spec.width**2, 12 * spec.width**2
    return (double,) * spec.num_layers + (single,) * spec.num_single_layers


def forward_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """About 20 widths per token."""
    return tokens(model, bucket) * _BYTES[model.dtype] * 20 * width(model)


def decode_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """Peak bytes beside the weights while one row is decoded."""
    return kl_decode_bytes(dims(model).vae, bucket, _BYTES[model.dtype])
