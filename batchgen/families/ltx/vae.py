"""The video autoencoder of LTX-Video: dimensions, FLOPs, weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from batchgen.errors import ConfigError
from batchgen.families.dims import ComponentDims, later
from batchgen.families.tiling import TiledDecoder

_KERNEL = 27  # taps of a 3x3x3 convolution
_TIME = 256  # channels of a sinusoidal embedding
_DOWN = "LTXVideoDownBlock3D"
_DOWN_095 = "LTXVideo095DownBlock3D"  # has a list of widths with one more; from 0.9.5 on
# Cells that a layer between two levels of such blocks makes one of; that of `conv` has its own.
_JOINED = {"spatial": 4, "temporal": 2, "spatiotemporal": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class LtxVae(ComponentDims):
    """Dimensions as in its diffusers config; the defaults are those of version 0.9.0."""

    latent_channels: int = 128
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    down_block_types: tuple[str, ...] = (_DOWN,) * 4
    decoder_block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: tuple[int, ...] = (4, 3, 3, 3, 4)
    decoder_layers_per_block: tuple[int, ...] = (4, 3, 3, 3, 4)
    spatio_temporal_scaling: tuple[bool, ...] = (True, True, True, False)
    decoder_spatio_temporal_scaling: tuple[bool, ...] = (True, True, True, False)
    decoder_inject_noise: tuple[bool, ...] = (False,) * 5
    upsample_residual: tuple[bool, ...] = (False,) * 4
    upsample_factor: tuple[int, ...] = (1,) * 4
    timestep_conditioning: bool = False
    patch_size: int = 4
    patch_size_t: int = 1
    scaling_factor: float = 1.0
    encoder_causal: bool = True
    decoder_causal: bool = False
    downsample_type: tuple[str, ...] = later(("conv",) * 4)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell."""
        return int(self.patch_size * 2 ** sum(self.decoder_spatio_temporal_scaling))

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame after one."""
        return int(self.patch_size_t * 2 ** sum(self.decoder_spatio_temporal_scaling))

    @property
    def newer(self) -> bool:
        """Whether its encoder is that of 0.9.5 and later."""
        return _DOWN_095 in self.down_block_types

    def random_extras(self) -> dict[str, int]:
        """Which diffusers would take from the encoder's levels, that of 0.9.5 has one more."""
        return {
            "spatial_compression_ratio": self.spatial_factor,
            "temporal_compression_ratio": self.temporal_factor,
        }

    @property
    def last_channels(self) -> int:
        """Of the decoder, before pixels are unfolded."""
        return self.decoder_block_out_channels[0] // self.upsample_factor[0]

    def check(self) -> None:
        """ConfigError unless lists have the lengths that the levels need, and for an encoder that
        makes pixels of the decoder's otherwise."""
        down = len(self.block_out_channels) - self.newer
        up = len(self.decoder_block_out_channels)
        for key, values, length in (
            ("down_block_types", self.down_block_types, down),
            ("layers_per_block", self.layers_per_block, down + 1),
            ("spatio_temporal_scaling", self.spatio_temporal_scaling, down),
            *([("downsample_type", self.downsample_type, down)] if self.newer else []),
            ("decoder_layers_per_block", self.decoder_layers_per_block, up + 1),
            ("decoder_spatio_temporal_scaling", self.decoder_spatio_temporal_scaling, up),
            ("decoder_inject_noise", self.decoder_inject_noise, up + 1),
            ("upsample_residual", self.upsample_residual, up),
            ("upsample_factor", self.upsample_factor, up),
        ):
            if len(values) != length:
                raise ConfigError(f"model.vae.{key}: {list(values)} must have {length} entries")
        wanted = _DOWN_095 if self.newer else _DOWN
        if others := sorted(set(self.down_block_types) - {wanted}):
            raise ConfigError(
                f"model.vae.down_block_types: {others[0]} is not served; legal: {_DOWN} alone, or "
                f"{_DOWN_095} alone"
            )
        if odd := sorted(set(self.downsample_type) - {"conv", *_JOINED}):
            legal = ", ".join(("conv", *_JOINED))
            raise ConfigError(f"model.vae.downsample_type: {odd[0]} is not served; legal: {legal}")


@dataclass(frozen=True, slots=True)
class _Level:
    """A level of the decoder."""

    inputs: int
    channels: int
    layers: int
    factor: int  # by which doubling the cells makes fewer channels; 0: cells stay

    @property
    def doubling(self) -> int:
        """Weights of the convolution that makes eight cells of one."""
        if not self.factor:
            return 0
        wide = self.channels * self.factor
        return _KERNEL * wide * wide * 8 // self.factor

    @property
    def resnets(self) -> int:
        return _resnets(self.channels, self.channels, self.layers)

    @property
    def entry(self) -> int:
        """Weights of the residual block that changes the width in front of it all."""
        return _resnets(self.inputs, self.channels, 1) if self.inputs != self.channels else 0


def _levels(vae: LtxVae) -> Iterator[_Level]:
    """Of the decoder, from latents to pixels."""
    before = vae.decoder_block_out_channels[-1]
    for channels, layers, scales, factor in zip(
        reversed(vae.decoder_block_out_channels),
        [*reversed(vae.decoder_layers_per_block)][1:],
        reversed(vae.decoder_spatio_temporal_scaling),
        reversed(vae.upsample_factor),
        strict=True,
    ):
        own = channels // factor
        yield _Level(before // factor, own, layers, factor if scales else 0)
        before = own


def _resnets(inputs: int, outputs: int, count: int) -> int:
    """Weights of `count` residual blocks, the first of which may change the width."""
    shortcut = inputs * outputs if inputs != outputs else 0
    return _KERNEL * (inputs * outputs + (2 * count - 1) * outputs**2) + shortcut


def vae_decode_flops(vae: LtxVae, frames: int, height: int, width: int) -> float:
    """FLOPs of the decoder's convolutions for one row of so many latent frames, rows, columns."""
    cells, top = float(frames * height * width), vae.decoder_block_out_channels[-1]
    middle = _resnets(top, top, vae.decoder_layers_per_block[-1])
    total = 2 * cells * (_KERNEL * vae.latent_channels * top + middle)
    for level in _levels(vae):
        total += 2 * cells * (level.entry + level.doubling)
        if level.factor:
            frames, height, width = 2 * frames - 1, 2 * height, 2 * width
            cells = float(frames * height * width)
        total += 2 * cells * level.resnets
    return total + 2 * cells * _KERNEL * vae.last_channels * 3 * vae.patch_size**2


def vae_tiles(vae: LtxVae, size: int) -> TiledDecoder | None:
    """Tiles begin before the last level: what changes its width and makes eight cells of one, then
    its residual blocks and one more convolution. `size`: bytes a value. None where it adds noise,
    which is of a whole frame."""
    if vae.decoder_inject_noise[0]:
        return None
    last, grows = [*_levels(vae)][-1], 2 if vae.decoder_spatio_temporal_scaling[0] else 1
    before = 2 * (last.inputs != last.channels) + (grows > 1)
    return TiledDecoder(
        factor=vae.patch_size * grows,
        frames=vae.patch_size_t * grows,
        reach=math.ceil(before + (2 * vae.decoder_layers_per_block[0] + 1) / grows),
        channels=last.inputs * vae.upsample_factor[0],
        size=size,
    )


def vae_parameters(vae: LtxVae) -> int:
    """Number of weights of both halves, without biases and norms."""
    return _encoder(vae) + _decoder(vae)


def _encoder(vae: LtxVae) -> int:
    channels, pixels = vae.block_out_channels, 3 * vae.patch_size**2
    total = _KERNEL * (pixels * channels[0] + channels[-1] * (vae.latent_channels + 1))
    total += _resnets(channels[-1], channels[-1], vae.layers_per_block[-1])
    if vae.newer:
        return total + _levels_of_095(vae)
    levels = pairwise((*channels, channels[-1]))
    for (own, after), layers, scales in zip(
        levels, vae.layers_per_block, vae.spatio_temporal_scaling, strict=False
    ):
        total += _resnets(own, own, layers) + _KERNEL * own * own * scales
        total += _resnets(own, after, 1) if own != after else 0
    return total


def _levels_of_095(vae: LtxVae) -> int:
    """Weights of the encoder's levels: cells are joined by a convolution to fewer channels, that
    of them all are those of the next level."""
    total = 0
    for (own, after), layers, scales, kind in zip(
        pairwise(vae.block_out_channels),
        vae.layers_per_block[:-1],
        vae.spatio_temporal_scaling,
        vae.downsample_type,
        strict=True,
    ):
        joined = after // _JOINED[kind] if kind in _JOINED else own
        total += _resnets(own, own, layers) + _KERNEL * own * joined * scales
    return total


def _decoder(vae: LtxVae) -> int:
    top, timed = vae.decoder_block_out_channels[-1], vae.timestep_conditioning
    pixels = 3 * vae.patch_size**2
    total = _KERNEL * (vae.latent_channels * top + vae.last_channels * pixels)
    total += _resnets(top, top, vae.decoder_layers_per_block[-1]) + timed * _embedding(4 * top)
    for level in _levels(vae):
        total += level.entry + level.doubling + level.resnets
        total += timed * _embedding(4 * level.inputs)
    return total + timed * _embedding(2 * vae.last_channels)


def _embedding(channels: int) -> int:
    """Weights of the embedding of the timestep that noise was added by."""
    return _TIME * channels + channels**2
