"""CogVideoX's decoder, layer by layer and each layer tile by tile (`kl_decoder`).

As in diffusers a clip goes through it in pieces of two latent frames, and a convolution sees the
last frames that it was given in the piece before. Its norms are over all of a piece, and what they
make of it is scaled and shifted by what the latents are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXResnetBlock3D,
    CogVideoXUpBlock3D,
)
from diffusers.models.upsampling import CogVideoXUpsample3D
from torch import Tensor, nn

from batchgen.families.followed import check_known, is_as_made
from batchgen.families.kl_decoder import GroupNorm, Layers, Norm, Tile
from batchgen.families.tiling import Tiling


def decode(vae: Any, latents: Tensor, tiling: Tiling | None) -> Tensor:
    """`vae.decode(latents)`: (1, 3, frames, height, width) in about -1..1; with `tiling` to
    rounding, in less memory; of several ranks on the first. ConfigError for an autoencoder with
    other layers than those that are followed here."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if tiling is None or tiling.count(latents.shape[-2:], factor) == 1:
        video: Tensor = vae.decode(latents, return_dict=False)[0]
        return video
    check_known(known(vae))
    return _Clip(tiling, factor).clip(vae, latents)


def known(vae: Any) -> bool:
    """As `kl_decoder.known`."""
    decoder = vae.decoder
    return (
        type(vae) is AutoencoderKLCogVideoX
        and is_as_made(vae, decoder.modules())
        and all(type(block) is CogVideoXUpBlock3D for block in decoder.up_blocks)
        and all(_is_plain(r) for block in decoder.up_blocks for r in block.resnets)
        and all(
            type(u) is CogVideoXUpsample3D for b in decoder.up_blocks for u in b.upsamplers or ()
        )
        and decoder.conv_out.pad_mode == "first"
    )


def _is_plain(resnet: Any) -> bool:
    plain = type(resnet) is CogVideoXResnetBlock3D and resnet.spatial_norm_dim is not None
    return plain and not resnet.use_conv_shortcut


def _pieces(frames: int, size: int) -> Iterator[slice]:
    """Latent frames that are decoded at a time; the first piece has what is left over."""
    left, begin = frames % size, 0
    for number in range(max(frames // size, 1)):
        end = size * (number + 1) + left
        yield slice(begin, end)
        begin = end


@dataclass(frozen=True, slots=True)
class _Spatial:
    """A norm that knows the latents."""

    plain: GroupNorm
    norm: Any
    latents: Tensor  # of the piece

    def __call__(self, x: Tensor, tile: Tile) -> Tensor:
        seen = self._latents(tile, x.shape[2], x.shape[-2] // self.latents.shape[-2])
        normed = self.plain(x, tile) * self.norm.conv_y.conv(seen)
        return normed.add_(self.norm.conv_b.conv(seen))

    def _latents(self, tile: Tile, frames: int, scale: int) -> Tensor:
        """As many as the cells that a tile sees, of which `scale` a side have one in common."""
        cells = [
            slice(seen.start // scale, -(-seen.stop // scale))
            for seen in (tile.seen_rows, tile.seen_columns)
        ]
        few = self.latents[..., cells[0], cells[1]]
        parts = [(few, frames)]
        if frames > 1 and frames % 2:  # the first frame stays one
            parts = [(few[:, :, :1], 1), (few[:, :, 1:], frames - 1)]
        sides = [scale * side for side in few.shape[-2:]]
        many = torch.cat([F.interpolate(part, size=(n, *sides)) for part, n in parts], dim=2)
        rows, columns = (
            slice(seen.start - scale * own.start, seen.stop - scale * own.start)
            for seen, own in zip((tile.seen_rows, tile.seen_columns), cells, strict=True)
        )
        return many[..., rows, columns]


class _Clip(Layers):
    """A clip on the way through the decoder, piece by piece."""

    def __init__(self, tiling: Tiling, factor: int) -> None:
        super().__init__(tiling, factor)
        # last frames that a convolution has seen of a tile
        self.kept: dict[tuple[nn.Module, int, int], Tensor] = {}
        self.latents: Tensor | None = None

    @torch.no_grad()
    def clip(self, vae: Any, latents: Tensor) -> Tensor:
        """From latents to pixels."""
        decoder, factor, found = vae.decoder, self.factor, list[Tensor]()
        kept_in = kept_middle = None
        for piece in _pieces(latents.shape[2], vae.num_latent_frames_batch_size):
            z = latents[:, :, piece]
            z = z if vae.post_quant_conv is None else vae.post_quant_conv(z)
            self.latents, self.factor = z, factor
            x, kept_in = decoder.conv_in(z, conv_cache=kept_in)
            x, kept_middle = decoder.mid_block(x, None, z, conv_cache=kept_middle)
            found.append(self.enlarged(decoder, x))
        return torch.cat(found, dim=2)

    def plain(self, conv: Any) -> Any:
        return conv.conv

    def convolve(self, conv: Any, seen: Tensor, tile: Tile) -> Tensor:
        if isinstance(conv, nn.Conv2d):  # frame by frame
            images = F.pad(seen[0].transpose(0, 1), tile.border)
            return F.conv2d(images, conv.weight, conv.bias).transpose(0, 1)[None]
        key = conv, tile.rows.start, tile.columns.start
        before = self.kept.get(key)
        if before is None:
            before = seen[:, :, :1].expand(-1, -1, conv.time_kernel_size - 1, -1, -1)
        seen = torch.cat([before, seen], dim=2)
        self.kept[key] = seen[:, :, 1 - conv.time_kernel_size :].clone()
        padded = F.pad(seen, tile.border)
        return F.conv3d(padded, conv.conv.weight, conv.conv.bias)

    def enlarge(self, upsampler: Any, x: Tensor) -> Tensor:
        """The first frame stays one."""
        parts = [x]
        if upsampler.compress_time and x.shape[2] > 1 and x.shape[2] % 2:
            parts = [x[:, :, :1], x[:, :, 1:]]
        return torch.cat([self._enlarge(part, upsampler.compress_time) for part in parts], dim=2)

    def _enlarge(self, x: Tensor, in_time: bool) -> Tensor:
        doubles = in_time and x.shape[2] > 1
        return F.interpolate(x, scale_factor=(2.0 if doubles else 1.0, 2.0, 2.0))

    def scale(self, resnet: Any) -> float:
        return 1.0

    def shortcut(self, resnet: Any) -> Any:
        return resnet.conv_shortcut if resnet.in_channels != resnet.out_channels else None

    def last_norm(self, decoder: Any) -> Any:
        return decoder.norm_out

    def norm(self, norm: Any, x: Tensor) -> Norm:
        assert self.latents is not None
        return _Spatial(self._group_norm(norm.norm_layer, x), norm, self.latents)
