"""A small Qwen-Image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from toy_images import DEFAULTS, Toy
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from batchgen.config.schema import ModelSpec
from batchgen.engine.loading.random_weights import byte_tokenizer
from batchgen.families.dims import stored_dims
from batchgen.families.encoders import QwenVlDims
from batchgen.families.qwen_image.model import TEMPLATE
from batchgen.families.qwen_image.spec import Dims, QwenImageTransformer, QwenImageVae
from batchgen.request import Request

SMALL_VL = QwenVlDims(
    vocab_size=288,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_tokens=80,
    vision_depth=1,
    vision_width=16,
    vision_inner=16,
    vision_heads=2,
    vision_out=32,
)


def spec(weights: str = "random", *, heads: int = 2) -> ModelSpec:
    """Two blocks; images of 64x64 have 16 tokens."""
    return ModelSpec(
        name="small-qwen-image",
        family="qwen_image",
        weights=weights,
        dtype="float32",
        dims=Dims(
            transformer=QwenImageTransformer(
                num_layers=2,
                num_attention_heads=heads,
                attention_head_dim=16,
                in_channels=16,
                out_channels=4,
                joint_attention_dim=32,
                axes_dims_rope=(4, 6, 6),
            ),
            vae=QwenImageVae(base_dim=4, z_dim=4, dim_mult=(1, 1, 1, 1), num_res_blocks=1),
            text_encoder=SMALL_VL,
        ),
        request_defaults=DEFAULTS,
    )


def save(folder: Path, spec: ModelSpec) -> Path:
    torch.manual_seed(0)
    dims = spec.dims
    encoder = Qwen2_5_VLConfig(
        **(stored_dims(dims.text_encoder) | dims.text_encoder.random_extras())
    )
    moments = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 2.0, 1.1, 0.9]}
    QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**stored_dims(dims.scheduler)),
        vae=AutoencoderKLQwenImage(**stored_dims(dims.vae), **moments),
        text_encoder=Qwen2_5_VLForConditionalGeneration(encoder),
        tokenizer=byte_tokenizer(288),
        transformer=QwenImageTransformer2DModel(**stored_dims(dims.transformer)),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def pipeline(spec: ModelSpec) -> Any:
    made = QwenImagePipeline.from_pretrained(
        spec.weights_folder, dtype=torch.float32, local_files_only=True
    )
    before = made.tokenizer(TEMPLATE.split("{}")[0], add_special_tokens=False)
    made.prompt_template_encode_start_idx = len(before.input_ids)
    return made


def arguments(row: Request) -> dict[str, Any]:
    return {
        "negative_prompt": row.negative_prompt,
        "true_cfg_scale": row.true_cfg_scale,
        "max_sequence_length": SMALL_VL.max_tokens,
    }


def changes(number: int) -> dict[str, Any]:
    return {"true_cfg_scale": (4.0, 1.0, 2.5)[number % 3]}


MOST = f"model.text_encoder.max_tokens={SMALL_VL.max_tokens}"
QWEN_IMAGE = Toy(spec, save, pipeline, arguments, changes, overrides=(MOST,))
