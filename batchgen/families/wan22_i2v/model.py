"""Wan2.2 image-to-video A14B: two experts that see the given frames.

With equal seed and settings it gives what diffusers' WanImageToVideoPipeline gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.families.tiling import tiled
from batchgen.families.wan.frames import GivenFrames
from batchgen.families.wan22.model import Wan22


def build(
    spec: ModelSpec, system: SystemConfig, components: Mapping[str, Any], device: torch.device
) -> Wan22I2V:
    """Make the model from its loaded components."""
    return tiled(Wan22I2V(spec, system, components, device), system.vae)


class Wan22I2V(Wan22, GivenFrames):
    """A Wan with two experts and given frames (`batchgen.families.family.FamilyModel`)."""
