"""The Wan autoencoder's decoder: the bits of diffusers', whatever the size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan
from live_bytes import LiveBytes
from torch import Tensor, nn

from batchgen.families.family import family_spec
from batchgen.families.table import presets
from batchgen.families.tiling import Tiling
from batchgen.families.wan import decoder
from batchgen.request import Bucket

FORECAST = [("wan", AutoencoderKLWan, 1), ("wan", AutoencoderKLWan, 9)]
FORECAST += [("qwen_image", AutoencoderKLQwenImage, 1)]

SHAPES = [
    (1, 4, 1, 4, 4),  # an image
    (1, 4, 5, 4, 4),  # 17 frames
    (1, 4, 2, 3, 5),
    (1, 4, 3, 2, 2),  # as large with its padding as twice the size without
    (1, 4, 3, 7, 1),
    (3, 4, 3, 4, 3),
]


RESIDUAL = {"is_residual": True, "patch_size": 2, "out_channels": 12, "in_channels": 12}  # TI2V's


def autoencoder(**changes: Any) -> AutoencoderKLWan:
    torch.manual_seed(0)
    values = {"base_dim": 4, "z_dim": 4, "num_res_blocks": 1} | changes
    return AutoencoderKLWan(**values).eval()


def latents(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def by_diffusers(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    with torch.no_grad():
        return vae.decode(z, return_dict=False)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("family", "made", "frames"), FORECAST)
def test_memory_is_as_forecast(family: str, made: type, frames: int) -> None:
    """In the published proportions."""
    model = presets()[family][0]
    dims: Any = model.dims
    small = replace(dims, vae=replace(dims.vae, base_dim=16))
    vae = made(base_dim=16, z_dim=16).eval()
    with torch.no_grad(), LiveBytes() as live:
        decoder.decode(vae, latents(1, 16, 1 + (frames - 1) // 4, 16, 12))
    forecast = family_spec(family).decode_bytes(
        replace(model, dims=small, dtype="float32"), Bucket(96, 128, frames)
    )
    assert 0.85 * forecast < live.peak < 1.05 * forecast


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_res_blocks": 2, "dim_mult": [1, 1], "temperal_downsample": [True]},
        {"dim_mult": [1, 1, 1], "temperal_downsample": [True, False]},
    ],
    ids=["four levels", "two levels", "three levels"],
)
def test_every_bit_is_that_of_diffusers(
    one_thread: None, shape: tuple[int, ...], changes: dict[str, Any]
) -> None:
    vae, z = autoencoder(**changes), latents(*shape)
    assert decoder.known(vae)
    assert torch.equal(decoder.decode(vae, z), by_diffusers(vae, z))


@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize(
    "changes",
    [{"scale_factor_spatial": 16}, {"dim_mult": [1, 2, 2], "temperal_downsample": [True, False]}],
)
def test_every_bit_of_a_tile_is_that_of_diffusers(
    one_thread: None, shape: tuple[int, ...], changes: dict[str, Any]
) -> None:
    vae, z = autoencoder(**RESIDUAL, **changes), latents(*shape)
    drawn = decoder.decode_tiled(vae, z, Tiling(256, 256))
    assert torch.equal(drawn, by_diffusers(vae, z))
    assert torch.equal(decoder.decode(vae, z), drawn)


def test_every_bit_is_equal_in_bfloat16(one_thread: None) -> None:
    vae, z = autoencoder().bfloat16(), latents(1, 4, 3, 4, 4).bfloat16()
    assert decoder.decode(vae, z).dtype == torch.bfloat16
    assert torch.equal(decoder.decode(vae, z), by_diffusers(vae, z))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_fast_way_is_as_near_as_rounding(one_thread: None, shape: tuple[int, ...]) -> None:
    vae, z = autoencoder(), latents(*shape)
    assert (decoder.decode_fast(vae, z) - by_diffusers(vae, z)).abs().max() <= 2e-5
    half = autoencoder().bfloat16(), z.bfloat16()
    assert torch.equal(decoder.decode_fast(*half), by_diffusers(*half))
    patches = autoencoder(**RESIDUAL)
    assert torch.equal(decoder.decode_fast(patches, z), by_diffusers(patches, z))


@pytest.mark.parametrize("base", [4, 64])
def test_the_fast_way_does_not_depend_on_who_is_decoded_with(one_thread: None, base: int) -> None:
    vae, z = (
        autoencoder(base_dim=base, dim_mult=[1, 1], temperal_downsample=[True]),
        latents(3, 4, 2, 4, 4),
    )
    alone = torch.cat([decoder.decode_fast(vae, one) for one in z.split(1)])
    assert torch.equal(decoder.decode_fast(vae, z), alone)


def test_decoding_again_starts_from_nothing(one_thread: None) -> None:
    vae, z = autoencoder(), latents(1, 4, 3, 4, 4)
    for way in (decoder.decode, decoder.decode_fast):
        first = way(vae, z)
        way(vae, latents(1, 4, 2, 4, 4) * 9)
        assert torch.equal(way(vae, z), first)


def tiled() -> AutoencoderKLWan:
    vae = autoencoder()
    vae.enable_tiling(32, 32, 16, 16)
    return vae


def sliced() -> AutoencoderKLWan:
    vae = autoencoder()
    vae.enable_slicing()
    return vae


@pytest.mark.parametrize("made", [tiled, sliced, lambda: autoencoder().train()])
def test_what_is_not_known_is_left_to_diffusers(one_thread: None, made: Any) -> None:
    vae, z = made(), latents(2, 4, 2, 6, 6)
    assert not decoder.known(vae)
    for way in (decoder.decode, decoder.decode_fast):
        assert torch.equal(way(vae, z), by_diffusers(vae, z))


def test_whoever_hangs_something_into_a_layer_is_called(one_thread: None) -> None:
    vae, z, seen = autoencoder(), latents(1, 4, 2, 4, 4), list[nn.Module]()
    hook = vae.decoder.conv_in.register_forward_pre_hook(lambda module, _: seen.append(module))
    assert torch.equal(decoder.decode(vae, z), by_diffusers(vae, z))
    assert len(seen) == 4  # each way takes each of the two frames through it
    hook.remove()
    assert decoder.known(vae)
    vae.decoder.conv_in.forward = lambda x, kept=None: x.repeat(1, 4, 1, 1, 1)
    assert torch.equal(decoder.decode(vae, z), by_diffusers(vae, z))
