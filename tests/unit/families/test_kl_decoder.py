"""The image autoencoder tile by tile: no seam, less memory, in the forecast."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLHunyuanVideo
from live_bytes import LiveBytes
from quick_cases import first_quick
from torch import Tensor
from toy_engine import Keeper, ListSource, request, system
from toy_flux import flux_spec
from toys import TOYS
from video_toys import VIDEO_TOYS

from batchgen.config.capability import served_by
from batchgen.config.schema import ModelSpec, VaeConfig
from batchgen.engine.engine import Engine
from batchgen.errors import ConfigError
from batchgen.families import kl_decoder
from batchgen.families.autoencoders import KlVae, kl_decode_bytes, kl_tiles
from batchgen.families.hunyuan_video import decoder as hunyuan
from batchgen.families.hunyuan_video.vae import HunyuanVae, vae_decode_bytes, vae_tiles
from batchgen.families.tiling import Tiling
from batchgen.request import Bucket, Request

TILES = Tiling(72, 72)
WIDTHS = (8, 16, 16, 16)
BLOCKS = {"up": "UpDecoderBlock2D", "down": "DownEncoderBlock2D"}


def autoencoder(made: Any = AutoencoderKL, widths: tuple[int, ...] = WIDTHS) -> Any:
    """Whose images are in about -1..1."""
    torch.manual_seed(0)
    vae = made(
        block_out_channels=widths,
        up_block_types=(BLOCKS["up"],) * len(widths),
        down_block_types=(BLOCKS["down"],) * len(widths),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    ).eval()
    vae.decoder.conv_out.weight.data.mul_(0.25)
    return vae


def latents(rows: int, columns: int, items: int = 1) -> Tensor:
    return torch.randn(items, 4, rows, columns, generator=torch.Generator().manual_seed(1))


def decoded(vae: Any, z: Tensor) -> Tensor:
    with torch.no_grad():
        return vae.decode(z, return_dict=False)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("made", [AutoencoderKL, AutoencoderKLFlux2])
def test_tiles_show_no_seam(one_thread: None, made: Any) -> None:
    """diffusers' own tiles do, since each of them is normed by itself."""
    vae, z = autoencoder(made), latents(20, 27, items=2)
    whole, tiled = decoded(vae, z), kl_decoder.decode(vae, z, TILES)
    assert tiled.shape == whole.shape and 0.5 < float(whole.abs().max()) < 2
    assert float((tiled - whole).abs().max()) <= 1e-5
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 64, 8
    assert float((decoded(vae, z) - whole).abs().max()) > 1e-2


def test_in_half_precision_it_errs_no_more_than_the_whole(one_thread: None) -> None:
    vae, z = autoencoder(), latents(12, 15)
    exact = decoded(vae, z)
    vae, z = vae.bfloat16(), z.bfloat16()
    whole, tiled = decoded(vae, z), kl_decoder.decode(vae, z, TILES)
    errors = [float((one - exact).pow(2).mean()) for one in (whole, tiled)]
    assert errors[1] <= 1.2 * errors[0]


def test_an_image_of_one_tile_is_decoded_as_it_is(one_thread: None) -> None:
    vae, z = autoencoder(), latents(6, 9)
    assert torch.equal(kl_decoder.decode(vae, z, TILES), decoded(vae, z))


def test_what_is_not_known_is_refused(one_thread: None) -> None:
    vae, z = autoencoder(), latents(6, 10)
    vae.decoder.up_blocks[1].resnets[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match="has layers that are not known here"):
        kl_decoder.decode(vae, z, TILES)
    assert kl_tiles(KlVae(up_block_types=("AttnUpDecoderBlock2D",) * 4), 4) is None


def test_tiles_take_no_more_memory_than_is_forecast(one_thread: None) -> None:
    vae, z, peaks = autoencoder(widths=(16, 32, 32, 32)), latents(32, 32), list[int]()
    for tiling in (None, Tiling(64, 64)):
        with torch.no_grad(), LiveBytes() as live:
            kl_decoder.decode(vae, z, tiling)
        peaks.append(live.peak)
    dims, bucket = KlVae(block_out_channels=(16, 32, 32, 32)), Bucket(256, 256, 1)
    tiles = kl_tiles(dims, 4)
    assert tiles is not None
    tile = kl_decode_bytes(dims, Tiling(64, 64).largest(bucket, 8), 4)
    forecast = kl_decode_bytes(dims, bucket, 4), tiles.kept_bytes(bucket) + tile
    for measured, planned in zip(peaks, forecast, strict=True):
        print(f"{measured / 2**20:.1f} MiB, forecast {planned / 2**20:.1f} MiB")
        assert 0.6 * planned < measured <= planned
    assert peaks[1] < 0.6 * peaks[0]


# ------------------------------------------------------------------------------------------ clips
@pytest.fixture(scope="module")
def clips(one_thread: None) -> Any:
    torch.manual_seed(0)
    made = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 16, 16, 16), layers_per_block=1, norm_num_groups=4
    ).eval()
    made.decoder.conv_out.conv.weight.data.mul_(0.3)
    return made


@pytest.mark.parametrize("frames", first_quick([1, 5], 1))
def test_tiles_of_clips_show_no_seam(clips: Any, frames: int) -> None:
    """diffusers' own do; pieces in time are its own, with tiles and without."""
    z = torch.randn(1, 4, frames, 10, 13, generator=torch.Generator().manual_seed(1))
    whole, tiled = decoded(clips, z), hunyuan.decode(clips, z, Tiling(32, 32))
    assert tiled.shape == whole.shape and 0.5 < float(whole.abs().max()) < 2
    assert float((tiled - whole).abs().max()) <= 1e-5
    assert "forward" not in vars(clips.decoder)
    assert torch.equal(hunyuan.decode(clips, z, Tiling(104, 104)), whole)
    clips.enable_tiling(64, 64, None, 48, 48)
    theirs = decoded(clips, z)
    clips.disable_tiling()
    assert float((theirs - whole).abs().max()) > 1e-2


def test_tiles_of_clips_take_no_more_memory_than_is_forecast(clips: Any) -> None:
    """That of a whole decode leaves room for the kernels of a GPU."""
    dims, shape = HunyuanVae(block_out_channels=(8, 16, 16, 16)), (5, 12, 12)
    z, peaks = torch.randn(1, 4, *shape), list[int]()
    for tiling in (None, Tiling(32, 32)):
        with torch.no_grad(), LiveBytes() as live:
            hunyuan.decode(clips, z, tiling)
        peaks.append(live.peak)
    tiles = vae_tiles(dims, 4)
    assert tiles is not None
    forecast = tiles.kept_bytes(Bucket(96, 96, 17)) + vae_decode_bytes(dims, 4, 5, 4, 4)
    print([f"{each / 2**20:.1f} MiB" for each in (*peaks, forecast)])
    assert 0.6 * forecast < peaks[1] <= forecast and peaks[1] < 0.6 * peaks[0]


# ------------------------------------------------------------------------------------------- rows
def draw(spec: ModelSpec, row: Request, vae: VaeConfig) -> np.ndarray:
    engine = Engine.load(spec, system(vae=vae, determinism="throughput"), "cpu")
    keeper = Keeper()
    engine.render(ListSource([row]), keeper)
    assert not keeper.errors
    return keeper.frames[row.row_id].astype(int)


@pytest.mark.parametrize(
    "family", ["flux", "flux2_klein", "hunyuan_dit", "qwen_image", "sd3", "z_image"]
)
def test_rows_are_those_of_whole_images(one_thread: None, family: str) -> None:
    if family == "flux":
        spec, row = flux_spec(), request(0, num_frames=1, solver="euler", sigma_shift=1.0)
    else:
        toy = (TOYS | VIDEO_TOYS)[family]
        spec, row = toy.spec(), toy.row(0)
    row, tiles = replace(row, num_steps=2, width=160, height=64), served_by(spec).tiles
    assert tiles is not None
    tiled = tiles.resolved(VaeConfig(tiled=True, stride=16))
    whole, drawn = (draw(spec, row, vae) for vae in (VaeConfig(), tiled))
    assert np.abs(whole - drawn).max() <= 1 and whole.std() > 1


def test_what_tiles_take_of_flux() -> None:
    """Of bytes in bfloat16 at 1024x1024."""
    vae, bucket = KlVae(), Bucket(1024, 1024, 1)
    tiles = kl_tiles(vae, 2)
    assert tiles is not None and (tiles.factor, tiles.beside) == (8, 0)
    assert kl_decode_bytes(vae, bucket, 2) == 2 * 2**30
    assert tiles.kept_bytes(bucket) == 0.75 * 2**30 + 12 * 2**20
    assert Tiling(256, 256).work(bucket, 8) == 1
