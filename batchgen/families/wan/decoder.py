"""AutoencoderKLWan's decoder, and AutoencoderKLQwenImage's, with fewer copies of its frame cache.

It goes frame by frame. Before each convolution diffusers clones the last frames of its input, joins
them with the input of the next frame and pads what comes of it. Here both are written once into a
padded buffer, which all convolutions of a shape share. So each gets the very tensor that it gets
there, and every bit of the result is equal, on any device.

Tiles have a buffer for each convolution, which takes a fifth less memory and a twentieth more time.
That of Wan2.2's TI2V has wider layers, whose shared buffers would take more than the copies: its
whole frames are decoded by diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageUpBlock
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanResidualUpBlock,
    WanUpBlock,
    unpatchify,
)
from torch import Tensor, nn

from batchgen.families.followed import check_known, is_as_made
from batchgen.families.pieces import draw_by_tiles
from batchgen.families.tiling import Span, Tiling

_FEW_CHANNELS = 48
_BLOCKS: dict[type, tuple[type, ...]] = {
    AutoencoderKLWan: (WanUpBlock, WanResidualUpBlock),
    AutoencoderKLQwenImage: (QwenImageUpBlock,),
}


def decode(vae: Any, latents: Tensor) -> Tensor:
    """`vae.decode(latents)`: (items, channels, frames, height, width) in -1..1."""
    followed = known(vae) and not _wide(vae)
    return _Decoding().run(vae, latents) if followed else _by_diffusers(vae, latents)


def decode_fast(vae: Any, latents: Tensor) -> Tensor:
    """`decode` to 2e-5 (each is 1e-5 off what float64 gives), by the kernels that are fastest for
    many small frames: on a CPU in float32 those of oneDNN, which PyTorch passes over for one item.
    """
    served = latents.device.type == "cpu" and latents.dtype == torch.float32 and not _wide(vae)
    if served and torch.backends.mkldnn.is_available() and known(vae):
        return _OneDnn().run(vae, latents)
    return decode(vae, latents)


def decode_tiled(vae: Any, latents: Tensor, tiling: Tiling) -> Tensor:
    """`decode` to rounding, in less memory and more time; of several ranks on the first.
    ConfigError for an autoencoder with other layers than those that are followed here."""
    check_known(known(vae))
    return _Tiled(tiling, vae.spatial_compression_ratio).run(vae, latents)


def known(vae: Any) -> bool:
    """Whether it is of the layers and the settings that are followed here. All that is private to
    diffusers is looked at here alone."""
    return (
        type(vae) in _BLOCKS
        and is_as_made(vae, vae.modules())
        and all(type(block) in _BLOCKS[type(vae)] for block in vae.decoder.up_blocks)
    )


def _wide(vae: Any) -> bool:
    """Whether it is TI2V's kind."""
    return bool(vae.config.get("is_residual"))


def _patch(vae: Any) -> int:
    """Pixels of a patch, in height and width, that the decoder draws."""
    return vae.config.get("patch_size") or 1


def _by_diffusers(vae: Any, latents: Tensor) -> Tensor:
    video: Tensor = vae.decode(latents, return_dict=False)[0]
    return video


class _Decoding:
    """One video, or several of one size, on the way through the decoder."""

    def __init__(self, *, keeps_buffers: bool = True) -> None:
        self.keeps_buffers = keeps_buffers
        self.ends = False  # no frame is behind this one
        self.kept: dict[nn.Module, Tensor] = {}  # last frames, padded, that a convolution has seen
        self.doubles: set[nn.Module] = set()  # upsamplers that have seen the first frame
        self.buffers: dict[tuple[tuple[int, ...], ...], Tensor] = {}  # by kernel and shape

    @torch.no_grad()
    def run(self, vae: Any, latents: Tensor) -> Tensor:
        """From latents to pixels."""
        frames, drawn = self._conv(vae.post_quant_conv, latents).split(1, dim=2), []
        for at, x in enumerate(frames, 1):
            self.ends = at == len(frames)
            drawn.append(self._frame(vae.decoder, x))
        return torch.cat(drawn, dim=2).clamp_(-1.0, 1.0)

    def _frame(self, decoder: Any, x: Tensor) -> Tensor:
        """A latent frame to one frame of pixels if it is the first, else to several."""
        return self._enlarged(decoder, self._middle(decoder, x))

    def _middle(self, decoder: Any, x: Tensor) -> Tensor:
        """As far as a cell sees the whole frame."""
        x, middle = self._conv(decoder.conv_in, x), decoder.mid_block
        x = self._residual(middle.resnets[0], x)
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = self._residual(resnet, self._attend(attention, x))
        return x

    def _enlarged(self, decoder: Any, x: Tensor) -> Tensor:
        """All that is behind the middle."""
        for block in decoder.up_blocks:
            x = self._stage(block, x)
        return self._conv(decoder.conv_out, self._activate(decoder.norm_out, x))

    def _stage(self, block: Any, x: Tensor) -> Tensor:
        adds = isinstance(block, WanResidualUpBlock)
        upsamplers = (block.upsampler,) if adds else block.upsamplers or ()
        shortcut, before, first = block.avg_shortcut if adds else None, x, False
        for resnet in block.resnets:
            x = self._residual(resnet, x)
        for upsampler in filter(None, upsamplers):
            first = upsampler not in self.doubles  # means nothing where there are no more frames
            x = self._upsample(upsampler, x)
        return x if shortcut is None else x.add_(shortcut(before, first_chunk=first))

    def _residual(self, resnet: Any, x: Tensor) -> Tensor:
        added = x
        if isinstance(resnet.conv_shortcut, nn.Conv3d):
            added = self._conv(resnet.conv_shortcut, x)
        x = self._conv(resnet.conv1, self._activate(resnet.norm1, x))
        return self._conv(resnet.conv2, self._activate(resnet.norm2, x)).add_(added)

    def _upsample(self, upsampler: Any, x: Tensor) -> Tensor:
        """To twice the height and width, behind the first frame also to twice the frames."""
        items, channels, frames, height, width = x.shape
        if upsampler.mode == "upsample3d":
            if upsampler in self.doubles:
                pairs = self._conv(upsampler.time_conv, x).unflatten(1, (2, channels))
                x = torch.stack((pairs[:, 0], pairs[:, 1]), dim=3).flatten(2, 3)
                frames *= 2
            self.doubles.add(upsampler)
        images = x.transpose(1, 2).reshape(items * frames, channels, height, width)
        return (
            self._resample(upsampler.resample, images).unflatten(0, (items, frames)).transpose(1, 2)
        )

    def _attend(self, attention: nn.Module, x: Tensor) -> Tensor:
        attended: Tensor = attention(x)
        return attended

    def _resample(self, resample: Any, images: Tensor) -> Tensor:
        """An enlargement, then a convolution."""
        resampled: Tensor = resample(images)
        return resampled

    def _activate(self, norm: Any, x: Tensor) -> Tensor:
        """RMS norm over the channels, then SiLU."""
        half = x.dtype in (torch.float16, torch.bfloat16)
        normed = F.normalize(x.float() if half else x, dim=1).to(x.dtype)
        return F.silu(normed.mul_(norm.scale).mul_(norm.gamma), inplace=True)

    def _conv(self, conv: nn.Conv3d, x: Tensor) -> Tensor:
        """The convolution of `x` behind the frames that it has seen before."""
        if conv.kernel_size[0] > 1:
            x = self._behind_kept(conv, x)
        return self._convolve(x, conv)

    def _behind_kept(self, conv: nn.Conv3d, x: Tensor) -> Tensor:
        """Padded; valid until the next convolution."""
        before, *margins = (size - 1 for size in conv.kernel_size)
        frames, height, width = x.shape[2:]
        top, left = (margin // 2 for margin in margins)
        shape = (*x.shape[:2], frames + before, height + 2 * top, width + 2 * left)
        place = conv.kernel_size, shape
        buffer = self.buffers.get(place)
        if buffer is None:
            buffer = self._zeros(x, shape)
        if self.keeps_buffers:
            self.buffers[place] = buffer
        buffer[:, :, before:, top : top + height, left : left + width].copy_(x)
        if conv in self.kept:
            buffer[:, :, :before].copy_(self.kept[conv])
        else:
            buffer[:, :, :before].zero_()
        if not self.ends:
            self.kept[conv] = buffer[:, :, frames:].clone()
        return buffer

    def _zeros(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        return like.new_zeros(shape)

    def _convolve(self, x: Tensor, conv: nn.Conv3d) -> Tensor:
        return F.conv3d(x, conv.weight, conv.bias)


class _Tiled(_Decoding):
    """Behind the middle one tile after the other: see `tiling`. Equal to rounding."""

    def __init__(self, tiling: Tiling, factor: int) -> None:
        """`factor`: pixels of a cell."""
        super().__init__()
        self.tiling, self.factor = tiling, factor

    @torch.no_grad()
    def run(self, vae: Any, latents: Tensor) -> Tensor:
        cells = self._conv(vae.post_quant_conv, latents).split(1, dim=2)
        middles = [self._middle(vae.decoder, x) for x in cells]
        items, _, count, rows, columns = latents.shape
        frames = 1 + 2 ** sum(vae.config.temperal_downsample) * (count - 1)
        shape = items, 3, frames, rows * self.factor, columns * self.factor
        video = latents.new_empty(shape)

        def draw(rows: Span, columns: Span) -> Iterator[Tensor]:
            tile = _Decoding(keeps_buffers=False)
            for number, middle in enumerate(middles, 1):
                tile.ends = number == len(middles)
                seen = middle[..., rows.begin : rows.end, columns.begin : columns.end]
                yield unpatchify(tile._enlarged(vae.decoder, seen.contiguous()), _patch(vae))

        return draw_by_tiles(self.tiling, video, self.factor, draw).clamp_(-1.0, 1.0)


class _OneDnn(_Decoding):
    """By oneDNN's convolutions, with the channels last where there are few of them. That takes a
    third less time; sums over more channels err twice as much, more than that in all.

    The number of items changes no bit: their layout is said where torch guesses it from strides
    that mean nothing for one item, and attention takes them one by one."""

    def _attend(self, attention: nn.Module, x: Tensor) -> Tensor:
        return torch.cat([attention(one.contiguous()) for one in x.split(1)])

    def _resample(self, resample: Any, images: Tensor) -> Tensor:
        enlarge, conv = resample
        few = images.shape[1] <= _FEW_CHANNELS
        layout = torch.channels_last if few else torch.contiguous_format
        return self._convolve(enlarge(images).contiguous(memory_format=layout), conv)

    def _zeros(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        few = shape[1] <= _FEW_CHANNELS
        layout = torch.channels_last_3d if few else torch.contiguous_format
        return like.new_zeros(shape).to(memory_format=layout)

    def _convolve(self, x: Tensor, conv: Any) -> Tensor:
        padding: Any = conv.padding if isinstance(conv, nn.Conv2d) else (0, 0, 0)  # is there
        return torch.mkldnn_convolution(
            x, conv.weight, conv.bias, padding, conv.stride, conv.dilation, 1
        )
