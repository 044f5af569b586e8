"""HunyuanDiT text-to-image: geometry, FLOPs and bytes from the dimensions alone.

A block takes 28Nd^2 FLOPs for N image tokens of width d (self and cross attention, feed-forward)
and 4N^2d for attention, 4Td x the text's width for its T text tokens, 4NTd for attending to them;
blocks of the second half 4Nd^2 more to join what one of the first half made. It is a model of
diffusion proper. diffusers' model takes no adapters, so that none are served.
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
    BertDims,
    T5Dims,
    bert_flops,
    bert_parameters,
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
from batchgen.families.parts import KL_VAE, encoder, tokenizer
from batchgen.families.sequence import MOST_RANKS, RINGS, legal_ulysses
from batchgen.request import MAX_SIDE, Bucket, ModelDefaults

NUMERICS_VERSION = 1
PIPELINE = "HunyuanDiTPipeline"
MEDIA: Literal["video", "image"] = "image"
OWN_ENGINE = False
COMPONENTS = (
    Component(
        name="transformer",
        loads="diffusers.HunyuanDiT2DModel",
        stage="denoise",
        dims="transformer",
        stacks=("blocks",),
    ),
    encoder("text_encoder", "BertModel", "bert", "encoder.layer"),
    encoder("text_encoder_2", "T5EncoderModel", "t5", "encoder.block"),
    KL_VAE,
    tokenizer(),
    tokenizer("_2"),
    Component(
        name="scheduler",
        kind="scheduler",
        loads="diffusers.DDPMScheduler",
        stage="denoise",
        dims="scheduler",
        predicts="v_prediction",
    ),
)
_NOT_SERVED = ("planned", "first_block", "blockdance")  # caches (`capabilities`)
_TIME = 256  # channels of a sinusoidal embedding
_SIZES = 6  # numbers that tell the model about the image's size


@dataclass(frozen=True, slots=True, kw_only=True)
class HunyuanDitTransformer(ComponentDims):
    """Dimensions of the diffusion transformer, as in its diffusers config."""

    num_layers: int = 40
    num_attention_heads: int = 16
    attention_head_dim: int = 88
    hidden_size: int = 1408
    mlp_ratio: float = 4.3637
    in_channels: int = 4
    patch_size: int = 2
    sample_size: int = 128
    cross_attention_dim: int = 1024
    cross_attention_dim_t5: int = 2048
    pooled_projection_dim: int = 1024
    text_len: int = 77
    text_len_t5: int = 256
    use_style_cond_and_image_meta_size: bool = True
    learn_sigma: bool = True
    activation_fn: str = "gelu-approximate"

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def inner(self) -> int:
        """Width of the feed-forward."""
        return int(self.hidden_size * self.mlp_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class HunyuanDitT5(T5Dims):
    """mT5 XL, of which the encoder."""

    vocab_size: int = 250112
    d_model: int = 2048
    d_ff: int = 5120
    num_heads: int = 32
    feed_forward_proj: str = "gated-gelu"
    max_tokens: int = stored(256, None)  # fixed in the pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class DdpmScheduler(ComponentDims):
    """The fields of scheduler_config.json that decide noise levels and timesteps."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.018
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "v_prediction"
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    variance_type: str = "fixed_small"
    clip_sample: bool = False
    thresholding: bool = False
    rescale_betas_zero_snr: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Dimensions of a HunyuanDiT."""

    transformer: HunyuanDitTransformer = field(default_factory=HunyuanDitTransformer)
    vae: KlVae = field(
        default_factory=lambda: KlVae(
            latent_channels=4,
            scaling_factor=0.13025,
            shift_factor=None,
            use_quant_conv=True,
            use_post_quant_conv=True,
        )
    )
    text_encoder: BertDims = field(default_factory=BertDims)
    text_encoder_2: HunyuanDitT5 = field(default_factory=HunyuanDitT5)
    scheduler: DdpmScheduler = field(default_factory=DdpmScheduler)

    def __post_init__(self) -> None:
        """ConfigError for what is not served."""
        spec, scheduler = self.transformer, self.scheduler
        for key, value, legal in (
            ("transformer.hidden_size", spec.hidden_size, spec.width),
            ("transformer.learn_sigma", spec.learn_sigma, True),
            ("scheduler.prediction_type", scheduler.prediction_type, "v_prediction"),
            ("scheduler.variance_type", scheduler.variance_type, "fixed_small"),
            ("scheduler.clip_sample", scheduler.clip_sample, False),
            ("scheduler.thresholding", scheduler.thresholding, False),
        ):
            if value != legal:
                raise ConfigError(f"model.{key}: {value!r} is not served; legal: {legal!r}")
        self.vae.check()


def dims(model: ModelSpec) -> Dims:
    assert isinstance(model.dims, Dims)
    return model.dims


def capabilities(model: ModelSpec) -> Capabilities:
    """Blocks of its second half need what those of the first have made, so that all are left out or
    none. Its solver draws noise at every step, which no planned gap can cross."""
    return Capabilities(
        tiles=kl_tiles(dims(model).vae, BYTES[model.dtype]),
        cfg=(1, 2),
        attention=DISPATCHED,
        ulysses=legal_ulysses(heads(model), MOST_RANKS),
        ring=RINGS,
        cache_strategies=tuple(
            name for name in (*OUTPUT_CACHES, *BLOCK_CACHES) if name not in _NOT_SERVED
        ),
        solvers=("ddpm",),
        sigma_shift=False,
        columns=("guidance_scale", "guidance_rescale"),
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
        num_steps=50,
        guidance_scale=5.0,
        solver="ddpm",
        sigma_shift=1.0,
    )


def branches(model: ModelSpec, row: Scales) -> Any:
    """2 if guidance_scale is above 1; else 1."""
    return 1 + (row.guidance_scale > 1.0)


def boundary(model: ModelSpec) -> float | None:
    return None


def max_tokens(model: ModelSpec) -> int:
    """Most tokens for T5; BERT always cuts at its 77."""
    return dims(model).text_encoder_2.max_tokens


def layers(model: ModelSpec) -> int:
    return dims(model).transformer.num_layers


def heads(model: ModelSpec) -> int:
    return dims(model).transformer.num_attention_heads


def width(model: ModelSpec) -> int:
    return dims(model).transformer.hidden_size


def stride(model: ModelSpec) -> Stride:
    """Sizes are whole patches; one frame."""
    return Stride(dims(model).transformer.patch_size * dims(model).vae.factor, 1, MAX_SIDE, 1)


def cells(model: ModelSpec, bucket: Bucket) -> tuple[int, int]:
    """Rows and columns of image tokens."""
    side = dims(model).transformer.patch_size * dims(model).vae.factor
    return bucket.height // side, bucket.width // side


def tokens(model: ModelSpec, bucket: Bucket) -> int:
    """Image tokens."""
    height, width = cells(model, bucket)
    return height * width


def _text(spec: HunyuanDitTransformer) -> int:
    """Text tokens."""
    return spec.text_len + spec.text_len_t5


def _joining(spec: HunyuanDitTransformer) -> int:
    """Blocks that join what a block of the first half has made."""
    return spec.num_layers - 1 - spec.num_layers // 2


def forward_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of one item of one forward (module docstring)."""
    spec, n = dims(model).transformer, float(tokens(model, bucket))
    d, t = spec.hidden_size, _text(spec)
    block = 12 * n * d * d + 4 * n * d * spec.inner + 4 * n * n * d
    block += 4 * t * d * spec.cross_attention_dim + 4 * n * t * d
    joins = _joining(spec) * 4 * n * d * d
    patch = spec.patch_size**2 * spec.in_channels
    doors = 2 * n * d * 3 * patch + 2 * spec.text_len_t5 * _text_door(spec)
    pooler = 4 * spec.text_len_t5 * spec.cross_attention_dim_t5**2
    return spec.num_layers * block + joins + doors + pooler + 2 * _once_per_item(spec)


def attention_flops(model: ModelSpec, bucket: Bucket) -> Mapping[Attention, float]:
    """FLOPs of all attentions of one forward."""
    spec, n = dims(model).transformer, float(tokens(model, bucket))
    d, t = spec.hidden_size, _text(spec)
    cross = 4 * n * d * d + 4 * t * d * spec.cross_attention_dim + 4 * n * t * d
    return {
        "self": spec.num_layers * (8 * n * d * d + 4 * n * n * d),
        "cross": spec.num_layers * cross,
    }


def _text_door(spec: HunyuanDitTransformer) -> int:
    """Weights that T5's states meet first."""
    return (
        4 * spec.cross_attention_dim_t5 * (spec.cross_attention_dim_t5 + spec.cross_attention_dim)
    )


def _once_per_item(spec: HunyuanDitTransformer) -> int:
    """Weights of layers that see one vector per item, without those that pool the text."""
    d = spec.hidden_size
    told = (_SIZES * _TIME + d) * spec.use_style_cond_and_image_meta_size
    extra = (told + spec.pooled_projection_dim) * 4 * d + 4 * d * d
    return spec.num_layers * d * d + 2 * d * d + _TIME * d + d * d + extra


def encode_flops(model: ModelSpec) -> float:
    """FLOPs of BERT and T5 for one text."""
    bert = bert_flops(dims(model).text_encoder, dims(model).transformer.text_len)
    return bert + t5_flops(dims(model).text_encoder_2)


def decode_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of the decoder for one row."""
    return kl_decode_flops(dims(model).vae, bucket)


def parameters(model: ModelSpec, component: str) -> int:
    """Number of weights of a component, without biases and norms."""
    if component == "text_encoder":
        return bert_parameters(dims(model).text_encoder)
    if component == "text_encoder_2":
        return t5_parameters(dims(model).text_encoder_2)
    if component == "vae":
        return kl_parameters(dims(model).vae)
    spec = dims(model).transformer
    t5 = spec.cross_attention_dim_t5
    patch = spec.patch_size**2 * spec.in_channels
    pooler = 3 * t5 * t5 + t5 * spec.pooled_projection_dim + (spec.text_len_t5 + 1) * t5
    once = _once_per_item(spec) - spec.num_layers * spec.hidden_size**2
    doors = 3 * patch * spec.hidden_size + _text_door(spec) + _text(spec) * spec.cross_attention_dim
    return sum(block_parameters(model)) + doors + pooler + once


def block_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Number of weights of each block."""
    spec = dims(model).transformer
    d = spec.hidden_size
    block = 7 * d * d + 2 * d * spec.cross_attention_dim + 2 * d * spec.inner
    first = spec.num_layers - _joining(spec)
    return (block,) * first + (block + 2 * d * d,) * _joining(spec)


def fp8_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Those of each block without its modulation."""
    modulation = dims(model).transformer.hidden_size ** 2
    return tuple(count - modulation for count in block_parameters(model))


def forward_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """About 16 widths per token, and one of each block of the first half."""
    widths = 16 + layers(model) // 2
    return tokens(model, bucket) * BYTES[model.dtype] * widths * width(model)


def decode_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """Peak bytes beside the weights while one row is decoded."""
    return kl_decode_bytes(dims(model).vae, bucket, BYTES[model.dtype])
