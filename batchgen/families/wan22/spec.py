"""Wan2.2 text-to-video A14B: a Wan with two experts of one architecture. `transformer` draws the
steps of high noise, up to the boundary; `transformer_2` the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from batchgen.config.schema import ModelSpec
from batchgen.families.family import Capabilities
from batchgen.families.wan import spec as wan
from batchgen.families.wan.spec import (
    branches,
    decode_bytes,
    decode_flops,
    encode_flops,
    forward_bytes,
    forward_flops,
    heads,
    layers,
    max_tokens,
    parameters,
    stride,
    tokens,
    width,
)
from batchgen.request import ModelDefaults

__all__ = [
    "COMPONENTS",
    "MEDIA",
    "NUMERICS_VERSION",
    "OWN_ENGINE",
    "PIPELINE",
    "Dims",
    "boundary",
    "branches",
    "capabilities",
    "decode_bytes",
    "decode_flops",
    "defaults",
    "encode_flops",
    "forward_bytes",
    "forward_flops",
    "heads",
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
COMPONENTS = (
    wan.TRANSFORMER,
    replace(wan.TRANSFORMER, name="transformer_2"),
    wan.TEXT_ENCODER,
    wan.VAE,
    wan.SCHEDULER,
    wan.TOKENIZER,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims(wan.Dims):
    """Dimensions of a Wan whose experts are alike, and where one takes over from the other."""

    boundary: float = 0.875  # of the 1000 training timesteps: from there up `transformer` draws


def capabilities(model: ModelSpec) -> Capabilities:
    return Capabilities(boundary=True, columns=("guidance_scale", "guidance_scale_2"))


def serves(index: Mapping[str, Any]) -> bool:
    """A Wan with a second transformer."""
    second = (index.get("transformer_2") or [None])[0]
    return index.get("_class_name") == PIPELINE and second is not None


def settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    """The boundary stands in model_index.json."""
    return {"boundary": index["boundary_ratio"]} if index.get("boundary_ratio") else {}


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    """As published with the model; the low-noise expert is guided less."""
    return ModelDefaults(
        width=1280,
        height=720,
        num_frames=81,
        fps=16,
        num_steps=40,
        guidance_scale=4.0,
        guidance_scale_2=3.0,
        solver=wan.solver_of(scheduler),
        sigma_shift=wan.shift_of(scheduler, 12.0),
    )


def boundary(model: ModelSpec) -> float | None:
    assert isinstance(model.dims, Dims)
    return model.dims.boundary
