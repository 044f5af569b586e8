"""CogVideoX's autoencoder tile by tile: no seam, less memory, in the forecast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from live_bytes import LiveBytes
from quick_cases import first_quick

from batchgen.errors import ConfigError
from batchgen.families.cogvideox import decoder
from batchgen.families.cogvideox.vae import CogVae, vae_decode_bytes, vae_tiles
from batchgen.families.tiling import Tiling
from batchgen.request import Bucket

WIDTHS: dict[str, Any] = {
    "latent_channels": 4,
    "block_out_channels": (8, 16, 16),
    "up_block_types": ("CogVideoXUpBlock3D",) * 3,
    "down_block_types": ("CogVideoXDownBlock3D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


@pytest.fixture(scope="module")
def vae(one_thread: None) -> Any:
    torch.manual_seed(0)
    made: Any = AutoencoderKLCogVideoX(**WIDTHS)
    return made.eval()


@pytest.mark.parametrize("frames", first_quick([5, 1, 2, 4], 1))
def test_tiles_show_no_seam(vae: Any, frames: int) -> None:
    """One piece alone, a first one that has a frame more, and some. diffusers' own do."""
    z = torch.randn(1, 4, frames, 9, 13, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = vae.decode(z, return_dict=False)[0]
    tiled = decoder.decode(vae, z, Tiling(20, 20))
    assert tiled.shape == whole.shape and float(whole.abs().max()) > 0.3
    assert float((tiled - whole).abs().max()) <= 1e-5
    assert torch.equal(decoder.decode(vae, z, Tiling(64, 64)), whole)
    vae.enable_tiling(32, 32, 0.25, 0.25)
    try:
        with torch.no_grad():
            theirs = vae.decode(z, return_dict=False)[0]
        with pytest.raises(ConfigError, match="layers that are not known"):
            decoder.decode(vae, z, Tiling(20, 20))
    finally:
        vae.disable_tiling()
    assert float((theirs - whole).abs().max()) > 1e-2


def test_tiles_take_less_memory_and_no_more_than_is_forecast(one_thread: None) -> None:
    """In the proportions of the published ones."""
    widths = WIDTHS | {"latent_channels": 1, "layers_per_block": 3}
    torch.manual_seed(0)
    made: Any = AutoencoderKLCogVideoX(**widths)
    vae, dims, z, peaks = made.eval(), CogVae(**widths), torch.randn(1, 1, 5, 18, 24), list[int]()
    for tiling in (None, Tiling(24, 24)):
        with torch.no_grad(), LiveBytes() as live:
            decoder.decode(vae, z, tiling)
        peaks.append(live.peak)
    forecast = vae_tiles(dims, 4).kept_bytes(Bucket(96, 72, 17))
    forecast += vae_decode_bytes(dims, 4, 5, 6, 6)
    whole = vae_decode_bytes(dims, 4, 5, 18, 24)
    print([f"{each / 2**20:.2f} MiB" for each in (*peaks, whole, forecast)])
    assert 0.8 * whole < peaks[0] <= whole
    assert peaks[1] < 0.6 * peaks[0] and 0.7 * forecast < peaks[1] <= forecast
