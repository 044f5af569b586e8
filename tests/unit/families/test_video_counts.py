"""FLOPs and weights of video families, against what real models count on the meta device."""

from __future__ import annotations

import pytest
import torch
from meta_models import flops, on_meta, packaged, shortened

from batchgen.engine.loading.checkpoint import meta_model
from batchgen.engine.loading.parts import parts
from batchgen.families.cogvideox import spec as cogvideox
from batchgen.families.family import family_spec
from batchgen.families.hunyuan_video import spec as hunyuan
from batchgen.families.hunyuan_video15 import spec as hunyuan15
from batchgen.families.ltx import spec as ltx
from batchgen.request import Bucket

BILLIONS = {  # weights of the transformer
    "cogvideox-2b": 1.694,
    "cogvideox-5b": 5.571,
    "cogvideox1.5-5b": 5.571,
    "hunyuan-video": 12.82,
    "hunyuan-video-1.5": 8.33,
    "ltx-video": 1.923,
    "ltx-video-0.9.1": 1.923,
    "ltx-video-0.9.5": 1.923,
}


SIBLINGS = (
    "cogvideox-2b",
    "cogvideox-5b",
    "ltx-video",
    "ltx-video-0.9.1",
)  # of one that is counted beside them


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in SIBLINGS else ()) for n in BILLIONS],
)
def test_weights_are_those_of_the_published_model(name: str) -> None:
    model = packaged(name)
    for part in parts(model, torch.bfloat16):
        if part.model_class is None:
            continue
        module = meta_model(part.model_class, part.config)
        count = sum(p.numel() for p in module.parameters())
        predicted = family_spec(model.family).parameters(model, part.name)
        assert predicted == pytest.approx(count, rel=0.02), part.name
        if part.name == "transformer":
            assert count / 1e9 == pytest.approx(BILLIONS[name], rel=0.001)


def test_flops_of_ltx() -> None:
    model, bucket = shortened(packaged("ltx-video-0.9.5")), Bucket(704, 480, 161)
    transformer, vae = on_meta(model, "transformer"), on_meta(model, "vae")
    (frames, height, width), dtype = ltx.latent_shape(model, bucket), torch.bfloat16

    def forward() -> None:
        transformer(
            hidden_states=torch.empty(1, frames * height * width, 128, dtype=dtype),
            timestep=torch.empty(1),
            encoder_hidden_states=torch.empty(1, 128, 4096, dtype=dtype),
            encoder_attention_mask=torch.empty(1, 128, dtype=torch.bool),
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(8 / 25, 32, 32),
        )

    assert ltx.forward_flops(model, bucket) == pytest.approx(flops(forward), rel=0.02)
    latents = torch.empty(1, 128, frames, height, width, dtype=dtype, device="meta")
    counted = flops(lambda: vae.decode(latents, torch.empty(1, dtype=dtype)))
    assert ltx.decode_flops(model, bucket) == pytest.approx(counted, rel=0.02)


def test_flops_of_hunyuan_video() -> None:
    model, bucket, dtype = (
        shortened(packaged("hunyuan-video")),
        Bucket(960, 544, 17),
        torch.bfloat16,
    )
    transformer, vae = on_meta(model, "transformer"), on_meta(model, "vae")
    latents = torch.empty(1, 16, *hunyuan.latent_shape(model, bucket), dtype=dtype, device="meta")

    def forward() -> None:
        transformer(
            hidden_states=latents,
            timestep=torch.empty(1),
            encoder_hidden_states=torch.empty(1, 256, 4096, dtype=dtype),
            encoder_attention_mask=torch.empty(1, 256, dtype=dtype),
            pooled_projections=torch.empty(1, 768, dtype=dtype),
            guidance=torch.empty(1, dtype=dtype),
        )

    assert hunyuan.forward_flops(model, bucket) == pytest.approx(flops(forward), rel=0.02)
    counted = flops(lambda: vae.decode(latents))
    assert hunyuan.decode_flops(model, bucket) == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    "name", [pytest.param("cogvideox-2b", marks=pytest.mark.slow), "cogvideox1.5-5b"]
)
def test_flops_of_cogvideox(name: str) -> None:
    model, bucket, dtype = shortened(packaged(name)), Bucket(720, 480, 17), torch.bfloat16
    transformer, vae = on_meta(model, "transformer"), on_meta(model, "vae")
    frames, height, width = cogvideox.latent_shape(model, bucket)
    drawn = frames + cogvideox.added_frames(model, bucket)
    rotary = torch.empty(cogvideox.video_tokens(model, bucket), 64, device="meta")

    def forward() -> None:
        transformer(
            hidden_states=torch.empty(1, drawn, 16, height, width, dtype=dtype),
            timestep=torch.empty(1),
            encoder_hidden_states=torch.empty(1, 226, 4096, dtype=dtype),
            image_rotary_emb=(rotary, rotary) if "1.5" in name else None,
        )

    assert cogvideox.forward_flops(model, bucket) == pytest.approx(flops(forward), rel=0.02)
    latents = torch.empty(1, 16, frames, height, width, dtype=dtype, device="meta")
    counted = flops(lambda: vae.decode(latents))
    assert cogvideox.decode_flops(model, bucket) == pytest.approx(counted, rel=0.02)


def test_flops_of_hunyuan_video15() -> None:
    model, bucket, dtype = (
        shortened(packaged("hunyuan-video-1.5")),
        Bucket(208, 112, 21),
        torch.bfloat16,
    )
    transformer, vae = on_meta(model, "transformer"), on_meta(model, "vae")
    shape = hunyuan15.latent_shape(model, bucket)
    refiner, blocks = transformer.context_embedder, transformer.transformer_blocks
    texts = hunyuan15.text_tokens(model)
    times = torch.empty(1, dtype=dtype, device="meta")

    def forward() -> None:  # its parts: masks choose tokens, which a model without memory cannot
        embedded = transformer.time_embed(times)
        video = transformer.x_embedder(torch.empty(1, 65, *shape, dtype=dtype))
        refiner(torch.empty(1, 1000, 3584, dtype=dtype), times, torch.ones(1, 1000))
        transformer.context_embedder_2(torch.empty(1, 256, 1472, dtype=dtype))
        transformer.image_embedder(torch.empty(1, 729, 1152, dtype=dtype))
        text = torch.empty(1, texts, 2048, dtype=dtype)
        for block in blocks:
            video, text = block(video, text, embedded, torch.ones(1, texts))
        transformer.proj_out(transformer.norm_out(video, embedded))

    assert hunyuan15.forward_flops(model, bucket) == pytest.approx(flops(forward), rel=0.02)
    latents = torch.empty(1, 32, 2, 4, 4, dtype=dtype, device="meta")
    counted = flops(lambda: vae.decode(latents))
    small = Bucket(64, 64, 5)
    assert hunyuan15.decode_flops(model, small) == pytest.approx(counted, rel=0.02)
