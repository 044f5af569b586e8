"""No model at all: rows sleep for their predicted time and come out as noise of their seed. For
trying a cluster, its profile and the runner.

A step takes 10 ms on the CPU of the packaged profiles (0.05 TFLOP/s, of which planning expects a
share), and less on a faster device.
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

_STEP_FLOPS = 2.695e8  # 10 ms together with the launch of one layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Dims:
    """No dimensions."""


def capabilities(model: ModelSpec) -> Capabilities:
    return Capabilities(
        memory_modes=("auto",), store_dtypes=("same",), compile_modes=("off",), packs=False
    )


def serves(index: Mapping[str, Any]) -> bool:
    return False


def settings(index: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


def defaults(dims: Dims, scheduler: Mapping[str, Any]) -> ModelDefaults:
    return ModelDefaults(width=16, height=16, num_frames=1, fps=8, num_steps=10, guidance_scale=1.0)


def branches(model: ModelSpec, row: Scales) -> Any:
    """Two for a guided row, as in a video model, so that a trial of the runner resembles one."""
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
    """Small frames, in any number."""
    return Stride(pixels=16, frames=1, max_side=256, max_frames=64)


def tokens(model: ModelSpec, bucket: Bucket) -> int:
    """One for each 16x16 tile of a frame."""
    return bucket.num_frames * (bucket.width // 16) * (bucket.height // 16)


def forward_flops(model: ModelSpec, bucket: Bucket) -> float:
    """The same for every size, so that a row's time depends on its steps alone."""
    return _STEP_FLOPS


def encode_flops(model: ModelSpec) -> float:
    return 0.0


def decode_flops(model: ModelSpec, bucket: Bucket) -> float:
    return 0.0


def parameters(model: ModelSpec, component: str) -> int:
    return 0


def block_parameters(model: ModelSpec) -> tuple[int, ...]:
    return ()


def forward_bytes(model: ModelSpec, bucket: Bucket) -> int:
    return 0


def decode_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """The frames."""
    return 3 * bucket.num_frames * bucket.width * bucket.height
