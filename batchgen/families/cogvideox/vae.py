"""The video autoencoder of CogVideoX: dimensions, FLOPs, weights, bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from batchgen.errors import ConfigError
from batchgen.families.dims import ComponentDims, stored
from batchgen.families.tiling import TiledDecoder

_KERNEL, _FLAT = 27, 9  # taps of a 3x3x3 convolution, and of one within a frame
_AT_ONCE = 3  # latent frames that are decoded at a time: two, and the first with them


@dataclass(frozen=True, slots=True, kw_only=True)
class CogVae(ComponentDims):
    """Dimensions as in its diffusers config."""

    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    down_block_types: tuple[str, ...] = ("CogVideoXDownBlock3D",) * 4
    up_block_types: tuple[str, ...] = ("CogVideoXUpBlock3D",) * 4
    layers_per_block: int = 3
    norm_num_groups: int = 32
    scaling_factor: float = 1.15258426
    temporal_factor: int = stored(4, "temporal_compression_ratio")  # frames per latent frame

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell."""
        return int(2 ** (len(self.block_out_channels) - 1))

    def check(self) -> None:
        """ConfigError unless lists have the lengths that the levels need."""
        levels = len(self.block_out_channels)
        for key, values in (
            ("down_block_types", self.down_block_types),
            ("up_block_types", self.up_block_types),
        ):
            if len(values) != levels:
                raise ConfigError(f"model.vae.{key}: {list(values)} must have {levels} entries")


@dataclass(frozen=True, slots=True)
class _Level:
    """A level of the decoder."""

    inputs: int
    channels: int
    grows: bool  # twice as many rows and columns
    grows_in_time: bool


def _levels(vae: CogVae) -> Iterator[_Level]:
    """Of the decoder, from latents to pixels."""
    channels = [*reversed(vae.block_out_channels)]
    doublings, last = vae.temporal_factor.bit_length() - 1, len(channels) - 1
    for number, (before, own) in enumerate(pairwise([channels[0], *channels])):
        yield _Level(before, own, number < last, number < min(doublings, last))


def _resnets(inputs: int, outputs: int, count: int, latents: int = 0) -> int:
    """Weights of `count` residual blocks, the first of which may change the width; the decoder's
    norms see the latents."""
    shortcut = inputs * outputs if inputs != outputs else 0
    norms = 2 * latents * (inputs + (2 * count - 1) * outputs)
    return _KERNEL * (inputs * outputs + (2 * count - 1) * outputs**2) + shortcut + norms


def vae_decode_flops(vae: CogVae, frames: int, height: int, width: int) -> float:
    """FLOPs of the decoder's convolutions for one row of so many latent frames, rows, columns."""
    cells, top = float(frames * height * width), vae.block_out_channels[-1]
    middle = _resnets(top, top, 2, vae.latent_channels)
    total = 2 * cells * (_KERNEL * vae.latent_channels * top + middle)
    for level in _levels(vae):
        layers = vae.layers_per_block + 1
        total += 2 * cells * _resnets(level.inputs, level.channels, layers, vae.latent_channels)
        if level.grows:
            height, width = 2 * height, 2 * width
            frames = 2 * frames - 1 if level.grows_in_time else frames
            cells = float(frames * height * width)
            total += 2 * cells * _FLAT * level.channels**2
    low = vae.block_out_channels[0]
    return total + 2 * cells * (_KERNEL * low * 3 + 2 * vae.latent_channels * low)


def vae_parameters(vae: CogVae) -> int:
    """Number of weights of both halves, without biases and norms."""
    channels, layers, latents = vae.block_out_channels, vae.layers_per_block, vae.latent_channels
    low, top = channels[0], channels[-1]
    total = _resnets(top, top, 2) + _resnets(top, top, 2, latents)
    total += _KERNEL * (3 * latents * top + 2 * 3 * low) + 2 * latents * low
    for level in _levels(vae):
        total += _resnets(level.inputs, level.channels, layers + 1, latents)
        total += _FLAT * level.channels**2 * level.grows
    for before, own in pairwise([low, *channels]):
        total += _resnets(before, own, layers)
    return total + _FLAT * sum(own**2 for own in channels[:-1])


def vae_tiles(vae: CogVae, size: int) -> TiledDecoder:
    """Layer by layer it keeps a piece's widest map at full resolution, what becomes of it, and the
    last two frames that each convolution has seen; `size`: bytes a value."""
    low, at_once = vae.block_out_channels[0], 1 + (_AT_ONCE - 1) * vae.temporal_factor
    seen, cells = 2.0 * low, 1.0  # channels, of a pixel
    for level in reversed([*_levels(vae)]):
        cells /= 4 if level.grows else 1
        each = level.inputs + (2 * vae.layers_per_block + 1) * level.channels
        seen += 2 * cells * each
    maps = _widest(vae) + low + math.ceil(seen / at_once)
    return TiledDecoder(
        vae.spatial_factor, vae.temporal_factor, maps=maps, at_once=at_once, size=size
    )


def _widest(vae: CogVae) -> int:
    """Most channels of a map at full resolution."""
    return vae.block_out_channels[min(1, len(vae.block_out_channels) - 1)]


def vae_decode_bytes(vae: CogVae, size: int, frames: int, height: int, width: int) -> int:
    """Peak bytes beside the weights for one row of so many latent frames, rows, columns, `size`
    bytes a value: about 10 maps of a piece's second level at full resolution, half of which is what
    convolutions and norms keep of the piece before and of this one, and the video."""
    pixels, at_once = height * width * vae.spatial_factor**2, min(frames, _AT_ONCE)
    maps = 10 * size * (1 + (at_once - 1) * vae.temporal_factor) * pixels * _widest(vae)
    return maps + 3 * 4 * (1 + (frames - 1) * vae.temporal_factor) * pixels
