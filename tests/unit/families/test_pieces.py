"""Several ranks that decode a row together: the bits of one rank, for every decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
)
from quick_cases import first_quick
from torch import Tensor

from batchgen.families import kl_decoder
from batchgen.families.cogvideox import decoder as cogvideox
from batchgen.families.hunyuan_video import decoder as hunyuan
from batchgen.families.hunyuan_video15 import decoder as hunyuan15
from batchgen.families.ltx import decoder as ltx
from batchgen.families.tiling import Tiling
from batchgen.families.wan import decoder as wan

Decode = Callable[[Any, Tensor, Tiling], Tensor]


class Table:
    """Where threads that play ranks lay what is for the others."""

    def __init__(self, size: int) -> None:
        self.all_here, self.laid = Barrier(size, timeout=60), dict[tuple[int, int], Tensor]()


class Thread:
    """One of them (`tiling.Ranks`)."""

    def __init__(self, table: Table, size: int, place: int) -> None:
        self.table, self.size, self.place, self.sent = table, size, place, 0

    def exchange(self, pieces: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        for to, piece in enumerate(pieces):
            self.table.laid[self.place, to] = piece.clone()
            self.sent += piece.numel() if to != self.place else 0
        self.table.all_here.wait()
        found = [self.table.laid[n, self.place] for n in range(self.size)]
        self.table.all_here.wait()
        return [one.view(*shape) for one, shape in zip(found, shapes, strict=True)]


def wan_case() -> tuple[Decode, Any, Tensor, Tiling]:
    sizes: dict[str, Any] = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1]}
    vae: Any = AutoencoderKLWan(
        **sizes, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    return wan.decode_tiled, vae, torch.randn(1, 4, 2, 12, 19), Tiling(64 + 144, 64)


def kl_case() -> tuple[Decode, Any, Tensor, Tiling]:
    """Of which a level cuts its tiles elsewhere than the one before."""
    vae: Any = AutoencoderKL(
        block_out_channels=(8, 16, 16),
        up_block_types=("UpDecoderBlock2D",) * 3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    return kl_decoder.decode, vae, torch.randn(1, 4, 11, 13), Tiling(20, 20)


def hunyuan_case() -> tuple[Decode, Any, Tensor, Tiling]:
    vae: Any = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=True,
    )
    return hunyuan.decode, vae, torch.randn(1, 4, 3, 7, 9), Tiling(24, 24)


def hunyuan15_case() -> tuple[Decode, Any, Tensor, Tiling]:
    vae: Any = AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
    )
    return hunyuan15.decode, vae, torch.randn(1, 4, 3, 12, 16), Tiling(16 + 56, 16)


def ltx_case() -> tuple[Decode, Any, Tensor, Tiling]:
    vae: Any = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        layers_per_block=(1,) * 3,
        spatio_temporal_scaling=(True,) * 2,
        decoder_block_out_channels=(8, 16),
        decoder_layers_per_block=(1,) * 3,
        decoder_spatio_temporal_scaling=(True,) * 2,
        decoder_inject_noise=(False,) * 3,
        upsample_residual=(False,) * 2,
        upsample_factor=(1,) * 2,
        patch_size=2,
    )

    def decode(vae: Any, z: Tensor, tiling: Tiling) -> Tensor:
        return ltx.decode(vae, z, None, tiling)

    return decode, vae, torch.randn(1, 4, 2, 8, 12), Tiling(32 + 40, 32)


def cog_case() -> tuple[Decode, Any, Tensor, Tiling]:
    vae: Any = AutoencoderKLCogVideoX(
        latent_channels=4,
        block_out_channels=(8, 16, 16),
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
    )
    return cogvideox.decode, vae, torch.randn(1, 4, 4, 7, 9), Tiling(16, 16)


CASES = [
    (wan_case, 2),
    (kl_case, 3),
    (hunyuan15_case, 2),
    (hunyuan_case, 2),
    (wan_case, 7),  # ranks without a tile
    (kl_case, 17),
    (hunyuan_case, 4),
    (hunyuan15_case, 3),
    (ltx_case, 2),
    (ltx_case, 7),
    (cog_case, 3),
    (cog_case, 8),
]


@pytest.mark.parametrize(("case", "size"), first_quick(CASES, 3))
def test_several_ranks_draw_the_bits_of_one(
    one_thread: None, case: Callable[[], tuple[Decode, Any, Tensor, Tiling]], size: int
) -> None:
    torch.manual_seed(0)
    decode, vae, z, tiling = case()
    vae.eval()
    table = Table(size)
    threads = [Thread(table, size, place) for place in range(size)]

    def run(thread: Thread) -> Tensor:
        with torch.no_grad():
            return decode(vae, z, replace(tiling, ranks=thread))

    with ThreadPoolExecutor(size) as pool:
        together = [*pool.map(run, threads)]
    with torch.no_grad():
        alone = decode(vae, z, tiling)
    assert torch.equal(together[0], alone)
    tiles = tiling.count(z.shape[-2:], alone.shape[-1] // z.shape[-1])
    has_tiles = [len(own) > 0 for own in replace(tiling, ranks=threads[0]).shares(range(tiles))]
    assert [thread.sent > 0 for thread in threads[1:]] == has_tiles[1:]
