"""A small LTX-Video, with a decoder that takes noise or one that does not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from toy_engine import SMALL_T5
from toy_videos import VideoToy, video_defaults
from transformers import T5Config, T5EncoderModel

from batchgen.config.schema import ModelSpec
from batchgen.engine.loading.random_weights import byte_tokenizer
from batchgen.families.dims import stored_dims
from batchgen.families.flow import FlowScheduler
from batchgen.families.ltx.spec import Dims, LtxT5, LtxTransformer
from batchgen.families.ltx.vae import LtxVae
from batchgen.request import Bucket, Request

BUCKET = Bucket(64, 32, 9)
PLAIN = LtxVae(
    latent_channels=32,
    block_out_channels=(8,) * 4,
    decoder_block_out_channels=(8,) * 4,
    layers_per_block=(1,) * 5,
    decoder_layers_per_block=(1,) * 5,
    patch_size=1,
)
NOISY = replace(
    PLAIN,
    decoder_block_out_channels=(8, 16, 32),
    decoder_layers_per_block=(1,) * 4,
    decoder_spatio_temporal_scaling=(True,) * 3,
    decoder_inject_noise=(True, True, True, False),
    upsample_residual=(True,) * 3,
    upsample_factor=(2,) * 3,
    timestep_conditioning=True,
)
# From 0.9.5 on: an encoder whose levels join cells by groups.
NEWER = replace(
    NOISY,
    block_out_channels=(8, 16, 16, 32, 32),
    down_block_types=("LTXVideo095DownBlock3D",) * 4,
    layers_per_block=(1,) * 5,
    spatio_temporal_scaling=(True,) * 4,
    downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    decoder_inject_noise=(False,) * 4,
)


def spec(
    weights: str = "random", *, heads: int = 2, vae: LtxVae = PLAIN, static: bool = False
) -> ModelSpec:
    """Two blocks; clips of 64x32x9 have 64 tokens. `static`: sigmas do not depend on the size."""
    return ModelSpec(
        name="small-ltx",
        family="ltx",
        weights=weights,
        dtype="float32",
        dims=Dims(
            transformer=LtxTransformer(
                num_layers=2,
                num_attention_heads=heads,
                attention_head_dim=16,
                cross_attention_dim=16 * heads,
                in_channels=32,
                out_channels=32,
                caption_channels=32,
            ),
            vae=vae,
            text_encoder=LtxT5(**SMALL_T5, max_tokens=32),
            **(
                {"scheduler": FlowScheduler(shift=1.0, use_dynamic_shifting=False)}
                if static
                else {}
            ),
        ),
        request_defaults=video_defaults(BUCKET),
    )


def save(folder: Path, spec: ModelSpec) -> Path:
    torch.manual_seed(0)
    dims = spec.dims
    vae = AutoencoderKLLTXVideo(**stored_dims(dims.vae), **dims.vae.random_extras())
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 2)
    for name, parameter in vae.named_parameters():
        if "per_channel_scale" in name:  # zeros until they are trained
            parameter.data.fill_(0.3)
    LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**stored_dims(dims.scheduler)),
        vae=vae,
        text_encoder=T5EncoderModel(T5Config(**stored_dims(dims.text_encoder))),
        tokenizer=byte_tokenizer(288),
        transformer=LTXVideoTransformer3DModel(**stored_dims(dims.transformer)),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def pipeline(spec: ModelSpec) -> Any:
    return LTXPipeline.from_pretrained(
        spec.weights_folder, dtype=torch.float32, local_files_only=True
    )


def arguments(pipeline: Any, row: Request) -> dict[str, Any]:
    return {
        "guidance_scale": row.guidance_scale,
        "guidance_rescale": row.guidance_rescale,
        "frame_rate": row.fps,
        "decode_timestep": row.decode_timestep,
        "decode_noise_scale": row.decode_noise_scale,
        "max_sequence_length": 32,
    }


def changes(number: int) -> dict[str, Any]:
    """Guided and not, with and without a rescaled velocity, of two frame rates."""
    return {
        "guidance_scale": (3.0, 1.0, 2.5, 5.0)[number % 4],
        "guidance_rescale": (0.0, 0.0, 0.7)[number % 3],
        "fps": (25.0, 25.0, 16.0)[number % 3],
    }


def noisy_changes(number: int) -> dict[str, Any]:
    noise = {"decode_timestep": 0.05, "decode_noise_scale": (0.025, None)[number % 2]}
    return changes(number) | noise


LTX = VideoToy(
    "ltx", spec, save, pipeline, arguments, changes, BUCKET, ("model.text_encoder.max_tokens=32",)
)
LTX_NOISY = replace(LTX, spec=partial(spec, vae=NOISY), changes=noisy_changes)
LTX_NEWER = replace(LTX, spec=partial(spec, vae=NEWER, static=True), changes=noisy_changes)
