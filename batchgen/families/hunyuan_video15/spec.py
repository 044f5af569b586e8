"""HunyuanVideo 1.5 text-to-video: geometry, FLOPs and bytes from the dimensions alone.

Video and text attend to each other as one sequence of N tokens of width d: the text of a language
model, what stands in quotes as ByT5 reads it, and places of an image, each padded. With a
feed-forward of r widths each of L blocks takes (8 + 4r)Nd^2 FLOPs for projections and feed-forwards
of its two streams, and 4N^2d for attention.
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
    LlmDims,
    T5Dims,
    llm_flops,
    llm_parameters,
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
from batchgen.families.hunyuan_video15.vae import (
    Hunyuan15Vae,
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
PIPELINE = "HunyuanVideo15Pipeline"
MEDIA: Literal["video", "image"] = "video"
OWN_ENGINE = False
COMPONENTS = (
    Component(
        name="transformer",
        loads="diffusers.HunyuanVideo15Transformer3DModel",
        stage="denoise",
        dims="transformer",
        stacks=("transformer_blocks",),
        flows=("hidden_states", "encoder_hidden_states"),
        drawn=0,
        recalled=(  # a third of the weights
            Recalled("time_embed.timestep_embedder", "timestep"),
            Recalled("transformer_blocks.*.norm1.linear", "timestep", like="norm_out.linear"),
            Recalled(
                "transformer_blocks.*.norm1_context.linear", "timestep", like="norm_out.linear"
            ),
            Recalled("norm_out.linear", "timestep"),
        ),
    ),
    encoder("text_encoder", "Qwen2_5_VLTextModel", "qwen2_5_vl_text", "layers"),
    encoder("text_encoder_2", "T5EncoderModel", "t5", "encoder.block"),
    Component(
        name="vae", loads="diffusers.AutoencoderKLHunyuanVideo15", stage="decode", dims="vae"
    ),
    tokenizer(),
    tokenizer("_2"),
    FLOW_SCHEDULER,
    Component(
        name="guider",
        kind="scheduler",
        loads="diffusers.ClassifierFreeGuidance",
        stage="denoise",
        dims="guider",
    ),
)
_TIME = 256  # channels of a sinusoidal embedding
_GLYPHS = 2048  # inner width of the projection of ByT5's states


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunyuan15Transformer(ComponentDims):
    """Dimensions of the diffusion transformer, as in its diffusers config."""

    num_layers: int = 54
    num_refiner_layers: int = 2  # of the text
    num_attention_heads: int = 16
    attention_head_dim: int = 128
    mlp_ratio: float = 4.0
    patch_size: int = 1
    patch_size_t: int = 1
    in_channels: int = 65  # of latents, of an image's latents, and of the mask of both
    out_channels: int = 32
    text_embed_dim: int = 3584
    text_embed_2_dim: int = 1472
    image_embed_dim: int = 1152
    rope_axes_dim: tuple[int, ...] = (16, 56, 56)
    use_meanflow: bool = False
    image_tokens: int = stored(729, None)  # places of an image, which is not there

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenTextDims(LlmDims):
    """The language model of a Qwen2.5-VL, of which hidden states are used."""

    vocab_size: int = 152064
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int = 4
    head_dim: int | None = stored(None, None)  # hidden_size / num_attention_heads
    tie_word_embeddings: bool = False
    max_tokens: int = stored(1000, None)
    template_tokens: int = stored(108, None)  # before the prompt

    def random_extras(self) -> dict[str, Any]:
        """The places of rotary channels, which divide a head's."""
        third = 3 * self.channels // 16
        sections = [self.channels // 2 - 2 * third, third, third]
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
        return {"bos_token_id": None, "eos_token_id": 1, "rope_parameters": rope}


@dataclass(frozen=True, slots=True, kw_only=True)
class Byt5Dims(T5Dims):
    """A ByT5, whose tokens are bytes."""

    vocab_size: int = 1510
    d_model: int = 1472
    d_kv: int = 64
    d_ff: int = 3584
    num_layers: int = 12
    num_heads: int = 6
    feed_forward_proj: str = "gated-gelu"
    max_tokens: int = stored(256, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guider(ComponentDims):
    """The fields of guider_config.json."""

    guidance_scale: float = 6.0  # default of a row's
    guidance_rescale: float = 0.0  # default of a row's
    use_original_formulation: bool = False
    start: float = 0.0  # share of the steps at which guidance begins
    stop: float = 1.0
    enabled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Dimensions of a HunyuanVideo 1.5."""

    transformer: Hunyuan15Transformer
    vae: Hunyuan15Vae = field(default_factory=Hunyuan15Vae)
    text_encoder: QwenTextDims = field(default_factory=QwenTextDims)
    text_encoder_2: Byt5Dims = field(default_factory=Byt5Dims)
    scheduler: FlowScheduler = field(
        default_factory=lambda: FlowScheduler(shift=5.0, use_dynamic_shifting=False)
    )
    guider: Guider = field(default_factory=Guider)

    def __post_init__(self) -> None:
        """ConfigError unless lists have the lengths that layers need and inputs fit, for what the
        text-to-video pipeline does not give (a second timestep, the row's size to schedules), and
        for guidance at some steps alone."""
        spec, latents = self.transformer, self.vae.latent_channels
        if len(spec.rope_axes_dim) != 3:
            axes = list(spec.rope_axes_dim)
            raise ConfigError(f"model.transformer.rope_axes_dim: {axes} must have 3 entries")
        for key, value, legal in (
            ("transformer.in_channels", spec.in_channels, 2 * latents + 1),
            ("transformer.use_meanflow", spec.use_meanflow, False),
            ("scheduler.use_dynamic_shifting", self.scheduler.use_dynamic_shifting, False),
            ("guider.use_original_formulation", self.guider.use_original_formulation, False),
            ("guider.start", self.guider.start, 0.0),
            ("guider.stop", self.guider.stop, 1.0),
            ("guider.enabled", self.guider.enabled, True),
        ):
            if value != legal:
                raise ConfigError(f"model.{key}: {value} is not served; legal: {legal}")
        self.vae.check()
        self.scheduler.check()


def dims(model: ModelSpec) -> Dims:
    assert isinstance(model.dims, Dims)
    return model.dims


def capabilities(model: ModelSpec) -> Capabilities:
    """A ring gives other last bits, Ulysses the same."""
    return Capabilities(
        tiles=vae_tiles(dims(model).vae, BYTES[model.dtype]),
        cfg=(1, 2),
        attention=MASKED,
        ulysses=legal_ulysses(heads(model), MOST_RANKS),
        ring=RINGS,
        cache_strategies=(*OUTPUT_CACHES, *BLOCK_CACHES),
        solvers=("euler",),
        columns=("guidance_scale", "guidance_rescale", "lora"),
    )


def serves(index: Mapping[str, Any]) -> bool:
    return bool(index.get("_class_name") == PIPELINE)


def settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    """As published with the model at 480p."""
    return ModelDefaults(
        width=848,
        height=480,
        num_frames=121,
        fps=24,
        num_steps=50,
        guidance_scale=dims.guider.guidance_scale,
        guidance_rescale=dims.guider.guidance_rescale,
        solver="euler",
        sigma_shift=dims.scheduler.row_shift,
    )


def branches(model: ModelSpec, row: Scales) -> Any:
    """1 if guidance_scale is 1, as math.isclose has it; else 2, below 1 too."""
    return 1 + (abs(row.guidance_scale - 1.0) > 1e-9)


def boundary(model: ModelSpec) -> float | None:
    return None


def max_tokens(model: ModelSpec) -> int:
    """Most tokens of a text for the language model, without the template."""
    return dims(model).text_encoder.max_tokens


def layers(model: ModelSpec) -> int:
    return dims(model).transformer.num_layers


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


def text_tokens(model: ModelSpec) -> int:
    """Of all that video tokens attend to beside themselves, padded."""
    image, glyphs = dims(model).transformer.image_tokens, dims(model).text_encoder_2.max_tokens
    return max_tokens(model) + glyphs + image


def tokens(model: ModelSpec, bucket: Bucket) -> int:
    """Video tokens and those of the padded texts."""
    frames, height, width = grid(model, bucket)
    return frames * height * width + text_tokens(model)


def forward_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of one item of one forward (module docstring)."""
    spec, text = dims(model).transformer, float(max_tokens(model))
    n, d = float(tokens(model, bucket)), spec.width
    blocks = spec.num_layers * (n * (8 + 4 * spec.mlp_ratio) * d * d + 4 * n * n * d)
    refiner = spec.num_refiner_layers * (24 * text * d * d + 4 * text * text * d)
    doors = _patch(spec) * d * (n - text_tokens(model)) + spec.text_embed_dim * d * text
    doors += _glyphs(spec) * dims(model).text_encoder_2.max_tokens
    doors += _image(spec) * spec.image_tokens
    return blocks + refiner + 2 * doors + 2 * _once_per_item(spec)


def _patch(spec: Hunyuan15Transformer) -> int:
    """Channels of a token as it enters and as it leaves."""
    return spec.patch_size_t * spec.patch_size**2 * (spec.in_channels + spec.out_channels)


def _glyphs(spec: Hunyuan15Transformer) -> int:
    """Weights that project ByT5's states."""
    return spec.text_embed_2_dim * _GLYPHS + _GLYPHS**2 + _GLYPHS * spec.width


def _image(spec: Hunyuan15Transformer) -> int:
    """Weights that project an image's states."""
    return spec.image_embed_dim**2 + spec.image_embed_dim * spec.width


def attention_flops(model: ModelSpec, bucket: Bucket) -> Mapping[Attention, float]:
    """FLOPs of all attentions of one forward."""
    n, d = float(tokens(model, bucket)), width(model)
    return {"self": layers(model) * (8 * n * d * d + 4 * n * n * d)}


def _once_per_item(spec: Hunyuan15Transformer) -> int:
    """Weights of layers that see one vector per item: modulation of every block and of the output,
    embeddings of the timestep and of the mean text."""
    d = spec.width
    blocks = 12 * spec.num_layers + 2 * spec.num_refiner_layers + 2
    return blocks * d * d + 2 * (_TIME * d + d * d) + spec.text_embed_dim * d + d * d


def encode_flops(model: ModelSpec) -> float:
    """FLOPs of both text encoders for one text with its template."""
    text = dims(model).text_encoder
    language = llm_flops(text, text.max_tokens + text.template_tokens)
    return language + t5_flops(dims(model).text_encoder_2)


def decode_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of the decoder for one row."""
    return vae_decode_flops(dims(model).vae, *latent_shape(model, bucket))


def parameters(model: ModelSpec, component: str) -> int:
    """Number of weights of a component, without biases and norms."""
    if component == "text_encoder":
        return llm_parameters(dims(model).text_encoder)
    if component == "text_encoder_2":
        return t5_parameters(dims(model).text_encoder_2)
    if component == "vae":
        return vae_parameters(dims(model).vae)
    spec = dims(model).transformer
    d = spec.width
    refiner = 12 * spec.num_refiner_layers * d * d
    doors = d * (_patch(spec) + spec.text_embed_dim) + _glyphs(spec) + _image(spec)
    rest = _once_per_item(spec) - 12 * spec.num_layers * d * d  # in the blocks already
    return sum(block_parameters(model)) + refiner + doors + rest


def block_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Number of weights of each block, with its modulation."""
    spec = dims(model).transformer
    return (round((20 + 4 * spec.mlp_ratio) * spec.width**2),) * spec.num_layers


def fp8_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Those of each block without its modulation."""
    spec = dims(model).transformer
    return (round((8 + 4 * spec.mlp_ratio) * spec.width**2),) * spec.num_layers


def forward_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """About 20 widths per token."""
    return tokens(model, bucket) * BYTES[model.dtype] * 20 * width(model)


def decode_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """Of the decoder for one row."""
    return vae_decode_bytes(dims(model).vae, BYTES[model.dtype], *latent_shape(model, bucket))
