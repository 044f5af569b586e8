"""Wan2.2 image-to-video A14B: a Wan with two experts that see the first frame, or first and last,
beside the latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from batchgen.config.schema import ModelSpec
from batchgen.families.family import Capabilities
from batchgen.families.wan import spec as wan
from batchgen.families.wan.scheduler import shift_of, solver_of
from batchgen.families.wan22 import spec as wan22
from batchgen.families.wan22.spec import (
    attention_flops,
    block_parameters,
    boundary,
    branches,
    decode_bytes,
    decode_flops,
    encode_flops,
    forward_bytes,
    forward_flops,
    fp8_parameters,
    heads,
    layers,
    max_tokens,
    parameters,
    settings,
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
PIPELINE = "WanImageToVideoPipeline"
MEDIA: Literal["video", "image"] = "video"
OWN_ENGINE = False
COMPONENTS = tuple(
    replace(part, also=("encode",)) if part.name == "vae" else part for part in wan22.COMPONENTS
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims(wan22.Dims):
    """Dimensions of a Wan with two equal experts; its transformers see 36 channels: latents, a mask
    of four, and the latents of the given frames."""

    boundary: float = 0.9


def capabilities(model: ModelSpec) -> Capabilities:
    served = wan22.capabilities(model)
    return replace(served, columns=(*served.columns, "image", "last_image"), needs=("image",))


def serves(index: Mapping[str, Any]) -> bool:
    """Whether it is a Wan that draws from an image with two transformers."""
    second = (index.get("transformer_2") or [None])[0]
    return index.get("_class_name") == PIPELINE and second is not None


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    """As published with the model."""
    return ModelDefaults(
        width=1280,
        height=720,
        num_frames=81,
        fps=16,
        num_steps=40,
        guidance_scale=3.5,
        guidance_scale_2=3.5,
        solver=solver_of(scheduler),
        sigma_shift=shift_of(scheduler, 5.0),
    )


def image_flops(model: ModelSpec, bucket: Bucket) -> float:
    """FLOPs of encoding what one row is given."""
    return wan.given_flops(model, bucket)
