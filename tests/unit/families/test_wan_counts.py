"""FLOPs of Wans that draw from images, against what real models count on the meta device."""

from __future__ import annotations

import pytest
import torch
from meta_models import flops, on_meta, packaged

from batchgen.families.family import family_spec
from batchgen.families.vision import SeesImages, clip_vision_flops
from batchgen.families.wan import spec as wan
from batchgen.families.wan22_i2v import spec as wan22_i2v
from batchgen.families.wan22_ti2v import spec as wan22_ti2v
from batchgen.families.wan_i2v import spec as wan_i2v
from batchgen.request import Bucket


def test_flops_of_wan_with_images() -> None:
    model, bucket = packaged("wan2.1-i2v-14b-480p"), Bucket(832, 480, 81)
    transformer, dtype = on_meta(model, "transformer"), torch.bfloat16

    def forward() -> None:
        transformer(
            hidden_states=torch.empty(1, 36, *wan.latent_shape(model, bucket), dtype=dtype),
            timestep=torch.empty(1),
            encoder_hidden_states=torch.empty(1, 512, 4096, dtype=dtype),
            encoder_hidden_states_image=torch.empty(1, 257, 1280, dtype=dtype),
        )

    assert wan_i2v.forward_flops(model, bucket) == pytest.approx(flops(forward), rel=0.02)
    encoder = on_meta(model, "image_encoder")
    pixels = torch.empty(1, 3, 224, 224, dtype=dtype)
    counted = flops(lambda: encoder(pixels.to("meta")))
    assert clip_vision_flops(wan_i2v.dims(model).image_encoder) == pytest.approx(counted, rel=0.02)


def test_flops_of_an_expert_with_images() -> None:
    """It sees the image in its channels alone."""
    model, bucket = packaged("wan2.2-i2v-a14b"), Bucket(832, 480, 81)
    transformer, dtype = on_meta(model, "transformer"), torch.bfloat16

    def forward() -> None:
        transformer(
            hidden_states=torch.empty(1, 36, *wan.latent_shape(model, bucket), dtype=dtype),
            timestep=torch.empty(1),
            encoder_hidden_states=torch.empty(1, 512, 4096, dtype=dtype),
        )

    assert wan22_i2v.forward_flops(model, bucket) == pytest.approx(flops(forward), rel=0.02)


def test_flops_of_wan_ti2v() -> None:
    model, bucket = packaged("wan2.2-ti2v-5b"), Bucket(1280, 704, 121)
    transformer, dtype = on_meta(model, "transformer"), torch.bfloat16
    shape = wan.latent_shape(model, bucket)

    def forward() -> None:
        transformer(
            hidden_states=torch.empty(1, 48, *shape, dtype=dtype),
            timestep=torch.empty(1, wan.tokens(model, bucket)),
            encoder_hidden_states=torch.empty(1, 512, 4096, dtype=dtype),
        )

    assert wan22_ti2v.forward_flops(model, bucket) == pytest.approx(flops(forward), rel=0.02)


@pytest.mark.parametrize("name", ["wan2.2-ti2v-5b", "wan2.2-i2v-a14b"])
def test_flops_of_both_halves_of_an_autoencoder_of_wan(name: str) -> None:
    """Of what a row is given: a video whose other frames are grey, or one frame."""
    model, bucket = packaged(name), Bucket(512, 256, 9)
    spec, given = family_spec(model.family), 1 if name == "wan2.2-ti2v-5b" else 9
    vae, shape = on_meta(model, "vae").float(), wan.latent_shape(model, bucket)
    latents = torch.empty(1, wan.dims(model).vae.z_dim, *shape, device="meta")
    counted = flops(lambda: vae.decode(latents))
    assert spec.decode_flops(model, bucket) == pytest.approx(counted, rel=0.02)
    video = torch.empty(1, 3, given, bucket.height, bucket.width, device="meta")
    counted = flops(lambda: vae.encode(video))
    assert isinstance(spec, SeesImages)
    assert spec.image_flops(model, bucket) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    ("name", "images"), [("wan2.1-i2v-14b-480p", 1), ("wan2.1-flf2v-14b-720p", 2)]
)
def test_images_are_seen_by_clip_too(name: str, images: int) -> None:
    model, bucket = packaged(name), Bucket(832, 480, 81)
    seen = images * clip_vision_flops(wan_i2v.dims(model).image_encoder)
    assert wan_i2v.image_flops(model, bucket) == seen + wan.given_flops(model, bucket)
