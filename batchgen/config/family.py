"""What planning asks of a model family, without torch: one module of `families/` answers it all."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from batchgen.config.component import Component
from batchgen.config.schema import ModelSpec
from batchgen.errors import ConfigError, closest
from batchgen.records import Bucket

FAMILIES = Path(__file__).parent / "families"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What the engine can do with a family today: every other legal setting is refused."""

    cfg: tuple[int, ...] = (1,)
    ulysses: tuple[int, ...] = (1,)
    ring: tuple[int, ...] = (1,)
    memory_modes: tuple[str, ...] = ("auto", "resident", "model")
    store_dtypes: tuple[str, ...] = ("same",)
    attention: tuple[str, ...] = ("auto", "sdpa")
    compile_modes: tuple[str, ...] = ("off",)
    tiled_vae: bool = False
    cache_strategies: tuple[str, ...] = ("none",)
    experts: int = 1  # two-expert models take guidance_scale_2 and a boundary
    image_input: bool = False
    lora: bool = False


@dataclass(frozen=True, slots=True)
class Stride:
    """Legal sizes: width and height are multiples of `pixels`, frames are 1 + k x `frames`."""

    pixels: int
    frames: int
    max_side: int  # pixels
    max_frames: int


@dataclass(frozen=True, slots=True)
class ComponentBytes:
    """Bytes of weights by component, as loaded."""

    transformer: int
    text_encoder: int
    vae: int

    @property
    def total(self) -> int:
        return self.transformer + self.text_encoder + self.vae

    @property
    def largest(self) -> int:
        return max(self.transformer, self.text_encoder, self.vae)


class Family(Protocol):
    """The light side of a family; FLOPs count a multiply-add as two."""

    NUMERICS_VERSION: int  # raised by hand whenever pixels of equal requests change
    CAPABILITIES: Capabilities
    COMPONENTS: tuple[Component, ...]  # of a checkpoint; all that can change pixels

    def stride(self, model: ModelSpec) -> Stride:
        """Which sizes and frame counts the model can draw."""

    def tokens(self, model: ModelSpec, bucket: Bucket) -> int:
        """Video tokens of one item of one forward."""

    def forward_flops(self, model: ModelSpec, bucket: Bucket) -> float:
        """FLOPs of the transformer for one item: one row, one branch, one step."""

    def encode_flops(self, model: ModelSpec) -> float:
        """FLOPs of the text encoder for one text."""

    def decode_flops(self, model: ModelSpec, bucket: Bucket) -> float:
        """FLOPs of the video decoder for one row."""

    def weight_bytes(self, model: ModelSpec) -> ComponentBytes:
        """Bytes of the weights in the model's dtype."""

    def activation_bytes(self, model: ModelSpec, bucket: Bucket) -> int:
        """Peak bytes beside the weights for one item: the larger of forward and decode."""


def load_family(name: str) -> Family:
    """The family module `name`; raises ConfigError naming those there are."""
    known = sorted(p.stem for p in FAMILIES.glob("*.py") if p.stem != "__init__")
    if name not in known:
        listed = ", ".join(known)
        raise ConfigError(f"model.family: {name!r} is not one of {listed}{closest(name, known)}")
    return cast(Family, importlib.import_module(f"batchgen.config.families.{name}"))
