"""Wan2.2 TI2V-5B: a Wan of text and image with an autoencoder of 16x16 pixels a latent cell.

Each token has a timestep, so that the embedding of timesteps takes 2N x (256d + 7d^2) FLOPs beside
those of `wan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from batchgen.config.schema import ModelSpec
from batchgen.families.family import Capabilities
from batchgen.families.tiling import TiledDecoder, reach_of
from batchgen.families.wan import autoencoder
from batchgen.families.wan import spec as wan
from batchgen.families.wan.autoencoder import PatchedVae
from batchgen.families.wan.scheduler import shift_of, solver_of
from batchgen.families.wan.spec import (
    attention_flops,
    block_parameters,
    boundary,
    branches,
    decode_flops,
    encode_flops,
    forward_bytes,
    fp8_parameters,
    heads,
    layers,
    max_tokens,
    parameters,
    stride,
    tokens,
    width,
)
from batchgen.request import Bucket, ModelDefaults

__all__ = [
    "COMPONENTS",
    "MEDIA",
    "NUMERICS_VERSION",
    "OWN_ENGINE",
    "PIPELINE",
    "Dims",
    "attention_flops",
    "block_parameters",
    "boundary",
    "branches",
    "capabilities",
    "decode_bytes",
    "decode_flops",
    "defaults",
    "encode_flops",
    "forward_bytes",
    "forward_flops",
    "fp8_parameters",
    "heads",
    "image_flops",
    "layers",
    "max_tokens",
    "parameters",
    "serves",
    "settings",
    "stride",
    "tokens",
    "width",
]

NUMERICS_VERSION = 1
PIPELINE = wan.PIPELINE
MEDIA: Literal["video", "image"] = "video"
OWN_ENGINE = False
_STRIDE = 640  # pixels of a tile; of smaller ones most would be beside it
COMPONENTS = (
    wan.TRANSFORMER,
    wan.TEXT_ENCODER,
    replace(wan.VAE, also=("encode",)),
    wan.SCHEDULER,
    wan.TOKENIZER,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims(wan.Dims):
    """Dimensions of a Wan whose tokens have timesteps of their own."""

    vae: PatchedVae = field(default_factory=PatchedVae)
    expand_timesteps: bool = True  # as model_index.json says


def capabilities(model: ModelSpec) -> Capabilities:
    columns = ("guidance_scale", "image", "lora")
    vae = wan.dims(model).vae
    assert isinstance(vae, PatchedVae)
    tiles = TiledDecoder(
        vae.spatial_factor,
        vae.temporal_factor,
        reach_of(len(vae.dim_mult), convolutions=2 * (vae.num_res_blocks + 1)),
        vae.decoder_base_dim * vae.dim_mult[-1],
        stride=_STRIDE,
    )
    return replace(wan.capabilities(model), columns=columns, tiles=tiles)


def serves(index: Mapping[str, Any]) -> bool:
    """Whether it is a Wan that spreads its timesteps over the tokens."""
    kinds = (PIPELINE, "WanImageToVideoPipeline")
    return index.get("_class_name") in kinds and bool(index.get("expand_timesteps"))


def settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"expand_timesteps": True} if index.get("expand_timesteps") else {}


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    """As published with the model."""
    return ModelDefaults(
        width=1280,
        height=704,
        num_frames=121,
        fps=24,
        num_steps=50,
        guidance_scale=5.0,
        solver=solver_of(scheduler),
        sigma_shift=shift_of(scheduler, 5.0),
    )


def forward_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of one item of one forward (module docstring)."""
    transformer, n = wan.dims(model).transformer, tokens(model, bucket)
    d = transformer.width
    times = 2.0 * n * (transformer.freq_dim * d + 7 * d * d)
    return wan.forward_flops(model, bucket) + times


def image_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of encoding the frame that a row is given."""
    _, rows, columns = wan.latent_shape(model, bucket)
    return autoencoder.encode_flops(wan.dims(model).vae, 1, rows, columns)


def decode_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """About 21 maps of the last stage of patches for the four frames that are made at a time, in
    float32, and the video: two thirds are what its first residual block makes of an input twice as
    wide, the others what convolutions keep of the frames before."""
    vae = wan.dims(model).vae
    assert isinstance(vae, PatchedVae)
    at_once = min(bucket.num_frames, vae.temporal_factor)
    patches = bucket.width * bucket.height // vae.patch_size**2
    video = 3 * 4 * bucket.width * bucket.height * bucket.num_frames
    return 21 * 4 * at_once * patches * vae.decoder_base_dim + video
