"""LTX-Video's decoder: whole up to its last level, which then goes tile by tile.

Its norms are over the channels of one cell, so a tile with a few cells beside it comes out as in
the whole frame (`tiling`). Levels before the last one take an eighth of its memory, and would need
many more cells beside a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import AutoencoderKLLTXVideo
from torch import Tensor

from batchgen.families.followed import check_known, is_as_made
from batchgen.families.pieces import draw_by_tiles
from batchgen.families.tiling import Span, Tiling


def decode(vae: Any, latents: Tensor, timestep: Tensor | None, tiling: Tiling | None) -> Tensor:
    """`vae.decode(latents, timestep)`: (1, 3, frames, height, width) in about -1..1; with `tiling`
    to rounding, in less memory and more time; of several ranks on the first. ConfigError for an
    autoencoder with other layers than those that are followed here."""
    factor = _pixels_of_a_cell(vae)
    scale = vae.spatial_compression_ratio // factor
    cells = [scale * each for each in latents.shape[-2:]]
    if tiling is None or tiling.count(cells, factor) == 1:
        video: Tensor = vae.decode(latents, timestep, return_dict=False)[0]
        return video
    check_known(known(vae))
    return _tiled(vae, latents, timestep, tiling, factor)


def known(vae: Any) -> bool:
    """As `kl_decoder.known`; its blocks are called as they are. Noise that the last level adds is
    of a whole frame."""
    modules = (vae.decoder, vae.decoder.mid_block, *vae.decoder.up_blocks)
    plain = type(vae) is AutoencoderKLLTXVideo and is_as_made(vae, modules)
    return plain and not (vae.use_framewise_decoding or vae.config.decoder_inject_noise[0])


def _pixels_of_a_cell(vae: Any) -> int:
    """Where tiles begin: before the last level."""
    config = vae.config
    return int(config.patch_size) * (2 if config.decoder_spatio_temporal_scaling[0] else 1)


@torch.no_grad()
def _tiled(
    vae: Any, latents: Tensor, timestep: Tensor | None, tiling: Tiling, factor: int
) -> Tensor:
    decoder, scales = vae.decoder, vae.config.decoder_spatio_temporal_scaling[0]
    if timestep is not None and decoder.timestep_scale_multiplier is not None:
        timestep = timestep * decoder.timestep_scale_multiplier
    x = decoder.mid_block(decoder.conv_in(latents), timestep)
    for block in decoder.up_blocks[:-1]:
        x = block(x, timestep)
    frames, height, width = x.shape[2:]
    frames = (2 * frames - 1 if scales else frames) * decoder.patch_size_t
    video = x.new_empty(len(x), 3, frames, height * factor, width * factor)

    def draw(rows: Span, columns: Span) -> Iterator[Tensor]:
        tile = x[..., rows.begin : rows.end, columns.begin : columns.end]
        yield _pixels(decoder, decoder.up_blocks[-1](tile, timestep), timestep)

    return draw_by_tiles(tiling, video, factor, draw)


def _pixels(decoder: Any, x: Tensor, timestep: Tensor | None) -> Tensor:
    """What is behind the levels."""
    x = decoder.norm_out(x.movedim(1, -1)).movedim(-1, 1)
    if decoder.time_embedder is not None:
        assert timestep is not None
        told = decoder.time_embedder(
            timestep=timestep.flatten(),
            resolution=None,
            aspect_ratio=None,
            batch_size=1,
            hidden_dtype=x.dtype,
        )
        told = told.view(1, 2, -1, 1, 1, 1) + decoder.scale_shift_table[None, ..., None, None, None]
        shift, scale = told.unbind(1)
        x = x * (1 + scale) + shift
    x = decoder.conv_out(decoder.conv_act(x))
    size, frames = decoder.patch_size, decoder.patch_size_t
    x = x.unflatten(1, (-1, frames, size, size)).permute(0, 1, 5, 2, 6, 4, 7, 3)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
