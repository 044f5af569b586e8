"""Qwen-Image text-to-image: geometry, FLOPs and bytes from the dimensions alone.

Each of L blocks has a stream for the text and one for the image, of width d, which attend to each
other as one sequence of N tokens: 24Nd^2 FLOPs for projections and feed-forwards, 4N^2d for
attention. Texts keep their own length; what is planned with is the longest.
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
from batchgen.families.encoders import QwenVlDims, llm_flops, qwen_vl_parameters
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
from batchgen.families.parts import FLOW_SCHEDULER, encoder, tokenizer
from batchgen.families.recalled import Recalled
from batchgen.families.sequence import MOST_RANKS, RINGS, legal_ulysses
from batchgen.families.tiling import TiledDecoder, reach_of
from batchgen.families.wan import autoencoder
from batchgen.families.wan.autoencoder import WanVae
from batchgen.request import MAX_SIDE, Bucket, ModelDefaults

NUMERICS_VERSION = 1
PIPELINE = "QwenImagePipeline"
MEDIA: Literal["video", "image"] = "image"
OWN_ENGINE = False
COMPONENTS = (
    Component(
        name="transformer",
        loads="diffusers.QwenImageTransformer2DModel",
        original=True,
        stage="denoise",
        dims="transformer",
        stacks=("transformer_blocks",),
        flows=("encoder_hidden_states", "hidden_states"),
        recalled=(  # a third of the weights
            Recalled("time_text_embed.timestep_embedder", "timestep"),
            Recalled("transformer_blocks.*.img_mod.1", "timestep", like="norm_out.linear"),
            Recalled("transformer_blocks.*.txt_mod.1", "timestep", like="norm_out.linear"),
            Recalled("norm_out.linear", "timestep"),
        ),
    ),
    encoder(
        "text_encoder",
        "Qwen2_5_VLForConditionalGeneration",
        "qwen2_5_vl",
        "model.language_model.layers",
    ),
    Component(name="vae", loads="diffusers.AutoencoderKLQwenImage", stage="decode", dims="vae"),
    tokenizer(),
    FLOW_SCHEDULER,
)

TEMPLATE_TOKENS = 34  # before the prompt
_TIME = 256  # channels of the sinusoidal embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenImageTransformer(ComponentDims):
    """Dimensions of the diffusion transformer, as in its diffusers config."""

    num_layers: int = 60
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    in_channels: int = 64
    out_channels: int = 16
    joint_attention_dim: int = 3584
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    patch_size: int = 2
    guidance_embeds: bool = False

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenImageVae(WanVae):
    """The autoencoder: that of Wan, for one frame."""

    spatial_factor: int = stored(8, None)
    temporal_factor: int = stored(4, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Dimensions of a Qwen-Image."""

    transformer: QwenImageTransformer
    vae: QwenImageVae = field(default_factory=QwenImageVae)
    text_encoder: QwenVlDims = field(default_factory=QwenVlDims)
    scheduler: FlowScheduler = field(
        default_factory=lambda: FlowScheduler(
            shift=1.0, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
        )
    )

    def __post_init__(self) -> None:
        """ConfigError unless lists have the lengths that the layers need, and for a distilled
        model, which its pipeline cannot draw with."""
        axes = self.transformer.axes_dims_rope
        if len(axes) != 3:
            raise ConfigError(f"model.transformer.axes_dims_rope: {list(axes)} must have 3 entries")
        if self.transformer.guidance_embeds:
            raise ConfigError("model.transformer.guidance_embeds: true is not served")
        self.scheduler.check()


def dims(model: ModelSpec) -> Dims:
    assert isinstance(model.dims, Dims)
    return model.dims


def capabilities(model: ModelSpec) -> Capabilities:
    """Each length of a text would be a graph of its own, so that its blocks are not compiled."""
    vae = dims(model).vae
    return Capabilities(
        compile_modes=("off",),
        tiles=TiledDecoder(
            vae.spatial_factor,
            reach=reach_of(len(vae.dim_mult), convolutions=2 * (vae.num_res_blocks + 1)),
            channels=vae.base_dim * vae.dim_mult[-1],
            size=BYTES[model.dtype],
        ),
        cfg=(1, 2),
        attention=DISPATCHED,
        ulysses=legal_ulysses(heads(model), MOST_RANKS),
        ring=RINGS,
        cache_strategies=(*OUTPUT_CACHES, *BLOCK_CACHES),
        solvers=("euler",),
        sigma_shift=not dims(model).scheduler.use_dynamic_shifting,
        columns=("true_cfg_scale", "lora"),
    )


def serves(index: Mapping[str, Any]) -> bool:
    return bool(index.get("_class_name") == PIPELINE)


def settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    """As published with the model."""
    return ModelDefaults(
        width=1328,
        height=1328,
        num_frames=1,
        fps=1,
        num_steps=50,
        guidance_scale=1.0,
        true_cfg_scale=4.0,
        negative_prompt=" ",
        solver="euler",
        sigma_shift=dims.scheduler.row_shift,
    )


def branches(model: ModelSpec, row: Scales) -> Any:
    """2 if true_cfg_scale is above 1; else 1."""
    return 1 + (row.true_cfg_scale > 1.0)


def boundary(model: ModelSpec) -> float | None:
    return None


def max_tokens(model: ModelSpec) -> int:
    """Most tokens of a text, without the template before it."""
    return dims(model).text_encoder.max_tokens


def layers(model: ModelSpec) -> int:
    return dims(model).transformer.num_layers


def heads(model: ModelSpec) -> int:
    return dims(model).transformer.num_attention_heads


def width(model: ModelSpec) -> int:
    return dims(model).transformer.width


def stride(model: ModelSpec) -> Stride:
    """Sizes are whole pairs of latent cells; one frame."""
    return Stride(2 * dims(model).vae.spatial_factor, 1, MAX_SIDE, 1)


def cells(model: ModelSpec, bucket: Bucket) -> tuple[int, int]:
    """Rows and columns of image tokens; each token is 2x2 latent cells."""
    side = 2 * dims(model).vae.spatial_factor
    return bucket.height // side, bucket.width // side


def image_tokens(model: ModelSpec, bucket: Bucket) -> int:
    height, width = cells(model, bucket)
    return height * width


def tokens(model: ModelSpec, bucket: Bucket) -> int:
    """Image tokens and those of the longest text."""
    return image_tokens(model, bucket) + max_tokens(model)


def forward_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of one item of one forward (module docstring)."""
    spec, text = dims(model).transformer, max_tokens(model)
    n, d = float(tokens(model, bucket)), spec.width
    blocks = spec.num_layers * (24 * n * d * d + 4 * n * n * d)
    doors = 2 * d * ((spec.in_channels + 4 * spec.out_channels) * (n - text))
    return blocks + doors + 2 * d * spec.joint_attention_dim * text + 2 * _once_per_item(spec)


def attention_flops(model: ModelSpec, bucket: Bucket) -> Mapping[Attention, float]:
    """FLOPs of all attentions of one forward."""
    n, d = float(tokens(model, bucket)), width(model)
    return {"self": layers(model) * (8 * n * d * d + 4 * n * n * d)}


def _once_per_item(spec: QwenImageTransformer) -> int:
    """Weights of layers that see one vector per item: modulation of both streams of every block and
    of the output, embedding of the timestep."""
    d = spec.width
    return 12 * spec.num_layers * d * d + 2 * d * d + _TIME * d + d * d


def encode_flops(model: ModelSpec) -> float:
    """FLOPs of the language model for the longest text, with its template."""
    text = dims(model).text_encoder
    return llm_flops(text, text.max_tokens + TEMPLATE_TOKENS)


def decode_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of the decoder for one row."""
    vae, factor = dims(model).vae, dims(model).vae.spatial_factor
    return autoencoder.decode_flops(vae, 1, bucket.height // factor, bucket.width // factor)


def parameters(model: ModelSpec, component: str) -> int:
    """Number of weights of a component, without biases and norms."""
    if component == "text_encoder":
        return qwen_vl_parameters(dims(model).text_encoder)
    if component == "vae":
        return autoencoder.weights(dims(model).vae)
    spec = dims(model).transformer
    doors = spec.width * (spec.in_channels + 4 * spec.out_channels + spec.joint_attention_dim)
    return 24 * spec.num_layers * spec.width**2 + doors + _once_per_item(spec)


def block_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Number of weights of each block, with its modulation."""
    spec = dims(model).transformer
    return ((24 + 12) * spec.width**2,) * spec.num_layers


def fp8_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Those of each block without its modulation."""
    return (24 * width(model) ** 2,) * layers(model)


def forward_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """About 20 widths per token."""
    return tokens(model, bucket) * BYTES[model.dtype] * 20 * width(model)


def decode_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """About 11 maps of the widest full-resolution stage, in 16 bits 14: norms are in float32.
    (Counted live on a CPU.)"""
    size = BYTES[model.dtype]
    maps = 11 if size == 4 else 14
    return maps * size * bucket.width * bucket.height * dims(model).vae.base_dim
