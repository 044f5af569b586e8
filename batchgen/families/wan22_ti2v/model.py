"""Wan2.2 TI2V-5B: one transformer, whose tokens have each a timestep of their own.

With equal seed and settings it gives what diffusers' WanPipeline gives, and with an image what
WanImageToVideoPipeline gives. There the first latent frame is the image's, at timestep 0; it is put
in at each step, and once more after the last. Step caches look at the timestep of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from batchgen.caches.strategy import SignalKind
from batchgen.config.schema import ModelSpec, SystemConfig
from batchgen.families.family import Condition, Item
from batchgen.families.sequence import Cut
from batchgen.families.tiling import tiled
from batchgen.families.wan import spec as light
from batchgen.families.wan.frames import as_frame, as_latents
from batchgen.families.wan.model import SEQUENCE, Wan
from batchgen.numerics.edges import in_batches
from batchgen.numerics.noise import seeded_noise
from batchgen.request import Bucket, Request

if TYPE_CHECKING:
    from PIL import Image


def build(
    spec: ModelSpec, system: SystemConfig, components: Mapping[str, Any], device: torch.device
) -> WanTI2V:
    """Make the model from its loaded components."""
    return tiled(WanTI2V(spec, components, device), system.vae)


class WanTI2V(Wan):
    """A Wan of text and image (`batchgen.families.family.FamilyModel`, `DrawsFromImages`)."""

    sequence = replace(SEQUENCE, cuts=(Cut("", "timestep", "video", dim=1), *SEQUENCE.cuts))

    def encode_images(self, request: Request, images: Sequence[Image.Image]) -> Condition:
        factor = light.dims(self.spec).vae.spatial_factor
        frame = as_frame(images[0], request.bucket, factor)
        return (as_latents(self.vae, frame.to(self.device)),)

    def put_back(self, latents: Tensor, shared: Condition) -> Tensor:
        """In the pipeline's order of operations."""
        drawn = _drawn(latents, given=True)
        return (1 - drawn) * shared[0] + drawn * latents

    def forward(self, items: Sequence[Item]) -> list[Tensor]:
        """The modules of timesteps see the tokens of an item at once, as in the pipeline."""
        with in_batches((1,) * len(items)):
            return super().forward(items)

    def signal(self, item: Item, kind: SignalKind) -> Tensor:
        """As each token is modulated, where the caller looks at tokens."""
        with in_batches((1,)):
            return super().signal(item, kind)

    def modulation(self, item: Item, projected: Tensor) -> Tensor:
        """(1, 6, frames, rows, columns, width)"""
        embedder = self.transformer.condition_embedder
        times = self._times(item).flatten()
        embedded = self.embedded(embedder, times).to(self.dtypes["transformer"])
        own = embedder.time_proj(embedder.act_fn(embedded)).unflatten(1, (6, -1))
        grid = light.token_grid(self.spec, item.request.bucket)
        table = self.transformer.blocks[0].scale_shift_table + own.float()
        return table.transpose(0, 1).unflatten(1, grid).unsqueeze(0)

    def inputs(self, item: Item) -> Tensor:
        return self.put_back(item.latents, item.shared) if item.shared else item.latents

    def times(self, items: Sequence[Item]) -> Tensor:
        return torch.cat([self._times(item) for item in items])

    def _times(self, item: Item) -> Tensor:
        """(1, tokens): the row's timestep; 0 where the frame is given."""
        _, rows, columns = light.dims(self.spec).transformer.patch_size
        drawn = _drawn(item.latents, given=bool(item.shared))[0, 0, :, ::rows, ::columns]
        return (drawn * item.timestep).flatten().unsqueeze(0)

    def random_item(self, bucket: Bucket, seed: int, expert: str) -> Item:
        """Every second one with an image."""
        item = super().random_item(bucket, seed, expert)
        if seed % 2 == 0:
            return item
        shape = (*item.latents.shape[:2], 1, *item.latents.shape[3:])
        return replace(item, shared=(seeded_noise(shape, seed + 2).to(self.device),))


def _drawn(latents: Tensor, given: bool) -> Tensor:
    """1 where latents are drawn, 0 in a first frame that is given: (1, 1, frames, rows, columns),
    float32."""
    mask = torch.ones(1, 1, *latents.shape[2:], device=latents.device)
    if given:
        mask[:, :, 0] = 0
    return mask
