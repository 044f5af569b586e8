"""The image autoencoder that several families use: dimensions, FLOPs, weights, bytes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from batchgen.errors import ConfigError
from batchgen.families.dims import ComponentDims
from batchgen.families.tiling import TiledDecoder
from batchgen.request import Bucket

_TAPS = 9  # of a 3x3 convolution


@dataclass(frozen=True, slots=True, kw_only=True)
class KlVae(ComponentDims):
    """Dimensions of diffusers' AutoencoderKL, as in its config."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    norm_num_groups: int = 32
    scaling_factor: float = 0.3611
    shift_factor: float | None = 0.1159
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 4

    @property
    def factor(self) -> int:
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


def kl_decode_flops(vae: KlVae, bucket: Bucket) -> float:
    """FLOPs of the decoder's convolutions and its one attention, from latents to pixels."""
    size = float((bucket.height // vae.factor) * (bucket.width // vae.factor))
    top = vae.block_out_channels[-1]
    total = size * _conv(vae.latent_channels, top) + 4 * size * top * size
    total += size * 2 * _middle(top)
    for stage, (before, after) in enumerate(_levels(vae)):
        total += size * 2 * _resnets(before, after, vae.layers_per_block + 1)
        if stage < len(vae.block_out_channels) - 1:
            size *= 4
            total += size * _conv(after, after)
    return total + size * _conv(vae.block_out_channels[0], 3)


def kl_parameters(vae: KlVae) -> int:
    """Number of weights of both halves of the autoencoder."""
    top, low, count = vae.block_out_channels[-1], vae.block_out_channels[0], vae.layers_per_block
    total = 2 * _middle(top) + _TAPS * top * 3 * vae.latent_channels + 2 * _TAPS * low * 3
    for before, after in _levels(vae):
        total += _resnets(before, after, count + 1)
    for before, after in pairwise([low, *vae.block_out_channels]):
        total += _resnets(before, after, count)
    samplers = sum(c * c for c in vae.block_out_channels[1:])  # decoder: none after the last
    samplers += sum(c * c for c in vae.block_out_channels[:-1])  # of the encoder
    return total + _TAPS * samplers


def kl_decode_bytes(vae: KlVae, bucket: Bucket, size: int) -> int:
    """About 4 maps of the decoder's second level at full resolution; `size` bytes a value."""
    return 4 * size * bucket.width * bucket.height * _widest(vae)


def kl_tiles(vae: KlVae, size: int) -> TiledDecoder | None:
    """Layer by layer it keeps the first of these maps and what becomes of it; None: other blocks
    than those that are known."""
    if {*vae.up_block_types} != {"UpDecoderBlock2D"}:
        return None
    maps = _widest(vae) + vae.block_out_channels[0]
    return TiledDecoder(factor=vae.factor, maps=maps, size=size)


def _widest(vae: KlVae) -> int:
    """Most channels of a map at full resolution."""
    return vae.block_out_channels[min(1, len(vae.block_out_channels) - 1)]


def _conv(inputs: int, outputs: int) -> float:
    """FLOPs of a 3x3 convolution for one cell."""
    return 2.0 * _TAPS * inputs * outputs


def _levels(vae: KlVae) -> list[tuple[int, int]]:
    """(channels in, channels out) of the decoder's levels, from latents to pixels."""
    channels = list(reversed(vae.block_out_channels))
    return list(pairwise([channels[0], *channels]))


def _middle(channels: int) -> int:
    """Weights between encoder and decoder levels: two residual blocks and an attention."""
    return 4 * _TAPS * channels**2 + 4 * channels**2


def _resnets(before: int, after: int, count: int) -> int:
    """Weights of `count` residual blocks, the first of which changes the width."""
    shortcut = before * after if before != after else 0
    return _TAPS * before * after + (2 * count - 1) * _TAPS * after**2 + shortcut
