"""Wan2.1 image-to-video: a transformer that sees the given frames, and after its texts what CLIP
sees in the images.

With equal seed and settings it gives what diffusers' WanImageToVideoPipeline gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.families.family import Condition, Item
from batchgen.families.tiling import tiled
from batchgen.families.wan.frames import GivenFrames
from batchgen.families.wan_i2v import spec as light
from batchgen.numerics.noise import seeded_noise
from batchgen.request import Bucket, Request

if TYPE_CHECKING:
    from PIL import Image


def build(
    spec: ModelSpec, system: SystemConfig, components: Mapping[str, Any], device: torch.device
) -> WanI2V:
    """Make the model from its loaded components."""
    return tiled(WanI2V(spec, components, device), system.vae)


class WanI2V(GivenFrames):
    """A Wan with one expert and given frames (`batchgen.families.family.FamilyModel`)."""

    def __init__(
        self, spec: ModelSpec, components: Mapping[str, Any], device: torch.device
    ) -> None:
        super().__init__(spec, components, device)
        self.image_processor: Any = components.get("image_processor")
        self.image_encoder: Any = components.get("image_encoder")

    def encode_images(self, request: Request, images: Sequence[Image.Image]) -> Condition:
        """The given frames, and the states of each image, (images, tokens, width)."""
        seen = self.image_processor(images=list(images), return_tensors="pt").to(self.device)
        states = self.image_encoder(**seen, output_hidden_states=True).hidden_states[-2]
        given = super().encode_images(request, images)
        return (*given, states.to(self.transformer.dtype))

    def image_states(self, items: Sequence[Item]) -> Tensor:
        return torch.cat([item.shared[1] for item in items])

    def random_item(self, bucket: Bucket, seed: int, expert: str) -> Item:
        item, encoder = (
            super().random_item(bucket, seed, expert),
            light.dims(self.spec).image_encoder,
        )
        shape = (light.images(self.spec), encoder.tokens, encoder.hidden_size)
        states = seeded_noise(shape, seed + 3).to(self.device, self.transformer.dtype)
        return replace(item, shared=(*item.shared, states))
