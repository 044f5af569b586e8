"""FLOPs and weights that are planned with, against what real models count on the meta device."""

from __future__ import annotations

import pytest
import torch
from meta_models import flops, on_meta, packaged
from quick_cases import first_quick

from batchgen.engine.loading.checkpoint import meta_model
from batchgen.engine.loading.parts import parts
from batchgen.families.family import family_spec
from batchgen.families.flux import spec as flux
from batchgen.families.flux2_klein import spec as flux2_klein
from batchgen.families.hunyuan_dit import spec as hunyuan_dit
from batchgen.families.qwen_image import spec as qwen_image
from batchgen.families.sd3 import spec as sd3
from batchgen.families.wan import spec as wan
from batchgen.families.z_image import spec as z_image
from batchgen.request import Bucket

LARGE, SMALL = Bucket(1024, 1024, 1), Bucket(512, 512, 1)
BILLIONS = {  # weights of the transformer
    "flux.1-dev": 11.90,
    "flux.1-schnell": 11.89,
    "wan2.1-t2v-1.3b": 1.419,
    "wan2.2-t2v-a14b": 14.29,
    "qwen-image": 20.43,
    "sd3.5-medium": 2.243,
    "wan2.1-i2v-14b-480p": 16.40,
    "wan2.2-i2v-a14b": 14.29,
    "wan2.2-ti2v-5b": 5.00,
    "z-image-turbo": 6.155,
    "flux.2-klein-4b": 3.876,
    "hunyuan-dit-1.2": 1.5,
}


@pytest.mark.parametrize(
    "name",  # the places of 384 x 384 patches take long to make
    [pytest.param(n, marks=[pytest.mark.slow] * (n == "sd3.5-medium")) for n in BILLIONS],
)
def test_weights_are_those_of_the_published_model(name: str) -> None:
    model = packaged(name)
    spec, counted = family_spec(model.family), dict[str, int]()
    for part in parts(model, torch.bfloat16):
        if part.model_class is not None and not part.is_processor:
            module = meta_model(part.model_class, part.config)
            counted[part.name] = sum(p.numel() for p in module.parameters())
    for component, count in counted.items():
        assert spec.parameters(model, component) == pytest.approx(count, rel=0.02), component
    assert counted["transformer"] / 1e9 == pytest.approx(BILLIONS[name], rel=0.001)


@pytest.mark.parametrize(
    ("name", "bucket"), first_quick([("flux.1-dev", LARGE), ("flux.1-schnell", SMALL)], 1)
)
def test_flops_of_flux(name: str, bucket: Bucket) -> None:
    model = packaged(name)
    dims, dtype = flux.dims(model), torch.bfloat16
    transformer, text = on_meta(model, "transformer"), flux.max_tokens(model)
    image = flux.image_tokens(model, bucket)

    def forward() -> None:
        transformer(
            hidden_states=torch.empty(1, image, 64, dtype=dtype),
            timestep=torch.empty(1, dtype=dtype),
            guidance=torch.empty(1) if dims.transformer.guidance_embeds else None,
            encoder_hidden_states=torch.empty(1, text, 4096, dtype=dtype),
            pooled_projections=torch.empty(1, 768, dtype=dtype),
            txt_ids=torch.empty(text, 3, dtype=dtype),
            img_ids=torch.empty(image, 3, dtype=dtype),
        )

    assert flux.forward_flops(model, bucket) == pytest.approx(flops(forward), rel=0.02)
    vae = on_meta(model, "vae")
    latents = torch.empty(1, 16, bucket.height // 8, bucket.width // 8, dtype=dtype, device="meta")
    counted = flops(lambda: vae.decode(latents))
    assert flux.decode_flops(model, bucket) == pytest.approx(counted, rel=0.02)
    clip, t5 = (on_meta(model, name) for name in ("text_encoder", "text_encoder_2"))
    ids = torch.zeros(1, 77, dtype=torch.long, device="meta")
    long_ids = torch.zeros(1, text, dtype=torch.long, device="meta")
    counted = flops(lambda: clip(ids)) + flops(lambda: t5(long_ids))
    assert flux.encode_flops(model) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    ("name", "expert"),
    [("wan2.1-t2v-1.3b", "transformer"), ("wan2.2-t2v-a14b", "transformer_2")],
)
def test_flops_of_wan(name: str, expert: str) -> None:
    model, bucket = packaged(name), Bucket(832, 480, 81)
    transformer = on_meta(model, expert)
    latents = torch.empty(1, 16, *wan.latent_shape(model, bucket), dtype=torch.bfloat16)

    def forward() -> None:
        transformer(
            hidden_states=latents.to("meta"),
            timestep=torch.empty(1),
            encoder_hidden_states=torch.empty(1, 512, 4096, dtype=torch.bfloat16),
        )

    assert wan.forward_flops(model, bucket) == pytest.approx(flops(forward), rel=0.02)


@pytest.mark.slow
def test_flops_of_qwen_image() -> None:
    model = packaged("qwen-image")
    transformer, text = on_meta(model, "transformer"), qwen_image.max_tokens(model)

    def forward() -> None:
        transformer(
            hidden_states=torch.empty(1, 4096, 64, dtype=torch.bfloat16),
            timestep=torch.empty(1, dtype=torch.bfloat16),
            encoder_hidden_states=torch.empty(1, text, 3584, dtype=torch.bfloat16),
            img_shapes=[[(1, 64, 64)]],
        )

    assert qwen_image.forward_flops(model, LARGE) == pytest.approx(flops(forward), rel=0.02)
    vae = on_meta(model, "vae")
    latents = torch.empty(1, 16, 1, 128, 128, dtype=torch.bfloat16, device="meta")
    counted = flops(lambda: vae.decode(latents))
    assert qwen_image.decode_flops(model, LARGE) == pytest.approx(counted, rel=0.02)
    language = on_meta(model, "text_encoder").model.language_model
    ids = torch.zeros(1, text + qwen_image.TEMPLATE_TOKENS, dtype=torch.long, device="meta")
    counted = flops(lambda: language(input_ids=ids))
    assert qwen_image.encode_flops(model) == pytest.approx(counted, rel=0.02)


def test_flops_of_sd3() -> None:
    model = packaged("sd3.5-medium")
    transformer = on_meta(model, "transformer")

    def forward() -> None:
        transformer(
            hidden_states=torch.empty(1, 16, 128, 128, dtype=torch.bfloat16),
            timestep=torch.empty(1),
            encoder_hidden_states=torch.empty(1, 77 + 256, 4096, dtype=torch.bfloat16),
            pooled_projections=torch.empty(1, 2048, dtype=torch.bfloat16),
        )

    assert sd3.forward_flops(model, LARGE) == pytest.approx(flops(forward), rel=0.02)


def test_flops_of_z_image() -> None:
    model = packaged("z-image-turbo")
    transformer = on_meta(model, "transformer")
    transformer.rope_embedder = lambda ids: torch.empty(len(ids), 64, dtype=torch.complex64)
    text, image = torch.empty(512, 2560), torch.empty(16, 1, 128, 128)

    def forward() -> None:
        parts = ([x.to("meta", torch.bfloat16)] for x in (image, text))
        transformer(next(parts), torch.empty(1), next(parts))

    assert z_image.forward_flops(model, LARGE) == pytest.approx(flops(forward), rel=0.02)


def test_flops_of_flux2_klein() -> None:
    model = packaged("flux.2-klein-4b")
    transformer = on_meta(model, "transformer")

    def forward() -> None:
        transformer(
            hidden_states=torch.empty(1, 4096, 128, dtype=torch.bfloat16),
            timestep=torch.empty(1, dtype=torch.bfloat16),
            encoder_hidden_states=torch.empty(1, 512, 7680, dtype=torch.bfloat16),
            txt_ids=torch.empty(1, 512, 4),
            img_ids=torch.empty(1, 4096, 4),
        )

    assert flux2_klein.forward_flops(model, LARGE) == pytest.approx(flops(forward), rel=0.02)


def test_flops_of_hunyuan_dit() -> None:
    model = packaged("hunyuan-dit-1.2")
    transformer, dtype = on_meta(model, "transformer"), torch.bfloat16

    def forward() -> None:
        transformer(
            torch.empty(1, 4, 128, 128, dtype=dtype),
            torch.empty(1, dtype=dtype),
            encoder_hidden_states=torch.empty(1, 77, 1024, dtype=dtype),
            text_embedding_mask=torch.ones(1, 77, dtype=torch.long),
            encoder_hidden_states_t5=torch.empty(1, 256, 2048, dtype=dtype),
            text_embedding_mask_t5=torch.ones(1, 256, dtype=torch.long),
            image_meta_size=torch.empty(1, 6, dtype=dtype),
            style=torch.zeros(1, dtype=torch.long),
            image_rotary_emb=(torch.empty(4096, 88), torch.empty(4096, 88)),
        )

    assert hunyuan_dit.forward_flops(model, LARGE) == pytest.approx(flops(forward), rel=0.02)
