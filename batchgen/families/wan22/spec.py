"""Wan2.2 text-to-video A14B: a Wan with two experts of the same architecture. `transformer` draws
the steps of high noise, down to the boundary; `transformer_2` draws the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from batchgen.config.schema import ModelSpec
from batchgen.families.family import Capabilities
from batchgen.families.wan import spec as wan
from batchgen.families.wan.scheduler import shift_of, solver_of
from batchgen.families.wan.spec import (
    attention_flops,
    block_parameters,
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
    """Dimensions of a Wan with two equal experts, and where the second takes over."""

    boundary: float = 0.875  # share of the training timesteps; `transformer` draws from there up


def capabilities(model: ModelSpec) -> Capabilities:
    columns = ("guidance_scale", "guidance_scale_2", "lora")
    return replace(wan.capabilities(model), boundary=True, columns=columns)


def serves(index: Mapping[str, Any]) -> bool:
    """Whether it is a Wan with a second transformer."""
    second = (index.get("transformer_2") or [None])[0]
    return index.get("_class_name") == PIPELINE and second is not None


def settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    """The boundary, which is in model_index.json."""
    return {"boundary": index["boundary_ratio"]} if index.get("boundary_ratio") else {}


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    """As published with the model; the low-noise expert has a lower guidance scale."""
    return ModelDefaults(
        width=1280,
        height=720,
        num_frames=81,
        fps=16,
        num_steps=40,
        guidance_scale=4.0,
        guidance_scale_2=3.0,
        solver=solver_of(scheduler),
        sigma_shift=shift_of(scheduler, 12.0),
    )


def boundary(model: ModelSpec) -> float | None:
    assert isinstance(model.dims, Dims)
    return model.dims.boundary
