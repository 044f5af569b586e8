"""Decoding tile by tile: no seam, less memory, and where it is refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo15, AutoencoderKLLTXVideo, AutoencoderKLWan
from live_bytes import LiveBytes
from quick_cases import first_quick
from torch import Tensor
from toy_engine import Keeper, ListSource, request, small_spec, system, tiny_wan_spec
from toy_wan_images import ti2v_spec

from batchgen.config.capability import served_by
from batchgen.config.schema import ModelSpec, VaeConfig
from batchgen.engine.engine import Engine
from batchgen.families.dims import stored_dims
from batchgen.families.family import family_spec
from batchgen.families.hunyuan_video15 import decoder as hunyuan15
from batchgen.families.hunyuan_video15.vae import Hunyuan15Vae, vae_decode_bytes, vae_tiles
from batchgen.families.ltx import decoder as ltx
from batchgen.families.ltx.vae import LtxVae
from batchgen.families.ltx.vae import vae_tiles as ltx_tiles
from batchgen.families.tiling import TiledDecoder, Tiling, reach_of
from batchgen.families.wan import decoder
from batchgen.request import Bucket

LATENTS = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
REACH = reach_of(4, convolutions=4)


@pytest.fixture(scope="module")
def vae(one_thread: None) -> AutoencoderKLWan:
    torch.manual_seed(0)
    made: Any = AutoencoderKLWan(**LATENTS, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    return made.eval()  # type: ignore[no-any-return]


def latents(rows: int, columns: int) -> Tensor:
    return torch.randn(1, 4, 2, rows, columns, generator=torch.Generator().manual_seed(1))


def of_cells(core: int, beside: int) -> Tiling:
    return Tiling(8 * (core + 2 * beside), 8 * core)


@pytest.mark.parametrize(("cells", "stride"), [(60, 52), (104, 52), (7, 8), (16, 8), (17, 8)])
def test_tiles_cover_an_axis_once(cells: int, stride: int) -> None:
    spans = of_cells(stride, 5).spans(cells, 8)
    own = [(s.begin + s.before, s.end - s.after) for s in spans]
    assert own[0][0] == 0 and own[-1][1] == cells
    assert all(a[1] == b[0] for a, b in itertools.pairwise(own))
    sizes = {end - begin for begin, end in own}
    assert max(sizes) <= stride and max(sizes) - min(sizes) <= 1
    assert all(s.before == min(5, o[0]) for s, o in zip(spans, own, strict=True))
    assert all(s.after == min(5, cells - o[1]) for s, o in zip(spans, own, strict=True))
    assert max(span.cells for span in spans) <= stride + 10


@pytest.mark.parametrize("patches", [False, True])
def test_a_cell_depends_on_no_more_cells_than_are_said(vae: Any, patches: bool) -> None:
    """Another value in one cell where tiles begin changes pixels that far away, and none beyond."""
    if patches:
        torch.manual_seed(0)
        vae = AutoencoderKLWan(**LATENTS, is_residual=True, patch_size=2, out_channels=12)
    x = torch.randn(1, 4, 1, 1, 40, generator=torch.Generator().manual_seed(2))
    other = x.clone()
    other[..., 20] += 1e3
    with torch.no_grad():
        a, b = (decoder._Decoding()._enlarged(vae.decoder, each) for each in (x, other))
    changed = torch.nonzero((a != b).any(dim=1).flatten(0, -2).any(0)).flatten() // 8
    sides = 20 - int(changed.min()), int(changed.max()) - 20
    # what a shortcut of patches adds may cancel on one side
    assert max(sides) == REACH if patches else sides == (REACH, REACH)
    assert REACH == 9 and reach_of(4, convolutions=6) == 13


def test_tiles_show_no_seam(vae: Any) -> None:
    """With so many cells beside each; with fewer they do, and more so in diffusers' own way."""
    z = latents(20, 27)
    whole = decoder.decode(vae, z)
    tiled = decoder.decode_tiled(vae, z, of_cells(8, REACH))
    assert tiled.shape == whole.shape
    assert float((tiled - whole).abs().max()) <= 1e-5
    seams = decoder.decode_tiled(vae, z, of_cells(8, 2))
    assert float((seams - whole).abs().max()) > 1e-3
    edge = 8 * (8 + 2 * REACH)
    vae.enable_tiling(edge, edge, 64, 64)
    try:
        with torch.no_grad():
            theirs = vae.decode(z, return_dict=False)[0]
    finally:
        vae.use_tiling = False
    assert float((theirs - whole).abs().max()) > 1e-3


def test_a_row_of_one_tile_is_decoded_as_it_is(vae: Any) -> None:
    z = latents(6, 8)
    tiled = decoder.decode_tiled(vae, z, of_cells(8, REACH))
    assert torch.equal(tiled, decoder.decode(vae, z))


def test_tiles_take_less_memory(vae: Any) -> None:
    z, peaks = latents(16, 72), []
    for decode in (decoder.decode, lambda *a: decoder.decode_tiled(*a, of_cells(18, REACH))):
        with LiveBytes() as live:
            decode(vae, z)  # type: ignore[operator]
        peaks.append(live.peak)
    whole, tiled = peaks
    print(f"whole {whole / 2**20:.1f} MiB, tiled {tiled / 2**20:.1f} MiB")
    assert tiled < 0.5 * whole


# ------------------------------------------------------------------------------------------ TI2V
def test_tiles_of_patches_show_no_seam(one_thread: None) -> None:
    """With as many cells as are said to be beside each; with few they do. They take less memory,
    and no more than is forecast."""
    torch.manual_seed(0)
    spec, z = ti2v_spec(), torch.randn(1, 12, 2, 9, 60)
    dims: Any = spec.dims
    made: Any = AutoencoderKLWan(**stored_dims(dims.vae), **dims.vae.random_extras())
    vae, tiles, peaks = made.eval(), served_by(spec).tiles, list[int]()
    assert tiles is not None and (tiles.factor, tiles.reach) == (16, REACH)
    tiling, bucket = Tiling(320 + tiles.beside, 320), Bucket(960, 144, 5)
    found = list[Tensor]()
    for each in (None, tiling, Tiling(320 + 4 * tiles.factor, 320)):
        with torch.no_grad(), LiveBytes() as live:
            video = decoder.decode_tiled(vae, z, each) if each else decoder.decode(vae, z)
        found.append(video)
        peaks.append(live.peak)
    whole, tiled, seams = found
    assert tiled.shape == whole.shape == (1, 3, 5, 144, 960)
    assert float((tiled - whole).abs().max()) <= 1e-5 < float((seams - whole).abs().max())
    forecast = tiles.kept_bytes(bucket)
    forecast += family_spec("wan22_ti2v").decode_bytes(spec, tiling.largest(bucket, tiles.factor))
    print([f"{each / 2**20:.1f} MiB" for each in (*peaks, forecast)])
    assert peaks[1] < 0.85 * peaks[0] and peaks[1] <= forecast


# ------------------------------------------------------------------------------------- LTX-Video
LTX: dict[str, Any] = {
    "latent_channels": 4,
    "block_out_channels": (8, 8),
    "down_block_types": ("LTXVideoDownBlock3D",) * 2,
    "layers_per_block": (1,) * 3,
    "spatio_temporal_scaling": (True,) * 2,
    "decoder_block_out_channels": (8, 16),
    "decoder_layers_per_block": (1,) * 3,
    "decoder_spatio_temporal_scaling": (True,) * 2,
    "decoder_inject_noise": (False,) * 3,
    "upsample_residual": (False,) * 2,
    "upsample_factor": (1,) * 2,
    "patch_size": 2,
}
TIMED = LTX | {
    "timestep_conditioning": True,
    "decoder_block_out_channels": (32, 64),
    "upsample_residual": (True,) * 2,
    "upsample_factor": (2,) * 2,
    "decoder_inject_noise": (False, True, False),
}


@pytest.mark.parametrize("sizes", first_quick([LTX, TIMED], 1), ids=["plain", "timed"])
def test_tiles_of_ltx_video_show_no_seam(one_thread: None, sizes: dict[str, Any]) -> None:
    """With as many cells as are said to be beside each; with one fewer they do. They take less
    memory, and no more than is forecast."""
    torch.manual_seed(0)
    made: Any = AutoencoderKLLTXVideo(**sizes)
    vae, dims = made.eval(), LtxVae(**sizes)
    tiles, z, peaks = ltx_tiles(dims, 4), torch.randn(1, 4, 3, 12, 32), list[int]()
    assert tiles is not None and tiles.factor == 4
    tiling, bucket = Tiling(64 + tiles.beside, 64), Bucket(256, 96, 9)
    time = torch.tensor([0.05]) if dims.timestep_conditioning else None
    found = list[Tensor]()
    for each in (None, tiling, Tiling(tiling.tile - 2 * tiles.factor, 64)):
        torch.manual_seed(1)  # layers may draw noise
        with torch.no_grad(), LiveBytes() as live:
            found.append(ltx.decode(vae, z, time, each))
        peaks.append(live.peak)
    whole, tiled, seams = found
    assert tiled.shape == whole.shape == (1, 3, 9, 96, 256)
    assert float((tiled - whole).abs().max()) <= 1e-5 < float((seams - whole).abs().max())
    pixels = [b.width * b.height * 9 for b in (bucket, tiling.largest(bucket, tiles.factor))]
    forecast = tiles.kept_bytes(bucket) + pixels[1] * (6 * dims.last_channels + 12)
    print([f"{each / 2**20:.1f} MiB" for each in (*peaks, forecast)])
    assert peaks[1] < 0.8 * peaks[0] and peaks[1] <= forecast


def test_noise_of_the_last_level_is_of_a_whole_frame() -> None:
    noisy = TIMED | {"decoder_inject_noise": (True, False, False)}
    assert ltx_tiles(LtxVae(**noisy), 4) is None
    made: Any = AutoencoderKLLTXVideo(**noisy)
    assert not ltx.known(made.eval())


# ------------------------------------------------------------------------------ HunyuanVideo 1.5
def test_tiles_of_hunyuan_video_15_show_no_seam(one_thread: None) -> None:
    """With as many cells as are said to be beside each; with one fewer they do. They take less
    memory, and no more than is forecast."""
    torch.manual_seed(0)
    widths: dict[str, Any] = {"latent_channels": 4, "block_out_channels": (8, 8, 16)}
    made: Any = AutoencoderKLHunyuanVideo15(
        **widths, layers_per_block=1, spatial_compression_ratio=4, temporal_compression_ratio=2
    )
    vae = made.eval()
    dims = Hunyuan15Vae(**widths, layers_per_block=1, spatial_factor=4, temporal_factor=2)
    tiles, z, peaks = vae_tiles(dims, 4), torch.randn(1, 4, 3, 24, 32), list[int]()
    tiling, bucket = Tiling(32 + tiles.beside, 32), Bucket(128, 96, 5)
    found = list[Tensor]()
    for each in (None, tiling, Tiling(tiling.tile - 2 * tiles.factor, 32)):
        with torch.no_grad(), LiveBytes() as live:
            found.append(hunyuan15.decode(vae, z, each))
        peaks.append(live.peak)
    whole, tiled, seams = found
    assert tiled.shape == whole.shape
    assert float((tiled - whole).abs().max()) <= 1e-5 < float((seams - whole).abs().max())
    largest = tiling.largest(bucket, tiles.factor)
    tile = vae_decode_bytes(dims, 4, 3, largest.height // 4, largest.width // 4)
    print([f"{each / 2**20:.1f} MiB" for each in (*peaks, tiles.kept_bytes(bucket) + tile)])
    assert peaks[1] < 0.8 * peaks[0] and peaks[1] <= tiles.kept_bytes(bucket) + tile


# ------------------------------------------------------------------------------------------- rows
def draw(spec: ModelSpec, vae: VaeConfig, determinism: str) -> Keeper:
    engine = Engine.load(spec, system(vae=vae, determinism=determinism), "cpu")
    keeper = Keeper()
    shape = {"width": 64, "height": 160, "num_frames": 5, "num_steps": 2}
    engine.render(ListSource([request(i, **shape) for i in range(2)]), keeper)
    assert not keeper.errors
    return keeper


@pytest.mark.parametrize("determinism", first_quick(["throughput", "strict"], 1))
def test_rows_are_those_of_whole_frames(one_thread: None, determinism: str) -> None:
    spec = tiny_wan_spec()
    tiles = served_by(spec).tiles
    assert tiles is not None
    tiled = tiles.resolved(VaeConfig(tiled=True, stride=64))
    there, here = (draw(spec, vae, determinism) for vae in (VaeConfig(), tiled))
    for name, frames in there.frames.items():
        apart = np.abs(frames.astype(int) - here.frames[name].astype(int))
        assert apart.max() <= 1, name


# ----------------------------------------------------------------------------------------- figures
def test_what_tiles_take_and_cost_of_wan_at_480p() -> None:
    tiles = TiledDecoder(factor=8, frames=4, reach=13, channels=384)
    vae = tiles.resolved(VaeConfig(tiled=True))
    assert (vae.tile, vae.stride) == (624, 416)
    tiling, bucket = Tiling(624, 416), Bucket(832, 480, 81)
    assert tiling.largest(bucket, 8) == Bucket(520, 344, 81)
    assert tiling.work(bucket, 8) == pytest.approx(1.79, abs=0.01)
    wan = replace(small_spec(), dims=family_spec("wan").Dims(  # type: ignore[attr-defined]
        transformer=small_spec().dims.transformer
    ))  # fmt: skip
    assert served_by(wan).tiles == tiles


def sizes() -> Iterator[tuple[VaeConfig, tuple[int, int]]]:
    yield VaeConfig(tiled=True, tile=400), (400, 192)
    yield VaeConfig(tiled=True, stride=64), (272, 64)
    yield VaeConfig(tiled=True, tile=640, stride=256), (640, 256)


def test_one_size_gives_the_other() -> None:
    tiles = TiledDecoder(factor=8, frames=4, reach=13, channels=384)
    for asked, (tile, stride) in sizes():
        assert tiles.resolved(asked) == replace(asked, tile=tile, stride=stride)
