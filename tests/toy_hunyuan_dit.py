"""A small HunyuanDiT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline
from toy_engine import SMALL_T5
from toy_images import DEFAULTS, SMALL_VAE, Toy
from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

from batchgen.config.schema import ModelSpec
from batchgen.engine.loading.random_weights import byte_tokenizer
from batchgen.families.dims import stored_dims
from batchgen.families.encoders import BertDims
from batchgen.families.hunyuan_dit.spec import Dims, HunyuanDitT5, HunyuanDitTransformer
from batchgen.request import Request


def spec(weights: str = "random", *, heads: int = 2) -> ModelSpec:
    """Six blocks, of which the last two join what the first two have made; images of 64x64 have 16
    tokens."""
    return ModelSpec(
        name="small-hunyuan-dit",
        family="hunyuan_dit",
        weights=weights,
        dtype="float32",
        dims=Dims(
            transformer=HunyuanDitTransformer(
                num_layers=6,
                num_attention_heads=heads,
                attention_head_dim=16,
                hidden_size=16 * heads,
                mlp_ratio=4.0,
                sample_size=16,
                cross_attention_dim=32,
                cross_attention_dim_t5=32,
                pooled_projection_dim=32,
            ),
            vae=replace(
                SMALL_VAE,
                scaling_factor=0.13025,
                shift_factor=None,
                use_quant_conv=True,
                use_post_quant_conv=True,
            ),
            text_encoder=BertDims(
                vocab_size=288,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
            ),
            text_encoder_2=HunyuanDitT5(**SMALL_T5),
        ),
        request_defaults=replace(DEFAULTS, guidance_scale=5.0, solver="ddpm"),
    )


def save(folder: Path, spec: ModelSpec) -> Path:
    torch.manual_seed(0)
    dims = spec.dims
    HunyuanDiTPipeline(
        scheduler=DDPMScheduler(**stored_dims(dims.scheduler)),
        vae=AutoencoderKL(**stored_dims(dims.vae)),
        text_encoder=BertModel(BertConfig(**stored_dims(dims.text_encoder))),
        tokenizer=byte_tokenizer(288),
        text_encoder_2=T5EncoderModel(T5Config(**stored_dims(dims.text_encoder_2))),
        tokenizer_2=byte_tokenizer(288),
        transformer=HunyuanDiT2DModel(**stored_dims(dims.transformer)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def pipeline(spec: ModelSpec) -> Any:
    return HunyuanDiTPipeline.from_pretrained(
        spec.weights_folder, dtype=torch.float32, local_files_only=True
    )


def arguments(row: Request) -> dict[str, Any]:
    return {
        "negative_prompt": row.negative_prompt,
        "guidance_scale": row.guidance_scale,
        "guidance_rescale": row.guidance_rescale,
        "use_resolution_binning": False,
    }


def changes(number: int) -> dict[str, Any]:
    guidance = (4.0, 1.0, 2.5)[number % 3]
    return {"guidance_scale": guidance, "guidance_rescale": (0.0, 0.7)[number % 2]}


HUNYUAN_DIT = Toy(spec, save, pipeline, arguments, changes, solver="ddpm")
