"""HunyuanVideo's decoder, layer by layer and each layer tile by tile (`kl_decoder`).

diffusers cuts a clip into pieces in time and blends them; each piece goes through the decoder as
here. Its attention in the middle lets a frame see itself and the frames before it, by a mask over
all pairs of cells, which takes more than the cells themselves. Here each frame is asked by itself
among those that it sees, and there is no mask.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import (
    HunyuanVideoResnetBlockCausal3D,
    HunyuanVideoUpBlock3D,
    HunyuanVideoUpsampleCausal3D,
)
from torch import Tensor

from batchgen.families.followed import check_known, is_as_made
from batchgen.families.kl_decoder import Layers, Tile
from batchgen.families.tiling import Tiling


def decode(vae: Any, latents: Tensor, tiling: Tiling | None) -> Tensor:
    """`vae.decode(latents)`: (1, 3, frames, height, width) in about -1..1; with `tiling` to
    rounding, in less memory; of several ranks on the first.
    ConfigError for an autoencoder with other layers than those that are followed here."""
    factor = vae.spatial_compression_ratio
    if tiling is None or tiling.count(latents.shape[-2:], factor) == 1:
        return _decoded(vae, latents)
    check_known(known(vae))
    return _decoded(_with_tiles(vae, tiling, factor), latents)


def known(vae: Any) -> bool:
    """As `kl_decoder.known`."""
    decoder, middle = vae.decoder, vae.decoder.mid_block
    blocks = decoder.up_blocks
    return (
        type(vae) is AutoencoderKLHunyuanVideo
        and is_as_made(vae, decoder.modules())
        and all(type(attention) is Attention for attention in middle.attentions if attention)
        and all(type(block) is HunyuanVideoUpBlock3D for block in blocks)
        and all(type(r) is HunyuanVideoResnetBlockCausal3D for b in blocks for r in b.resnets)
        and all(_enlarges(u) for block in blocks for u in block.upsamplers or ())
    )


def _enlarges(upsampler: Any) -> bool:
    """To twice the height and width."""
    plain = type(upsampler) is HunyuanVideoUpsampleCausal3D
    return plain and tuple(upsampler.upsample_factor[1:]) == (2, 2)


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    video: Tensor = vae.decode(latents, return_dict=False)[0]
    return video


def _with_tiles(vae: Any, tiling: Tiling, factor: int) -> Any:
    """The autoencoder with another way through its decoder, which diffusers' code for the pieces
    calls. It has the weights of the one that is given, which others may be using."""

    def forward(x: Tensor) -> Tensor:
        return _Clip(tiling, factor).piece(vae.decoder, x)

    tiled, decoder = copy(vae), copy(vae.decoder)
    decoder.forward = forward
    tiled._modules = {**vae._modules, "decoder": decoder}
    return tiled


class _Clip(Layers):
    """One piece of a clip on the way through the decoder."""

    @torch.no_grad()
    def piece(self, decoder: Any, x: Tensor) -> Tensor:
        """From (1, channels, frames, rows, columns) to pixels."""
        middle = decoder.mid_block
        x = middle.resnets[0](decoder.conv_in(x))
        for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
            x = resnet(x if attention is None else _attended(attention, x))
        return self.enlarged(decoder, x)

    def plain(self, conv: Any) -> Any:
        return conv.conv

    def convolve(self, conv: Any, seen: Tensor, tile: Tile) -> Tensor:
        before = conv.time_causal_padding[-2:]
        padded = F.pad(seen, (*tile.border, *before), mode=conv.pad_mode)
        return F.conv3d(padded, conv.conv.weight, conv.conv.bias)

    def enlarge(self, upsampler: Any, x: Tensor) -> Tensor:
        """The first frame stays one."""
        first = x[:, :, :1].repeat_interleave(2, -2).repeat_interleave(2, -1)
        if x.shape[2] == 1:
            return first
        others = x[:, :, 1:].contiguous()
        larger = F.interpolate(others, scale_factor=upsampler.upsample_factor, mode="nearest")
        return torch.cat([first, larger], dim=2)

    def scale(self, resnet: Any) -> float:
        return 1.0


def _attended(attention: Any, x: Tensor) -> Tensor:
    """Each frame sees itself and those before it."""
    frames, rows, columns = x.shape[2:]
    cells = x.flatten(2).transpose(1, 2)
    normed = attention.group_norm(cells.transpose(1, 2)).transpose(1, 2)
    query, key, value = (
        project(normed).unflatten(2, (attention.heads, -1)).transpose(1, 2)
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    size, found = rows * columns, list[Tensor]()
    for end in range(size, (frames + 1) * size, size):
        asks, sees = query[:, :, end - size : end], slice(0, end)
        found.append(F.scaled_dot_product_attention(asks, key[:, :, sees], value[:, :, sees]))
    drawn = attention.to_out[0](torch.cat(found, dim=2).transpose(1, 2).flatten(2))
    answer: Tensor = (drawn + cells) / attention.rescale_output_factor
    return answer.transpose(1, 2).unflatten(2, (frames, rows, columns)).contiguous()
