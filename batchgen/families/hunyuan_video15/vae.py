"""The video autoencoder of HunyuanVideo 1.5: dimensions, FLOPs, weights, bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from batchgen.errors import ConfigError
from batchgen.families.dims import ComponentDims, stored
from batchgen.families.tiling import TiledDecoder

_KERNEL = 27  # taps of a 3x3x3 convolution


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunyuan15Vae(ComponentDims):
    """Dimensions as in its diffusers config."""

    latent_channels: int = 32
    block_out_channels: tuple[int, ...] = (128, 256, 512, 1024, 1024)
    layers_per_block: int = 2
    scaling_factor: float = 1.03682
    spatial_factor: int = stored(16, "spatial_compression_ratio")  # pixels per latent cell
    temporal_factor: int = stored(4, "temporal_compression_ratio")  # frames per latent frame
    downsample_match_channel: bool = True
    upsample_match_channel: bool = True

    def check(self) -> None:
        """ConfigError unless there is a level for each doubling, and one more where channels are
        matched."""
        needed = self.doublings + (self.downsample_match_channel or self.upsample_match_channel)
        if len(self.block_out_channels) < needed:
            raise ConfigError(
                f"model.vae.block_out_channels: {list(self.block_out_channels)} must have {needed} "
                "entries or more"
            )

    @property
    def doublings(self) -> int:
        """Levels that double rows and columns."""
        return self.spatial_factor.bit_length() - 1

    @property
    def doublings_in_time(self) -> int:
        return self.temporal_factor.bit_length() - 1


@dataclass(frozen=True, slots=True)
class _Level:
    """A level of the decoder or the encoder."""

    inputs: int
    channels: int
    cells: int  # that one becomes, or that become one: 8, 4, or 1
    after: int  # channels behind that


def _up(vae: Hunyuan15Vae) -> Iterator[_Level]:
    """From latents to pixels."""
    channels = [*reversed(vae.block_out_channels)]
    before = channels[0]
    for number, own in enumerate(channels):
        cells, after = 1, own
        if number < vae.doublings:
            cells = 8 if number < vae.doublings_in_time else 4
            after = channels[number + 1] if vae.upsample_match_channel else own
        yield _Level(before, own, cells, after)
        before = after


def _down(vae: Hunyuan15Vae) -> Iterator[_Level]:
    """From pixels to latents."""
    channels = vae.block_out_channels
    before = channels[0]
    for number, own in enumerate(channels):
        cells, after = 1, own
        if number < vae.doublings:
            cells = 8 if number >= vae.doublings - vae.doublings_in_time else 4
            after = channels[number + 1] if vae.downsample_match_channel else own
        yield _Level(before, own, cells, after)
        before = after


def _resnets(inputs: int, outputs: int, count: int) -> int:
    """Weights of `count` residual blocks, the first of which may change the width."""
    shortcut = inputs * outputs if inputs != outputs else 0
    return _KERNEL * (inputs * outputs + (2 * count - 1) * outputs**2) + shortcut


def _middle(vae: Hunyuan15Vae) -> int:
    """Weights between encoder and decoder levels: two residual blocks and an attention."""
    top = vae.block_out_channels[-1]
    return _resnets(top, top, 2) + 4 * top**2


def vae_decode_flops(vae: Hunyuan15Vae, frames: int, height: int, width: int) -> float:
    """FLOPs of the decoder's convolutions and its one attention, for one row of so many latent
    frames, rows, columns."""
    cells, top = float(frames * height * width), vae.block_out_channels[-1]
    total = 2 * cells * (_KERNEL * vae.latent_channels * top + _middle(vae))
    total += 4 * cells * cells * top
    for level in _up(vae):
        total += 2 * cells * _resnets(level.inputs, level.channels, vae.layers_per_block + 1)
        if level.cells > 1:
            total += 2 * cells * _KERNEL * level.channels * level.after * level.cells
            height, width = 2 * height, 2 * width
            frames = 2 * frames - 1 if level.cells > 4 else frames
            cells = float(frames * height * width)
    return total + 2 * cells * _KERNEL * vae.block_out_channels[0] * 3


def vae_parameters(vae: Hunyuan15Vae) -> int:
    """Number of weights of both halves, without biases and norms."""
    low, top = vae.block_out_channels[0], vae.block_out_channels[-1]
    total = 2 * _middle(vae) + _KERNEL * (3 * vae.latent_channels * top + 2 * 3 * low)
    for level in _up(vae):
        total += _resnets(level.inputs, level.channels, vae.layers_per_block + 1)
        if level.cells > 1:
            total += _KERNEL * level.channels * level.after * level.cells
    for level in _down(vae):
        total += _resnets(level.inputs, level.channels, vae.layers_per_block)
        if level.cells > 1:
            total += _KERNEL * level.channels * level.after // level.cells
    return total


def vae_decode_bytes(vae: Hunyuan15Vae, size: int, frames: int, height: int, width: int) -> int:
    """Peak bytes beside the weights for one row of so many latent frames, rows, columns, `size`
    bytes a value: about 4 maps of the last level, or the mask of the attention; and the video."""
    pixels = height * width * vae.spatial_factor**2 * (1 + (frames - 1) * vae.temporal_factor)
    maps = 4 * size * pixels * vae.block_out_channels[0]
    return max(maps, 2 * size * (frames * height * width) ** 2) + 3 * 4 * pixels


def vae_tiles(vae: Hunyuan15Vae, size: int) -> TiledDecoder:
    """Tiles begin behind the last level that makes new frames. Each of their levels has its
    residual blocks and then, at its own size, the convolution by which it grows."""
    levels = [*_up(vae)][vae.doublings_in_time :]
    growing = vae.doublings - vae.doublings_in_time
    reach = sum((2 * vae.layers_per_block + 3) / 2**number for number in range(growing + 1))
    return TiledDecoder(
        factor=2**growing, reach=math.ceil(reach), channels=levels[0].inputs, size=size
    )
