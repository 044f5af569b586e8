"""HunyuanVideo 1.5's decoder: whole as long as frames are still in the making, then tile by tile.

Its norms are over the channels of one cell, so a tile with a few cells beside it comes out as in
the whole frame (`tiling`). Tiles begin behind the last level that makes new frames: before it there
is little. Its attention lets a frame see itself and the frames before it, by a mask over all pairs
of cells; here each frame is asked by itself among those that it sees, and there is no mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLHunyuanVideo15
from torch import Tensor

from batchgen.families.followed import check_known, is_as_made
from batchgen.families.pieces import draw_by_tiles
from batchgen.families.tiling import Span, Tiling


def decode(vae: Any, latents: Tensor, tiling: Tiling | None) -> Tensor:
    """`vae.decode(latents)`: (1, 3, frames, height, width) in about -1..1; with `tiling` to
    rounding, in less memory and more time; of several ranks on the first.
    ConfigError for an autoencoder with other layers than those that are followed here."""
    whole, factor = _whole_levels(vae), _pixels_of_a_cell(vae)
    scale = vae.spatial_compression_ratio // factor
    cells = [scale * each for each in latents.shape[-2:]]
    if tiling is None or tiling.count(cells, factor) == 1:
        video: Tensor = vae.decode(latents, return_dict=False)[0]
        return video
    check_known(known(vae))
    return _tiled(vae.decoder, latents, tiling, whole, factor)


def known(vae: Any) -> bool:
    """As `kl_decoder.known`; its layers are called as they are, but for the attention."""
    made = type(vae) is AutoencoderKLHunyuanVideo15
    return made and is_as_made(vae, vae.decoder.mid_block.modules())


def _whole_levels(vae: Any) -> int:
    """Levels that make new frames."""
    return int(vae.temporal_compression_ratio).bit_length() - 1


def _pixels_of_a_cell(vae: Any) -> int:
    """Where tiles begin."""
    return int(vae.spatial_compression_ratio) >> _whole_levels(vae)


@torch.no_grad()
def _tiled(decoder: Any, latents: Tensor, tiling: Tiling, whole: int, factor: int) -> Tensor:
    x = decoder.conv_in(latents) + latents.repeat_interleave(repeats=decoder.repeat, dim=1)
    x = _middle(decoder.mid_block, x)
    for block in decoder.up_blocks[:whole]:
        x = block(x)
    frames, height, width = x.shape[2:]
    video = x.new_empty(1, 3, frames, height * factor, width * factor)

    def draw(rows: Span, columns: Span) -> Iterator[Tensor]:
        tile = x[..., rows.begin : rows.end, columns.begin : columns.end]
        for block in decoder.up_blocks[whole:]:
            tile = block(tile)
        yield decoder.conv_out(decoder.conv_act(decoder.norm_out(tile)))

    return draw_by_tiles(tiling, video, factor, draw)


def _middle(middle: Any, x: Tensor) -> Tensor:
    x = middle.resnets[0](x)
    for attention, resnet in zip(middle.attentions, middle.resnets[1:], strict=True):
        x = resnet(x if attention is None else _attended(attention, x))
    return x


def _attended(attention: Any, x: Tensor) -> Tensor:
    """Each frame sees itself and those before it."""
    normed, (frames, rows, columns) = attention.norm(x), x.shape[2:]
    query, key, value = (
        project(normed).flatten(2).transpose(1, 2)[:, None].contiguous()
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    size, found = rows * columns, list[Tensor]()
    for end in range(size, (frames + 1) * size, size):
        asks, sees = query[:, :, end - size : end], slice(0, end)
        found.append(F.scaled_dot_product_attention(asks, key[:, :, sees], value[:, :, sees]))
    drawn = torch.cat(found, dim=2)[:, 0].transpose(1, 2).unflatten(2, (frames, rows, columns))
    projected: Tensor = attention.proj_out(drawn)
    return projected + x
