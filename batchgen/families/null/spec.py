"""No model at all: rows sleep for as long as they are predicted to take. For trying a cluster, its
profile and the runner, where nothing is to be drawn.

A step is 10 ms on the CPU figures of the packaged profiles (0.05 TFLOP/s at the share of it that
planning expects), and shorter on a faster device. Frames are noise of the row's seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from batchgen.config.schema import ModelSpec
from batchgen.families.family import Capabilities, Component, Scales, Stride
from batchgen.request import Bucket, ModelDefaults

NUMERICS_VERSION = 1
PIPELINE = ""
MEDIA: Literal["video", "image"] = "video"
OWN_ENGINE = True
COMPONENTS: tuple[Component, ...] = ()

_STEP_FLOPS = 2.695e8  # with one layer's launch: 10 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """Nothing has a size."""


def capabilities(model: ModelSpec) -> Capabilities:
    return Capabilities(memory_modes=("auto",))


def serves(index: Mapping[str, Any]) -> bool:
    return False


def settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    return ModelDefaults(width=16, height=16, num_frames=1, fps=8, num_steps=10, guidance_scale=1.0)


def branches(model: ModelSpec, row: Scales) -> Any:
    """As a guided video model has them, so that a trial of the runner looks like one."""
    return 1 + (row.guidance_scale > 1.0)


def boundary(model: ModelSpec) -> float | None:
    return None


def max_tokens(model: ModelSpec) -> int:
    return 512


def layers(model: ModelSpec) -> int:
    return 1


def heads(model: ModelSpec) -> int:
    return 1


def width(model: ModelSpec) -> int:
    return 1


def stride(model: ModelSpec) -> Stride:
    """Any number of small frames."""
    return Stride(pixels=16, frames=1, max_side=256, max_frames=64)


def tokens(model: ModelSpec, bucket: Bucket) -> int:
    """One a 16x16 tile of a frame."""
    return bucket.num_frames * (bucket.width // 16) * (bucket.height // 16)


def forward_flops(model: ModelSpec, bucket: Bucket) -> float:
    """The same for every size: the steps of a row alone say how long it takes."""
    return _STEP_FLOPS


def encode_flops(model: ModelSpec) -> float:
    return 0.0


def decode_flops(model: ModelSpec, bucket: Bucket) -> float:
    return 0.0


def parameters(model: ModelSpec, component: str) -> int:
    return 0


def forward_bytes(model: ModelSpec, bucket: Bucket) -> int:
    return 0


def decode_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """The frames."""
    return 3 * bucket.num_frames * bucket.width * bucket.height
