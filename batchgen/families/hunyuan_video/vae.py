"""The video autoencoder of HunyuanVideo: dimensions, FLOPs, weights, bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from batchgen.errors import ConfigError
from batchgen.families.dims import ComponentDims, stored
from batchgen.families.tiling import TiledDecoder

_KERNEL = 27  # taps of a 3x3x3 convolution
# Latent frames that diffusers decodes at a time, one more than it keeps of each but the first.
_AT_ONCE, _STRIDE = 4, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class HunyuanVae(ComponentDims):
    """Dimensions as in its diffusers config."""

    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    down_block_types: tuple[str, ...] = ("HunyuanVideoDownBlock3D",) * 4
    up_block_types: tuple[str, ...] = ("HunyuanVideoUpBlock3D",) * 4
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.476986
    spatial_factor: int = stored(8, "spatial_compression_ratio")  # pixels per latent cell
    temporal_factor: int = stored(4, "temporal_compression_ratio")  # frames per latent frame
    mid_block_add_attention: bool = True

    def check(self) -> None:
        """ConfigError unless lists have the lengths that the levels need."""
        levels = len(self.block_out_channels)
        for key, values in (
            ("down_block_types", self.down_block_types),
            ("up_block_types", self.up_block_types),
        ):
            if len(values) != levels:
                raise ConfigError(f"model.vae.{key}: {list(values)} must have {levels} entries")
        if self.temporal_factor != 4:
            raise ConfigError(
                f"model.vae.temporal_factor: {self.temporal_factor} is not served; legal: 4"
            )


@dataclass(frozen=True, slots=True)
class _Level:
    """A level of the decoder."""

    inputs: int
    channels: int
    grows: bool  # twice as many rows and columns
    grows_in_time: bool


def _levels(vae: HunyuanVae) -> Iterator[_Level]:
    """Of the decoder, from latents to pixels."""
    channels = [*reversed(vae.block_out_channels)]
    doublings, last = vae.spatial_factor.bit_length() - 1, len(channels) - 1
    for number, (before, own) in enumerate(pairwise([channels[0], *channels])):
        yield _Level(before, own, number < doublings, last - 2 <= number < last)


def _resnets(inputs: int, outputs: int, count: int) -> int:
    """Weights of `count` residual blocks, the first of which may change the width."""
    shortcut = inputs * outputs if inputs != outputs else 0
    return _KERNEL * (inputs * outputs + (2 * count - 1) * outputs**2) + shortcut


def _middle(vae: HunyuanVae) -> int:
    """Weights between encoder and decoder levels: two residual blocks and an attention."""
    top = vae.block_out_channels[-1]
    return _resnets(top, top, 2) + 4 * top**2 * vae.mid_block_add_attention


def vae_decode_flops(vae: HunyuanVae, frames: int, height: int, width: int) -> float:
    """FLOPs of the decoder for one row of so many latent frames, rows, columns. diffusers decodes
    pieces that overlap."""
    if frames <= _AT_ONCE:
        return _piece(vae, frames, height, width)
    pieces = [min(_AT_ONCE + 1, frames - start) for start in range(0, frames, _STRIDE)]
    return sum(_piece(vae, piece, height, width) for piece in pieces)


def _piece(vae: HunyuanVae, frames: int, height: int, width: int) -> float:
    """Convolutions and the one attention."""
    cells, top = float(frames * height * width), vae.block_out_channels[-1]
    total = 2 * cells * (_KERNEL * vae.latent_channels * top + _middle(vae))
    total += 4 * cells * cells * top * vae.mid_block_add_attention
    for level in _levels(vae):
        total += 2 * cells * _resnets(level.inputs, level.channels, vae.layers_per_block + 1)
        if level.grows:
            height, width = 2 * height, 2 * width
            frames = 2 * frames - 1 if level.grows_in_time else frames
            cells = float(frames * height * width)
            total += 2 * cells * _KERNEL * level.channels**2
    return total + 2 * cells * _KERNEL * vae.block_out_channels[0] * 3


def vae_parameters(vae: HunyuanVae) -> int:
    """Number of weights of both halves, without biases and norms."""
    channels, layers = vae.block_out_channels, vae.layers_per_block
    low, top = channels[0], channels[-1]
    total = 2 * _middle(vae) + _KERNEL * (3 * vae.latent_channels * top + 2 * 3 * low)
    for level in _levels(vae):
        total += _resnets(level.inputs, level.channels, layers + 1)
        total += _KERNEL * level.channels**2 * level.grows
    doublings = vae.spatial_factor.bit_length() - 1
    for number, (before, own) in enumerate(pairwise([low, *channels])):
        total += _resnets(before, own, layers) + _KERNEL * own**2 * (number < doublings)
    return total


def vae_decode_bytes(vae: HunyuanVae, size: int, frames: int, height: int, width: int) -> int:
    """Peak bytes beside the weights for one row of so many latent frames, rows, columns, `size`
    bytes a value: about 4 maps of a piece's second level at full resolution, or the mask of its
    attention; and the video."""
    at_once, pixels = min(frames, _AT_ONCE + 1), height * width * vae.spatial_factor**2
    maps = 4 * size * (1 + (at_once - 1) * vae.temporal_factor) * pixels * _widest(vae)
    mask = 2 * size * (at_once * height * width) ** 2 * vae.mid_block_add_attention
    video = 3 * 4 * (1 + (frames - 1) * vae.temporal_factor) * pixels
    return max(maps, mask) + video


def vae_tiles(vae: HunyuanVae, size: int) -> TiledDecoder | None:
    """Layer by layer a piece keeps the first of these maps and what becomes of it, and there is no
    mask; None: a level grows in time alone."""
    if any(level.grows_in_time and not level.grows for level in _levels(vae)):
        return None
    return TiledDecoder(
        factor=vae.spatial_factor,
        frames=vae.temporal_factor,
        maps=_widest(vae) + vae.block_out_channels[0],
        at_once=1 + _AT_ONCE * vae.temporal_factor,
        size=size,
    )


def _widest(vae: HunyuanVae) -> int:
    """Most channels of a map at full resolution."""
    return vae.block_out_channels[min(1, len(vae.block_out_channels) - 1)]
