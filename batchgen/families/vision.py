"""Images that rows are given: what encoding them takes, and the encoders that families use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from batchgen.config.schema import ModelSpec
from batchgen.families.dims import ComponentDims
from batchgen.request import Bucket


@runtime_checkable
class SeesImages(Protocol):
    """A `spec.py` of rows that are given images."""

    def image_flops(self, model: ModelSpec, bucket: Bucket) -> float:
        """FLOPs of encoding what one row is given, most of them an autoencoder's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipVisionDims(ComponentDims):
    """Dimensions of the image encoder of a CLIP, as in its transformers config."""

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "gelu"

    @property
    def tokens(self) -> int:
        """Of one image: its patches, and one for the whole."""
        return (self.image_size // self.patch_size) ** 2 + 1


def clip_vision_flops(image: ClipVisionDims) -> float:
    """FLOPs for one image."""
    d, n = image.hidden_size, image.tokens
    linear = 2 * n * (4 * d * d + 2 * d * image.intermediate_size)
    patches = 2 * n * 3 * image.patch_size**2 * d
    return float(image.num_hidden_layers * (linear + 4 * n * n * d) + patches)


def clip_vision_parameters(image: ClipVisionDims) -> int:
    """Number of weights, with the patches and the table of positions."""
    d = image.hidden_size
    block = 4 * d * d + 2 * d * image.intermediate_size
    return image.num_hidden_layers * block + (3 * image.patch_size**2 + image.tokens) * d
