"""FLUX.2 klein text-to-image, base and distilled: geometry, FLOPs and bytes from the dimensions
alone.

Text and image attend to each other as one sequence of N tokens of width d. A double block takes
26Nd^2 FLOPs for projections and gated feed-forwards (of width 3d), a single block too; each 4N^2d
for attention. One modulation serves all blocks of a kind.
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
from batchgen.families.encoders import LlmDims, llm_flops, llm_parameters
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
from batchgen.request import MAX_SIDE, Bucket, ModelDefaults

NUMERICS_VERSION = 1
PIPELINE = "Flux2KleinPipeline"
MEDIA: Literal["video", "image"] = "image"
OWN_ENGINE = False
COMPONENTS = (
    Component(
        name="transformer",
        loads="diffusers.Flux2Transformer2DModel",
        original=True,
        stage="denoise",
        dims="transformer",
        stacks=("transformer_blocks", "single_transformer_blocks"),
        flows=("encoder_hidden_states", "hidden_states"),
        joined=("single_transformer_blocks",),
        recalled=(
            Recalled("time_guidance_embed.timestep_embedder", "timestep"),
            Recalled("double_stream_modulation_img.linear", "timestep"),
            Recalled("double_stream_modulation_txt.linear", "timestep"),
            Recalled("single_stream_modulation.linear", "timestep"),
            Recalled("norm_out.linear", "timestep"),
        ),
    ),
    encoder("text_encoder", "Qwen3ForCausalLM", "qwen3", "model.layers"),
    Component(name="vae", loads="diffusers.AutoencoderKLFlux2", stage="decode", dims="vae"),
    tokenizer(),
    FLOW_SCHEDULER,
)

_BLOCK = 26  # squares of the width in a double block; half of them in a single one


@dataclass(frozen=True, slots=True, kw_only=True)
class Flux2Transformer(ComponentDims):
    """Dimensions of the diffusion transformer, as in its diffusers config."""

    num_layers: int  # blocks with a stream each for text and image
    num_single_layers: int  # blocks with one stream for both
    num_attention_heads: int
    joint_attention_dim: int
    attention_head_dim: int = 128
    in_channels: int = 128
    axes_dims_rope: tuple[int, ...] = (32, 32, 32, 32)
    patch_size: int = 1
    mlp_ratio: float = 3.0
    timestep_guidance_channels: int = 256
    guidance_embeds: bool = False

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Flux2Vae(KlVae):
    """The autoencoder, whose latents are normalised by the statistics of a batch norm."""

    latent_channels: int = 32
    scaling_factor: float = stored(1.0, None)
    shift_factor: float | None = stored(None, None)
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Flux2Llm(LlmDims):
    """Qwen3, of which the states behind some layers are the condition, side by side."""

    out_layers: tuple[int, ...] = stored((9, 18, 27), None)  # an argument of the pipeline's call


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Dimensions of a FLUX.2 klein."""

    transformer: Flux2Transformer
    vae: Flux2Vae = field(default_factory=Flux2Vae)
    text_encoder: Flux2Llm = field(default_factory=Flux2Llm)
    scheduler: FlowScheduler = field(default_factory=FlowScheduler)
    distilled: bool = False  # draws without guidance

    def __post_init__(self) -> None:
        """ConfigError unless lists have the lengths that the layers need and steps draw no
        noise."""
        axes = self.transformer.axes_dims_rope
        if len(axes) != 4:
            raise ConfigError(f"model.transformer.axes_dims_rope: {list(axes)} must have 4 entries")
        if self.transformer.guidance_embeds:
            raise ConfigError("model.transformer.guidance_embeds: true is not served")
        if max(self.text_encoder.out_layers) > self.text_encoder.num_hidden_layers:
            raise ConfigError(
                f"model.text_encoder.out_layers: {list(self.text_encoder.out_layers)}, but there "
                f"are {self.text_encoder.num_hidden_layers}"
            )
        self.vae.check()
        self.scheduler.check()


def dims(model: ModelSpec) -> Dims:
    assert isinstance(model.dims, Dims)
    return model.dims


def capabilities(model: ModelSpec) -> Capabilities:
    """A distilled model reads no guidance scale. The negative prompt is always empty."""
    return Capabilities(
        tiles=kl_tiles(dims(model).vae, BYTES[model.dtype]),
        cfg=(1, 2),
        attention=DISPATCHED,
        ulysses=legal_ulysses(heads(model), MOST_RANKS),
        ring=RINGS,
        cache_strategies=(*OUTPUT_CACHES, *BLOCK_CACHES),
        solvers=("euler",),
        sigma_shift=not dims(model).scheduler.use_dynamic_shifting,
        columns=(*(() if dims(model).distilled else ("guidance_scale",)), "lora"),
        unread=("negative_prompt",),
    )


def serves(index: Mapping[str, Any]) -> bool:
    return bool(index.get("_class_name") == PIPELINE)


def settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    """Whether it is distilled, which is in model_index.json."""
    return {"distilled": index["is_distilled"]} if "is_distilled" in index else {}


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    """Of the base model or the distilled one, whichever it is."""
    return ModelDefaults(
        width=1024,
        height=1024,
        num_frames=1,
        fps=1,
        num_steps=4 if dims.distilled else 50,
        guidance_scale=1.0 if dims.distilled else 4.0,
        solver="euler",
        sigma_shift=dims.scheduler.row_shift,
    )


def branches(model: ModelSpec, row: Scales) -> Any:
    """2 if guidance_scale is above 1 and the model is not distilled; else 1."""
    return 1 + (row.guidance_scale > 1.0) * (not dims(model).distilled)


def boundary(model: ModelSpec) -> float | None:
    return None


def max_tokens(model: ModelSpec) -> int:
    """Most tokens of a text, with the template around it."""
    return dims(model).text_encoder.max_tokens


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


def empirical_mu(tokens: int, steps: int) -> float:
    """The shift of the schedule, by image tokens and steps: the pipeline's formula, in its order of
    operations."""
    most = 0.00016927 * tokens + 0.45666666  # of 200 steps
    if tokens > 4300:
        return most
    few = 8.73809524e-05 * tokens + 1.89833333  # of 10 steps
    slope = (most - few) / 190.0
    return slope * steps + (most - 200.0 * slope)


def forward_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of one item of one forward (module docstring)."""
    spec, text = dims(model).transformer, max_tokens(model)
    n, d = float(tokens(model, bucket)), spec.width
    blocks = layers(model) * (_BLOCK * n * d * d + 4 * n * n * d)
    doors = 2 * d * (2 * spec.in_channels * (n - text) + spec.joint_attention_dim * text)
    return blocks + doors + 2 * _once_per_item(spec)


def attention_flops(model: ModelSpec, bucket: Bucket) -> Mapping[Attention, float]:
    """FLOPs of all attentions of one forward; a single block's projects and feeds forward by
    itself."""
    spec, n = dims(model).transformer, float(tokens(model, bucket))
    d = spec.width
    linear = (8 * spec.num_layers + _BLOCK * spec.num_single_layers) * n * d * d
    return {"self": linear + layers(model) * 4 * n * n * d}


def _once_per_item(spec: Flux2Transformer) -> int:
    """Weights of layers that see one vector per item: the modulations, and the timestep's
    embedding."""
    d = spec.width
    return (6 + 6 + 3 + 2) * d * d + spec.timestep_guidance_channels * d + d * d


def encode_flops(model: ModelSpec) -> float:
    """FLOPs of the language model for one text, padded to its maximum."""
    return llm_flops(dims(model).text_encoder, max_tokens(model))


def decode_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of the decoder for one row."""
    return kl_decode_flops(dims(model).vae, bucket)


def parameters(model: ModelSpec, component: str) -> int:
    """Number of weights of a component, without norms."""
    if component == "text_encoder":
        text = dims(model).text_encoder
        return llm_parameters(text, head=not text.tie_word_embeddings)
    if component == "vae":
        return kl_parameters(dims(model).vae)
    spec = dims(model).transformer
    doors = spec.width * (2 * spec.in_channels + spec.joint_attention_dim)
    return sum(block_parameters(model)) + doors + _once_per_item(spec)


def block_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Number of weights of each block, double blocks first."""
    spec = dims(model).transformer
    double, single = _BLOCK * spec.width**2, _BLOCK // 2 * spec.width**2
    return (double,) * spec.num_layers + (single,) * spec.num_single_layers


def fp8_parameters(model: ModelSpec) -> tuple[int, ...]:
    """All: what modulates the blocks is outside."""
    return block_parameters(model)


def forward_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """About 24 widths per token."""
    return tokens(model, bucket) * BYTES[model.dtype] * 24 * width(model)


def decode_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """Peak bytes beside the weights while one row is decoded."""
    return kl_decode_bytes(dims(model).vae, bucket, BYTES[model.dtype])
