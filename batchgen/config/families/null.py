"""No model at all: rows sleep for as long as they are predicted to take. For trying a cluster, its
profile and the runner, where nothing is to be drawn.

A step is 10 ms on the CPU figures of the packaged profiles (0.05 TFLOP/s at the share of it that
planning expects), and shorter on a faster device. Frames are noise of the row's seed.
"""

from __future__ import annotations

from batchgen.config.component import Component
from batchgen.config.family import Capabilities, ComponentBytes, Stride
from batchgen.config.schema import ModelSpec
from batchgen.records import Bucket

NUMERICS_VERSION = 1
CAPABILITIES = Capabilities(memory_modes=("auto",))
COMPONENTS: tuple[Component, ...] = ()

_STEP_FLOPS = 2.695e8  # with one layer's launch: 10 ms


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


def weight_bytes(model: ModelSpec) -> ComponentBytes:
    return ComponentBytes(transformer=0, text_encoder=0, vae=0)


def activation_bytes(model: ModelSpec, bucket: Bucket) -> int:
    """The frames."""
    return 3 * bucket.num_frames * bucket.width * bucket.height
