"""A Wan autoencoder, convolution by convolution: its weights, and the FLOPs of either half.

Both kinds: that of Wan2.1, and that of Wan2.2's TI2V, which sees patches of 2x2 pixels and whose
stages keep their widths when they grow (`is_residual`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from batchgen.families.dims import ComponentDims, stored

CUBE, SQUARE, LINE, POINT = 27, 9, 3, 1  # taps


@dataclass(frozen=True, slots=True, kw_only=True)
class WanVae(ComponentDims):
    """Dimensions of the video autoencoder, as in its diffusers config."""

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)  # the spelling is diffusers'
    spatial_factor: int = stored(8, "scale_factor_spatial")  # pixels per latent cell
    temporal_factor: int = stored(4, "scale_factor_temporal")  # frames per latent frame after one

    def random_extras(self) -> dict[str, Any]:
        """Statistics of the latents, since diffusers' defaults are for 16 channels."""
        if self.z_dim == 16:
            return {}
        return {"latents_mean": [0.0] * self.z_dim, "latents_std": [1.0] * self.z_dim}


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchedVae(WanVae):
    """Dimensions of the autoencoder of Wan2.2's TI2V, as in its diffusers config."""

    base_dim: int = 160
    decoder_base_dim: int = 256
    z_dim: int = 48
    in_channels: int = 12
    out_channels: int = 12
    patch_size: int = 2
    is_residual: bool = True
    spatial_factor: int = stored(16, "scale_factor_spatial")


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution, as often as it is applied."""

    taps: int
    inputs: int
    outputs: int
    cells: float

    @property
    def weights(self) -> int:
        return self.taps * self.inputs * self.outputs

    @property
    def flops(self) -> float:
        return 2.0 * self.cells * self.weights


@dataclass(frozen=True, slots=True)
class Grid:
    """Frames, rows and columns of latents or of what they become."""

    frames: int
    rows: int
    columns: int

    @property
    def cells(self) -> float:
        return float(self.frames * self.rows * self.columns)

    def larger(self, in_time: bool) -> Grid:
        frames = 1 + 2 * (self.frames - 1) if in_time else self.frames
        return Grid(frames, 2 * self.rows, 2 * self.columns)


def decoder(vae: WanVae, latents: Grid) -> Iterator[Layer]:
    """From latents to pixels, or to their patches."""
    widths = [_base(vae) * m for m in (vae.dim_mult[-1], *reversed(vae.dim_mult))]
    grows = [*reversed(vae.temperal_downsample), None]  # None: the last stage does not
    grid = latents
    yield Layer(POINT, vae.z_dim, vae.z_dim, grid.cells)
    yield Layer(CUBE, vae.z_dim, widths[0], grid.cells)
    yield from _middle(widths[0], grid)
    halves = not isinstance(vae, PatchedVae)
    for stage, ((before, after), in_time) in enumerate(zip(pairwise(widths), grows, strict=True)):
        inputs = before // 2 if stage and halves else before
        yield from _stage(inputs, after, vae.num_res_blocks + 1, grid)
        if in_time is None:
            continue
        if in_time:
            yield Layer(LINE, after, 2 * after, grid.cells)
        grid = grid.larger(in_time)
        yield Layer(SQUARE, after, after // 2 if halves else after, grid.cells)
    yield Layer(CUBE, widths[-1], _channels(vae), grid.cells)


def encoder(vae: WanVae, latents: Grid) -> Iterator[Layer]:
    """From pixels, or their patches, to latents; the layers that come last first."""
    widths = [vae.base_dim * m for m in (1, *vae.dim_mult)]
    shrinks = [*vae.temperal_downsample, None]
    grid = latents
    yield Layer(POINT, 2 * vae.z_dim, 2 * vae.z_dim, grid.cells)
    yield Layer(CUBE, widths[-1], 2 * vae.z_dim, grid.cells)
    yield from _middle(widths[-1], grid)
    stages = [*zip(pairwise(widths), shrinks, strict=True)]
    for (before, after), in_time in reversed(stages):
        if in_time is not None:
            if in_time:
                yield Layer(LINE, after, after, grid.cells)
            yield Layer(SQUARE, after, after, grid.larger(False).cells / 4)
            grid = grid.larger(in_time)
        yield from _stage(before, after, vae.num_res_blocks, grid)
    yield Layer(CUBE, _channels(vae), widths[0], grid.cells)


def decode_flops(vae: WanVae, frames: int, rows: int, columns: int) -> float:
    """FLOPs of the decoder, from so many latents to pixels."""
    grid = Grid(frames, rows, columns)
    return _attention_flops(_base(vae) * vae.dim_mult[-1], grid) + _flops(decoder(vae, grid))


def encode_flops(vae: WanVae, frames: int, rows: int, columns: int) -> float:
    """FLOPs of the encoder, from pixels to so many latents."""
    grid = Grid(frames, rows, columns)
    return _attention_flops(vae.base_dim * vae.dim_mult[-1], grid) + _flops(encoder(vae, grid))


def weights(vae: WanVae) -> int:
    """Of both halves, without biases and norms."""
    one = Grid(1, 1, 1)
    return sum(layer.weights for half in (encoder, decoder) for layer in half(vae, one))


def _flops(layers: Iterator[Layer]) -> float:
    return sum(layer.flops for layer in layers)


def _attention_flops(width: int, grid: Grid) -> float:
    """Of each frame's cells to each other; its projections are layers."""
    return 4.0 * grid.frames * (grid.rows * grid.columns) ** 2 * width


def _base(vae: WanVae) -> int:
    """Of the decoder's widths."""
    return vae.decoder_base_dim if isinstance(vae, PatchedVae) else vae.base_dim


def _channels(vae: WanVae) -> int:
    return vae.out_channels if isinstance(vae, PatchedVae) else 3


def _middle(width: int, grid: Grid) -> Iterator[Layer]:
    """Two residual blocks with an attention over each frame between them."""
    yield from _stage(width, width, 2, grid)
    yield Layer(POINT, width, 4 * width, grid.cells)


def _stage(inputs: int, outputs: int, blocks: int, grid: Grid) -> Iterator[Layer]:
    """Residual blocks."""
    for _ in range(blocks):
        yield Layer(CUBE, inputs, outputs, grid.cells)
        yield Layer(CUBE, outputs, outputs, grid.cells)
        if inputs != outputs:
            yield Layer(POINT, inputs, outputs, grid.cells)
        inputs = outputs
