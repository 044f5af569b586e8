"""AutoencoderKL's decoder, layer by layer and each layer tile by tile.

Its norms are over groups of channels of the whole frame, so no tile can go through all layers by
itself. Here each layer is finished before the next one begins: a norm is told by the mean and the
variance of the whole map, and a convolution of a tile sees the cells next to it in that map. There
is no seam, and nothing is computed twice. What a whole decode holds beside a map and the one that
it becomes, the norm's and the activation's, is here of one tile alone.

Several ranks have some of the tiles each. They tell each other what norms have found of each tile,
and behind each layer the cells next to their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UpDecoderBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from batchgen.families.followed import check_known, is_as_made
from batchgen.families.pieces import Areas, bring_to_first, from_all, mend
from batchgen.families.tiling import Tiling


def decode(vae: Any, latents: Tensor, tiling: Tiling | None) -> Tensor:
    """`vae.decode(latents)`: (items, channels, height, width) in about -1..1; with `tiling` to
    rounding, in less memory, one item after the other; of several ranks on the first.
    ConfigError for an autoencoder with other layers than those that are followed here."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if tiling is None or tiling.count(latents.shape[-2:], factor) == 1:
        whole: Tensor = vae.decode(latents, return_dict=False)[0]
        return whole
    check_known(known(vae))
    return torch.cat([Layers(tiling, factor).run(vae, one) for one in latents.split(1)])


def known(vae: Any) -> bool:
    """Whether it is of the layers and the settings that are followed here. All that is private to
    diffusers is looked at here alone."""
    decoder = vae.decoder
    return (
        type(vae) in (AutoencoderKL, AutoencoderKLFlux2)
        and is_as_made(vae, decoder.up_blocks.modules())
        and type(decoder.conv_norm_out) is nn.GroupNorm
        and all(type(block) is UpDecoderBlock2D for block in decoder.up_blocks)
        and all(_is_plain(r) for block in decoder.up_blocks for r in block.resnets)
        and all(_enlarges(u) for block in decoder.up_blocks for u in block.upsamplers or ())
    )


def _is_plain(resnet: Any) -> bool:
    """Two norms and convolutions, and no timestep."""
    plain = type(resnet) is ResnetBlock2D and resnet.time_emb_proj is None
    return plain and not (resnet.up or resnet.down)


def _enlarges(upsampler: Any) -> bool:
    """Each cell to four, then a convolution."""
    plain = type(upsampler) is Upsample2D and upsampler.norm is None and upsampler.interpolate
    return plain and upsampler.use_conv and upsampler.name == "conv"


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of a map, with the cells next to it that there are."""

    rows: slice
    columns: slice
    seen_rows: slice
    seen_columns: slice
    border: tuple[int, int, int, int]  # missing cells left, right, above, below

    def area(self, scale: int = 1) -> tuple[slice, slice]:
        """Where its cells are in a map that is so many times as large."""
        rows, columns = self.rows, self.columns
        return (
            slice(scale * rows.start, scale * rows.stop),
            slice(scale * columns.start, scale * columns.stop),
        )

    def own(self, of: Tensor, scale: int = 1) -> Tensor:
        """Its cells there."""
        rows, columns = self.area(scale)
        return of[..., rows, columns]

    def seen(self, of: Tensor) -> Tensor:
        return of[..., self.seen_rows, self.seen_columns]

    def nearer(self, larger: Tensor) -> Tensor:
        """Of what it sees, twice as large, its own cells and again one beside them."""
        height, width = larger.shape[-2:]
        left, right, above, below = (1 - missing for missing in self.border)
        return larger[..., above : height - below, left : width - right]


class Norm(Protocol):
    """A norm over a whole map."""

    def __call__(self, x: Tensor, tile: Tile) -> Tensor:
        """Of the map the part that a tile sees, normed."""


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """As a factor and a summand of each channel."""

    factor: Tensor
    summand: Tensor

    def __call__(self, x: Tensor, tile: Tile) -> Tensor:
        x = tile.seen(x)
        return torch.addcmul(self.summand, x.to(self.factor.dtype), self.factor).to(x.dtype)


class Layers:
    """One image on the way through the decoder."""

    def __init__(self, tiling: Tiling, factor: int) -> None:
        """`factor`: pixels of a cell, of the latents at first."""
        self.tiling, self.factor = tiling, factor

    @torch.no_grad()
    def run(self, vae: Any, latents: Tensor) -> Tensor:
        """From latents to pixels."""
        decoder = vae.decoder
        x = latents if vae.post_quant_conv is None else vae.post_quant_conv(latents)
        return self.enlarged(decoder, decoder.mid_block(decoder.conv_in(x), None))

    def enlarged(self, decoder: Any, x: Tensor) -> Tensor:
        """All that is behind the middle; `x` is overwritten."""
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                x = self._residual(resnet, x)
            for upsampler in block.upsamplers or ():
                x = self._upsample(upsampler, x)
        norm = self.norm(self.last_norm(decoder), x)
        pixels = self._convolved(decoder.conv_out, norm, decoder.conv_act, x)
        bring_to_first(self.tiling.ranks, pixels, self._areas(pixels))
        return pixels

    # ------------------------------------------------------- what differs between images and clips
    def plain(self, conv: Any) -> Any:
        """torch's own convolution."""
        return conv

    def convolve(self, conv: Any, seen: Tensor, tile: Tile) -> Tensor:
        """Of its own cells, out of those that it sees."""
        return F.conv2d(F.pad(seen, tile.border), conv.weight, conv.bias)

    def enlarge(self, upsampler: Any, x: Tensor) -> Tensor:
        """Each cell to four."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest")

    def scale(self, resnet: Any) -> float:
        """Of what a residual block adds up."""
        return float(resnet.output_scale_factor)

    def shortcut(self, resnet: Any) -> Any:
        """Of a residual block that changes the width; None: of another one."""
        return resnet.conv_shortcut

    def last_norm(self, decoder: Any) -> Any:
        """Before the last convolution."""
        return decoder.conv_norm_out

    def norm(self, norm: Any, x: Tensor) -> Norm:
        """What a norm makes of a map."""
        return self._group_norm(norm, x)

    # -------------------------------------------------------------------------------------- layers
    def _residual(self, resnet: Any, x: Tensor) -> Tensor:
        """In the place of its input, of which a tile alone is read once `inner` is there."""
        inner = self._convolved(resnet.conv1, self.norm(resnet.norm1, x), resnet.nonlinearity, x)
        norm, shortcut = self.norm(resnet.norm2, inner), self.shortcut(resnet)
        channels = self.plain(resnet.conv2).out_channels
        out = x.new_empty(inner.shape) if channels > x.shape[1] else x[:, :channels]
        for tile in self._tiles(x):
            added = tile.own(x) if shortcut is None else shortcut(tile.own(x))
            seen = resnet.nonlinearity(norm(inner, tile))
            drawn = self.convolve(resnet.conv2, seen, tile)
            tile.own(out).copy_((added + drawn) / self.scale(resnet))
        return self._mended(out)

    def _upsample(self, upsampler: Any, x: Tensor) -> Tensor:
        """Of the two cells that one beside a tile has become, it sees the nearer."""
        height, width = x.shape[-2:]
        out: Tensor | None = None
        own = self._tiles(x) or self._shares(x)[-1][:1]  # who has none has to know a shape
        for tile in own:
            larger = tile.nearer(self.enlarge(upsampler, tile.seen(x)))
            made = self.convolve(upsampler.conv, larger, tile)
            if out is None:
                out = x.new_empty(*made.shape[:-2], 2 * height, 2 * width)
            tile.own(out, 2).copy_(made)
        assert out is not None
        self.factor //= 2
        return self._mended(out, 2)

    def _convolved(self, conv: Any, norm: Norm, activation: nn.Module, x: Tensor) -> Tensor:
        """A new map: the convolution of what has been normed and activated."""
        out = x.new_empty(1, self.plain(conv).out_channels, *x.shape[2:])
        for tile in self._tiles(x):
            seen = activation(norm(x, tile))
            tile.own(out).copy_(self.convolve(conv, seen, tile))
        return self._mended(out)

    def _group_norm(self, norm: nn.GroupNorm, x: Tensor) -> GroupNorm:
        """Means and variances of the tiles come to those of the map, in float32 at least."""
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        found = [x.new_empty(0, 3, norm.num_groups, dtype=exact)]
        for tile in self._tiles(x):
            groups = tile.own(x).to(exact).reshape(norm.num_groups, -1)
            variance, mean = torch.var_mean(groups, dim=1, correction=0)
            count = torch.full_like(mean, groups.shape[1])
            found.append(torch.stack([count, variance, mean])[None])
        tiles = [len(share) for share in self._shares(x)]
        of_all = from_all(self.tiling.ranks, torch.cat(found), tiles)
        counts, variances, means = (each.contiguous() for each in of_all.unbind(1))
        counts = counts[:, 0].contiguous()
        shares = (counts / counts.sum())[:, None]
        mean = (shares * means).sum(0)
        variance = (shares * (variances + (means - mean) ** 2)).sum(0)
        spread = torch.rsqrt(variance + norm.eps)
        each = norm.num_channels // norm.num_groups
        factor = spread.repeat_interleave(each) * norm.weight.to(exact)
        summand = norm.bias.to(exact) - mean.repeat_interleave(each) * factor
        like = (1, -1, *(1,) * (x.dim() - 2))
        return GroupNorm(factor.view(like), summand.view(like))

    # --------------------------------------------------------------------------------------- tiles
    def _tiles(self, x: Tensor) -> Sequence[Tile]:
        """Those of this rank."""
        return self._shares(x)[self.tiling.ranks.place]

    def _shares(self, x: Tensor, scale: int = 1) -> list[Sequence[Tile]]:
        """Those of each rank, in the map of which `x` is so many times an enlargement."""
        height, width = (size // scale for size in x.shape[-2:])
        tiles = list[Tile]()
        for rows, columns in self.tiling.tiles(height, width, scale * self.factor):
            (r, above, below), (c, left, right) = rows.near(height), columns.near(width)
            border = (int(left), int(right), int(above), int(below))
            tiles.append(Tile(rows.own, columns.own, r, c, border))
        return self.tiling.shares(tiles)

    def _areas(self, x: Tensor, scale: int = 1) -> Areas:
        """Cells of `x` that each rank has drawn, by its tiles of that map."""
        return [[tile.area(scale) for tile in share] for share in self._shares(x, scale)]

    def _mended(self, x: Tensor, scale: int = 1) -> Tensor:
        """With the cells next to this rank's own, of what each rank has drawn (`_areas`)."""
        if self.tiling.ranks.size > 1:  # else nobody has to know what each needs
            needed = [[(t.seen_rows, t.seen_columns) for t in share] for share in self._shares(x)]
            mend(self.tiling.ranks, x, self._areas(x, scale), needed)
        return x
