"""Z-Image text-to-image: geometry, FLOPs and bytes from the dimensions alone.

Image and text are padded to whole blocks of 32 tokens and then one sequence of N tokens of width d.
A layer takes 24Nd^2 FLOPs for projections and feed-forward (of width 8d/3) and 4N^2d for
attention. Before that a few layers refine the image alone, and as many the text alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from batchgen.caches.blocks import Attention
from batchgen.config.kernels import MASKED
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
from batchgen.families.parts import FLOW_SCHEDULER, KL_VAE, encoder, tokenizer
from batchgen.families.recalled import Recalled
from batchgen.families.sequence import MOST_RANKS, RINGS, legal_ulysses
from batchgen.request import Bucket, ModelDefaults

NUMERICS_VERSION = 1
PIPELINE = "ZImagePipeline"
MEDIA: Literal["video", "image"] = "image"
OWN_ENGINE = False
COMPONENTS = (
    Component(
        name="transformer",
        loads="diffusers.ZImageTransformer2DModel",
        original=True,
        stage="denoise",
        dims="transformer",
        stacks=("layers",),
        flows=("x",),
        recalled=(
            Recalled("t_embedder", "timestep"),
            Recalled("context_refiner.[0-9]", "text", padded=True),
            Recalled("noise_refiner.*.adaLN_modulation.0", "timestep"),
            Recalled("layers.*.adaLN_modulation.0", "timestep"),
            Recalled("all_final_layer.2-1.adaLN_modulation.1", "timestep"),
        ),
    ),
    encoder("text_encoder", "Qwen3Model", "qwen3", "layers"),
    KL_VAE,
    tokenizer(),
    FLOW_SCHEDULER,
)

_TOGETHER = 32  # tokens: image and text are padded to multiples of it
_PATCH = 2  # latent cells along the sides of a token
_TIME, _TIME_INNER = 256, 1024  # channels of the embedding of the timestep


@dataclass(frozen=True, slots=True, kw_only=True)
class ZImageTransformer(ComponentDims):
    """Dimensions of the diffusion transformer, as in its diffusers config."""

    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    n_kv_heads: int = 30
    in_channels: int = 16
    cap_feat_dim: int = 2560
    axes_dims: tuple[int, ...] = (32, 48, 48)
    axes_lens: tuple[int, ...] = (1024, 512, 512)  # places of text, rows, columns
    all_patch_size: tuple[int, ...] = (2,)
    all_f_patch_size: tuple[int, ...] = (1,)
    t_scale: float = 1000.0

    @property
    def modulated(self) -> int:
        """Channels from which each layer is modulated."""
        return min(self.dim, _TIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZImageLlm(LlmDims):
    """Qwen3."""

    max_tokens: int = stored(512, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Dimensions of a Z-Image."""

    transformer: ZImageTransformer = field(default_factory=ZImageTransformer)
    vae: KlVae = field(default_factory=KlVae)
    text_encoder: ZImageLlm = field(default_factory=ZImageLlm)
    scheduler: FlowScheduler = field(
        default_factory=lambda: FlowScheduler(shift=3.0, use_dynamic_shifting=False)
    )

    def __post_init__(self) -> None:
        """ConfigError unless lists have the lengths that the layers need, patches have the one
        size that is served, and steps draw no noise."""
        spec = self.transformer
        for key, axes in (("axes_dims", spec.axes_dims), ("axes_lens", spec.axes_lens)):
            if len(axes) != 3:
                raise ConfigError(f"model.transformer.{key}: {list(axes)} must have 3 entries")
        if (*spec.all_patch_size, *spec.all_f_patch_size) != (_PATCH, 1):
            raise ConfigError(
                f"model.transformer.all_patch_size: {list(spec.all_patch_size)} with "
                f"all_f_patch_size {list(spec.all_f_patch_size)} is not served; legal: [2] with [1]"
            )
        self.vae.check()
        self.scheduler.check()


def dims(model: ModelSpec) -> Dims:
    assert isinstance(model.dims, Dims)
    return model.dims


def capabilities(model: ModelSpec) -> Capabilities:
    return Capabilities(
        tiles=kl_tiles(dims(model).vae, BYTES[model.dtype]),
        pairs=True,
        cfg=(1, 2),
        attention=MASKED,
        ulysses=legal_ulysses(heads(model), MOST_RANKS),
        ring=RINGS,
        cache_strategies=(*OUTPUT_CACHES, *BLOCK_CACHES),
        solvers=("euler",),
        sigma_shift=not dims(model).scheduler.use_dynamic_shifting,
        columns=("guidance_scale", "lora"),
    )


def serves(index: Mapping[str, Any]) -> bool:
    return bool(index.get("_class_name") == PIPELINE)


def settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    """The pipeline's. A turbo model, which nothing in its checkpoint tells, is drawn in 8 steps
    without guidance."""
    return ModelDefaults(
        width=1024,
        height=1024,
        num_frames=1,
        fps=1,
        num_steps=50,
        guidance_scale=5.0,
        solver="euler",
        sigma_shift=dims.scheduler.row_shift,
    )


def branches(model: ModelSpec, row: Scales) -> Any:
    """2 if guidance_scale is above 0, as in the pipeline; else 1."""
    return 1 + (row.guidance_scale > 0.0)


def boundary(model: ModelSpec) -> float | None:
    return None


def max_tokens(model: ModelSpec) -> int:
    """Most tokens of a text, with the template around it."""
    return dims(model).text_encoder.max_tokens


def layers(model: ModelSpec) -> int:
    """Of the joint sequence; the refining ones before are few."""
    return dims(model).transformer.n_layers


def heads(model: ModelSpec) -> int:
    return dims(model).transformer.n_heads


def width(model: ModelSpec) -> int:
    return dims(model).transformer.dim


def stride(model: ModelSpec) -> Stride:
    """Sizes are whole pairs of latent cells, along each side as many as there are places; one
    frame."""
    pixels = _PATCH * dims(model).vae.factor
    return Stride(pixels, 1, min(dims(model).transformer.axes_lens[1:]) * pixels, 1)


def cells(model: ModelSpec, bucket: Bucket) -> tuple[int, int]:
    """Rows and columns of image tokens."""
    side = _PATCH * dims(model).vae.factor
    return bucket.height // side, bucket.width // side


def image_tokens(model: ModelSpec, bucket: Bucket) -> int:
    """With those that fill the last block of 32."""
    height, width = cells(model, bucket)
    return _filled(height * width)


def _filled(tokens: int) -> int:
    return -(-tokens // _TOGETHER) * _TOGETHER


def tokens(model: ModelSpec, bucket: Bucket) -> int:
    """Image tokens and those of the longest text."""
    return joint_tokens(model, bucket, max_tokens(model))


def joint_tokens(model: ModelSpec, bucket: Bucket, text: int) -> int:
    """Image tokens and those of a text of so many, each filled up to whole blocks."""
    return image_tokens(model, bucket) + _filled(text)


def forward_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of one item of one forward (module docstring)."""
    spec, image = dims(model).transformer, float(image_tokens(model, bucket))
    n, d = float(tokens(model, bucket)), spec.dim
    text, refining = n - image, spec.n_refiner_layers
    blocks = spec.n_layers * _over(spec, n)
    blocks += refining * (_over(spec, image) + _over(spec, text))
    patch = _PATCH * _PATCH * spec.in_channels
    doors = 2 * d * (patch * (image + n) + spec.cap_feat_dim * text)
    return blocks + doors + 2 * _once_per_item(spec)


def _over(spec: ZImageTransformer, tokens: float) -> float:
    """FLOPs of a layer over so many tokens."""
    return 2 * tokens * _layer(spec) + 4 * tokens * tokens * spec.dim


def _layer(spec: ZImageTransformer) -> int:
    """Weights of a layer that every token meets."""
    return 4 * spec.dim**2 + 3 * spec.dim * int(spec.dim / 3 * 8)


def attention_flops(model: ModelSpec, bucket: Bucket) -> Mapping[Attention, float]:
    """FLOPs of the attentions over image and text."""
    n, d = float(tokens(model, bucket)), width(model)
    return {"self": layers(model) * (8 * n * d * d + 4 * n * n * d)}


def _once_per_item(spec: ZImageTransformer) -> int:
    """Weights of layers that see one vector per item: modulation of layers and of the output,
    embedding of the timestep."""
    modulation = 4 * (spec.n_layers + spec.n_refiner_layers) + 1
    return modulation * spec.modulated * spec.dim + _TIME_INNER * (_TIME + spec.modulated)


def encode_flops(model: ModelSpec) -> float:
    """FLOPs of the language model for one text, padded to its maximum."""
    return llm_flops(dims(model).text_encoder, max_tokens(model))


def decode_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of the decoder for one row."""
    return kl_decode_flops(dims(model).vae, bucket)


def parameters(model: ModelSpec, component: str) -> int:
    """Number of weights of a component, without biases and norms."""
    if component == "text_encoder":
        return llm_parameters(dims(model).text_encoder)
    if component == "vae":
        return kl_parameters(dims(model).vae)
    spec = dims(model).transformer
    blocks = (spec.n_layers + 2 * spec.n_refiner_layers) * _layer(spec)
    doors = spec.dim * (2 * _PATCH * _PATCH * spec.in_channels + spec.cap_feat_dim)
    return blocks + doors + _once_per_item(spec)


def block_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Number of weights of each layer, with its modulation."""
    spec = dims(model).transformer
    return (_layer(spec) + 4 * spec.modulated * spec.dim,) * spec.n_layers


def fp8_parameters(model: ModelSpec) -> tuple[int, ...]:
    """Those of each layer without its modulation."""
    return (_layer(dims(model).transformer),) * layers(model)


def forward_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """About 16 widths per token."""
    return tokens(model, bucket) * BYTES[model.dtype] * 16 * width(model)


def decode_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """Peak bytes beside the weights while one row is decoded."""
    return kl_decode_bytes(dims(model).vae, bucket, BYTES[model.dtype])
