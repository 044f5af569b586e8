"""Frames that a Wan is given: pictures as its autoencoder sees them, and what it draws around them.

In the order of operations of diffusers' WanImageToVideoPipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from batchgen.families.family import Condition, Item
from batchgen.families.wan import spec as light
from batchgen.families.wan.model import Wan
from batchgen.numerics.noise import seeded_noise
from batchgen.request import Bucket, Request

if TYPE_CHECKING:
    from PIL import Image


def as_frame(image: Image.Image, bucket: Bucket, factor: int) -> Tensor:
    """The picture resized to a bucket, (1, 3, 1, height, width) in -1 .. 1."""
    processor = VideoProcessor(vae_scale_factor=factor)
    pixels = processor.preprocess(image, height=bucket.height, width=bucket.width)
    frame: Tensor = pixels.to(dtype=torch.float32).unsqueeze(2)
    return frame


def as_latents(vae: Any, video: Tensor) -> Tensor:
    """The most likely latents of a video, of mean 0 and deviation 1, float32."""
    config, like = vae.config, (1, -1, 1, 1, 1)
    latents = vae.encode(video.to(vae.dtype)).latent_dist.mode().float()
    mean = torch.tensor(config.latents_mean).view(like).to(latents)
    inverse = 1.0 / torch.tensor(config.latents_std).view(like).to(latents)
    return (latents - mean) * inverse


class GivenFrames(Wan):
    """A Wan whose transformer sees the given frames beside the latents: a mask of four channels
    (the frames of a latent frame), then the latents of the given frames and grey ones between
    (`batchgen.families.family.DrawsFromImages`)."""

    def encode_images(self, request: Request, images: Sequence[Image.Image]) -> Condition:
        bucket, vae = request.bucket, light.dims(self.spec).vae
        frames = [as_frame(image, bucket, vae.spatial_factor) for image in images]
        first, last = frames[0], frames[1:]
        grey = bucket.num_frames - len(frames)
        video = torch.cat([first, first.new_zeros(1, 3, grey, *first.shape[3:]), *last], dim=2)
        latents = as_latents(self.vae, video.to(self.device))
        mask = _mask(bucket.num_frames, bool(last), vae.temporal_factor)
        mask = mask.expand(-1, -1, *latents.shape[2:]).to(latents)
        return (torch.cat([mask, latents], dim=1),)

    def put_back(self, latents: Tensor, shared: Condition) -> Tensor:
        return latents

    def inputs(self, item: Item) -> Tensor:
        return torch.cat([item.latents, item.shared[0]], dim=1)

    def random_item(self, bucket: Bucket, seed: int, expert: str) -> Item:
        dims = light.dims(self.spec)
        channels = dims.transformer.in_channels - dims.vae.z_dim
        shape = (1, channels, *light.latent_shape(self.spec, bucket))
        given = seeded_noise(shape, seed + 2).to(self.device)
        return replace(super().random_item(bucket, seed, expert), shared=(given,))


def _mask(frames: int, last: bool, together: int) -> Tensor:
    """1 where a frame is given: (1, frames of a latent frame, latent frames, 1, 1)."""
    mask = torch.zeros(1, 1, frames, 1, 1)
    mask[:, :, 0] = 1
    if last:
        mask[:, :, -1] = 1
    whole = torch.cat([mask[:, :, :1].repeat_interleave(together, dim=2), mask[:, :, 1:]], dim=2)
    return whole.view(1, -1, together, 1, 1).transpose(1, 2)
