"""A small Z-Image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from toy_images import DEFAULTS, SMALL_VAE, Toy, template_tokenizer
from transformers import Qwen3Config, Qwen3Model

from batchgen.config.schema import ModelSpec
from batchgen.engine.loading.random_weights import byte_tokenizer
from batchgen.families.dims import stored_dims
from batchgen.families.z_image.spec import Dims, ZImageLlm, ZImageTransformer
from batchgen.request import Request

SMALL_LLM = {
    "vocab_size": 288,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": False,
}


def spec(weights: str = "random", *, heads: int = 2) -> ModelSpec:
    """Two layers and one of each kind that refines; images of 64x64 have 16 tokens of 32."""
    return ModelSpec(
        name="small-z-image",
        family="z_image",
        weights=weights,
        dtype="float32",
        dims=Dims(
            transformer=ZImageTransformer(
                dim=16 * heads,
                n_layers=2,
                n_refiner_layers=1,
                n_heads=heads,
                n_kv_heads=heads,
                in_channels=4,
                cap_feat_dim=32,
                axes_dims=(4, 6, 6),
                axes_lens=(256, 64, 64),
            ),
            vae=SMALL_VAE,
            text_encoder=ZImageLlm(**SMALL_LLM, max_tokens=96),
        ),
        request_defaults=replace(DEFAULTS, sigma_shift=3.0),
    )


def save(folder: Path, spec: ModelSpec) -> Path:
    torch.manual_seed(0)
    dims = spec.dims
    transformer = ZImageTransformer2DModel(**stored_dims(dims.transformer))
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        token.data.normal_()
    encoder = stored_dims(dims.text_encoder) | dims.text_encoder.random_extras()
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**stored_dims(dims.scheduler)),
        vae=AutoencoderKL(**stored_dims(dims.vae)),
        text_encoder=Qwen3Model(Qwen3Config(**encoder)),
        tokenizer=template_tokenizer(byte_tokenizer(288)),
        transformer=transformer,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def pipeline(spec: ModelSpec) -> Any:
    return ZImagePipeline.from_pretrained(
        spec.weights_folder, dtype=torch.float32, local_files_only=True
    )


def arguments(row: Request) -> dict[str, Any]:
    return {
        "negative_prompt": row.negative_prompt,
        "guidance_scale": row.guidance_scale,
        "max_sequence_length": 96,
    }


def changes(number: int) -> dict[str, Any]:
    """Texts of one block of 32 tokens and of two; guided at 1 too."""
    prompt = ("a red cat", "the blue dog sits on a small house by the river")[number % 2]
    return {"prompt": prompt, "guidance_scale": (4.0, 0.0, 1.0)[number % 3]}


MOST = "model.text_encoder.max_tokens=96"
Z_IMAGE = Toy(spec, save, pipeline, arguments, changes, shift=3.0, overrides=(MOST,))
