"""Wan2.2 text-to-video A14B: what differs from a Wan with one expert.

With equal seed and settings it gives what diffusers' WanPipeline gives. As there, `guidance_scale`
alone (of the first expert) decides whether a row is guided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.families.family import Item
from batchgen.families.tiling import tiled
from batchgen.families.wan.model import Wan
from batchgen.families.wan22 import spec as light
from batchgen.numerics.guidance import classifier_free
from batchgen.request import Bucket, Request

TIMESTEPS = 1000  # of the training


def build(
    spec: ModelSpec, system: SystemConfig, components: Mapping[str, Any], device: torch.device
) -> Wan22:
    """Make the model from its loaded components."""
    return tiled(Wan22(spec, system, components, device), system.vae)


class Wan22(Wan):
    """A Wan with two experts (`batchgen.families.family.FamilyModel`)."""

    experts = ("transformer", "transformer_2")

    def __init__(
        self,
        spec: ModelSpec,
        system: SystemConfig,
        components: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        super().__init__(spec, components, device)
        asked = system.sampler.boundary
        share = light.boundary(spec) if asked is None else asked
        assert share is not None
        self.boundary = share * TIMESTEPS

    def expert(self, request: Request, timestep: float) -> str:
        """The expert for the timestep, as in the pipeline. Timesteps fall, so a row changes its
        expert only once."""
        return self.experts[timestep < self.boundary]

    def combine(self, request: Request, timestep: float, velocities: Sequence[Tensor]) -> Tensor:
        """Guided by the scale of the expert that draws the step."""
        scale = request.guidance_scale
        if timestep < self.boundary and request.guidance_scale_2 is not None:
            scale = request.guidance_scale_2
        return classifier_free(velocities, scale)

    def random_item(self, bucket: Bucket, seed: int, expert: str) -> Item:
        """An item at one of the expert's timesteps."""
        top, steps = self.boundary - 1, self.boundary - 1
        if expert == self.experts[0]:
            top, steps = TIMESTEPS - 1.0, TIMESTEPS - self.boundary
        timestep = top - 137 * seed % max(1, int(steps))
        return replace(super().random_item(bucket, seed, expert), timestep=timestep)
