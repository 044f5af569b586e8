"""CogVideoX text-to-video, 2b, 5b and 1.5: geometry, FLOPs and bytes from the dimensions alone.

Text and video go through the same layers as one sequence of N tokens of width d: each of L blocks
takes 24Nd^2 FLOPs for projections and feed-forward, 4N^2d for attention. It is a model of diffusion
proper, not of flow matching: it has solvers of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from batchgen.caches.blocks import Attention
from batchgen.config.kernels import DISPATCHED
from batchgen.config.schema import ModelSpec
from batchgen.errors import ConfigError
from batchgen.families.cogvideox.vae import (
    CogVae,
    vae_decode_bytes,
    vae_decode_flops,
    vae_parameters,
    vae_tiles,
)
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
from batchgen.families.parts import encoder, tokenizer
from batchgen.families.recalled import Recalled
from batchgen.families.sequence import MOST_RANKS, RINGS, legal_ulysses
from batchgen.request import MAX_FRAMES, MAX_SIDE, Bucket, ModelDefaults, Solver

NUMERICS_VERSION = 1
PIPELINE = "CogVideoXPipeline"
MEDIA: Literal["video", "image"] = "video"
OWN_ENGINE = False
COMPONENTS = (
    Component(
        name="transformer",
        loads="diffusers.CogVideoXTransformer3DModel",
        stage="denoise",
        dims="transformer",
        stacks=("transformer_blocks",),
        flows=("hidden_states", "encoder_hidden_states"),
        drawn=0,
        recalled=(
            Recalled("time_embedding", "timestep"),
            Recalled("transformer_blocks.*.norm1.linear", "timestep", like="norm_out.linear"),
            Recalled("transformer_blocks.*.norm2.linear", "timestep", like="norm_out.linear"),
            Recalled("norm_out.linear", "timestep"),
        ),
    ),
    encoder("text_encoder", "T5EncoderModel", "t5", "encoder.block"),
    Component(name="vae", loads="diffusers.AutoencoderKLCogVideoX", stage="decode", dims="vae"),
    tokenizer(),
    Component(
        name="scheduler",
        kind="scheduler",
        loads="diffusers.CogVideoXDPMScheduler",  # or the other one
        stage="denoise",
        dims="scheduler",
        predicts="v_prediction",
    ),
)
_SOLVERS: dict[str, Solver] = {"CogVideoXDDIMScheduler": "ddim", "CogVideoXDPMScheduler": "sde"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CogTransformer(ComponentDims):
    """Dimensions of the diffusion transformer, as in its diffusers config."""

    num_layers: int = 42
    num_attention_heads: int = 48
    attention_head_dim: int = 64
    time_embed_dim: int = 512
    text_embed_dim: int = 4096
    max_text_seq_length: int = 226
    in_channels: int = 16
    out_channels: int = 16
    patch_size: int = 2
    patch_size_t: int | None = None  # latent frames of a token (1.5); None: one
    sample_width: int = 90  # latent cells whose places the model was trained on
    sample_height: int = 60
    sample_frames: int = 49
    use_rotary_positional_embeddings: bool = True
    use_learned_positional_embeddings: bool = False

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def depth(self) -> int:
        """Latent frames of a token."""
        return self.patch_size_t or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CogT5(T5Dims):
    """T5 v1.1."""

    vocab_size: int = 32128
    feed_forward_proj: str = "gated-gelu"
    max_tokens: int = stored(0, None)  # 0: as many as the transformer has places for


@dataclass(frozen=True, slots=True, kw_only=True)
class CogScheduler(ComponentDims):
    """The fields of scheduler_config.json that decide noise levels and timesteps."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "v_prediction"
    timestep_spacing: str = "trailing"
    rescale_betas_zero_snr: bool = True
    set_alpha_to_one: bool = True
    snr_shift_scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Dimensions of a CogVideoX."""

    transformer: CogTransformer
    vae: CogVae = field(default_factory=CogVae)
    text_encoder: CogT5 = field(default_factory=CogT5)
    scheduler: CogScheduler = field(default_factory=CogScheduler)

    def __post_init__(self) -> None:
        """Texts have the length that the model has places for; ConfigError for another, and for
        what image-to-video models have."""
        spec, text = self.transformer, self.text_encoder
        places = spec.max_text_seq_length
        if text.max_tokens not in (0, places):
            raise ConfigError(
                f"model.text_encoder.max_tokens: {text.max_tokens}, but texts are as long as "
                f"model.transformer.max_text_seq_length says: {places}"
            )
        object.__setattr__(self, "text_encoder", replace(text, max_tokens=places))
        for key, value, legal in (
            (
                "transformer.use_learned_positional_embeddings",
                spec.use_learned_positional_embeddings,
                False,
            ),
            ("scheduler.prediction_type", self.scheduler.prediction_type, "v_prediction"),
            ("scheduler.timestep_spacing", self.scheduler.timestep_spacing, "trailing"),
        ):
            if value != legal:
                raise ConfigError(f"model.{key}: {value} is not served; legal: {legal}")
        self.vae.check()


def dims(model: ModelSpec) -> Dims:
    assert isinstance(model.dims, Dims)
    return model.dims


def capabilities(model: ModelSpec) -> Capabilities:
    """A ring gives other last bits, Ulysses the same."""
    return Capabilities(
        pairs=True,
        cfg=(1, 2),
        attention=DISPATCHED,
        ulysses=legal_ulysses(heads(model), MOST_RANKS),
        ring=RINGS,
        cache_strategies=(*OUTPUT_CACHES, *BLOCK_CACHES),
        tiles=vae_tiles(dims(model).vae, BYTES[model.dtype]),
        solvers=("ddim", "sde"),
        sigma_shift=False,
        columns=("guidance_scale", "use_dynamic_cfg", "lora"),
    )


def serves(index: Mapping[str, Any]) -> bool:
    return bool(index.get("_class_name") == PIPELINE)


def settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    """As published: 2b, 5b, or 1.5, whichever the dimensions are of."""
    newer = dims.transformer.patch_size_t is not None
    solver = _SOLVERS.get(str(scheduler.get("_class_name")), "sde")
    return ModelDefaults(
        width=1360 if newer else 720,
        height=768 if newer else 480,
        num_frames=81 if newer else 49,
        fps=16 if newer else 8,
        num_steps=50,
        guidance_scale=6.0,
        use_dynamic_cfg=int(solver == "sde"),
        solver=solver,
        sigma_shift=1.0,
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
    """Sizes are whole patches of latent cells. Latent frames are decoded two by two, with the first
    one beside: an even number of them would come out as more frames than were asked for."""
    spec, vae = dims(model).transformer, dims(model).vae
    pixels, frames = vae.spatial_factor * spec.patch_size, 2 * vae.temporal_factor
    side = MAX_SIDE if spec.patch_size_t is None else spec.sample_width * vae.spatial_factor
    return Stride(pixels, frames, side, (MAX_FRAMES - 1) // frames * frames + 1)


def latent_shape(model: ModelSpec, bucket: Bucket) -> tuple[int, int, int]:
    """Latent frames that are decoded, rows and columns of a bucket."""
    vae = dims(model).vae
    frames = 1 + (bucket.num_frames - 1) // vae.temporal_factor
    return frames, bucket.height // vae.spatial_factor, bucket.width // vae.spatial_factor


def added_frames(model: ModelSpec, bucket: Bucket) -> int:
    """Latent frames that are drawn in front, to make whole tokens, and left out again."""
    return -latent_shape(model, bucket)[0] % dims(model).transformer.depth


def grid(model: ModelSpec, bucket: Bucket) -> tuple[int, int, int]:
    """Video tokens along each axis."""
    spec, (frames, height, width) = dims(model).transformer, latent_shape(model, bucket)
    drawn = frames + added_frames(model, bucket)
    return drawn // spec.depth, height // spec.patch_size, width // spec.patch_size


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
    blocks = spec.num_layers * (24 * n * d * d + 4 * n * n * d)
    doors = 2 * d * (_patch(spec) * (n - text) + spec.text_embed_dim * text)
    return blocks + doors + 2 * _once_per_item(spec)


def _patch(spec: CogTransformer) -> int:
    """Channels of a token as it enters and as it leaves."""
    return spec.depth * spec.patch_size**2 * (spec.in_channels + spec.out_channels)


def attention_flops(model: ModelSpec, bucket: Bucket) -> Mapping[Attention, float]:
    """FLOPs of all attentions of one forward."""
    n, d = float(tokens(model, bucket)), width(model)
    return {"self": layers(model) * (8 * n * d * d + 4 * n * n * d)}


def _once_per_item(spec: CogTransformer) -> int:
    """Weights of layers that see one vector per item: modulation of every block and of the output,
    embedding of the timestep."""
    time, d = spec.time_embed_dim, spec.width
    return time * d * (12 * spec.num_layers + 2) + d * time + time**2


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
    doors = spec.width * (_patch(spec) + spec.text_embed_dim)
    return 12 * spec.num_layers * spec.width**2 + doors + _once_per_item(spec)


def block_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Number of weights of each block, with its modulation."""
    spec = dims(model).transformer
    return (12 * spec.width**2 + 12 * spec.time_embed_dim * spec.width,) * spec.num_layers


def fp8_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Those of each block without its modulation."""
    return (12 * width(model) ** 2,) * layers(model)


def forward_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """About 20 widths per token."""
    return tokens(model, bucket) * BYTES[model.dtype] * 20 * width(model)


def decode_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """Of the decoder for one row."""
    return vae_decode_bytes(dims(model).vae, BYTES[model.dtype], *latent_shape(model, bucket))
