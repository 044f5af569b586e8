"""A small HunyuanVideo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from toy_videos import VideoToy, video_defaults
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

from batchgen.config.schema import ModelSpec
from batchgen.engine.loading.random_weights import byte_tokenizer
from batchgen.families.dims import stored_dims
from batchgen.families.encoders import ClipDims
from batchgen.families.hunyuan_video.model import TEMPLATE
from batchgen.families.hunyuan_video.spec import Dims, HunyuanTransformer, LlamaDims
from batchgen.families.hunyuan_video.vae import HunyuanVae
from batchgen.request import Bucket, Request

BUCKET = Bucket(64, 32, 5)
MAX_TOKENS = 48
TEMPLATE_TOKENS = len(TEMPLATE.split("{}")[0].encode())  # a token a byte


def spec(weights: str = "random", *, heads: int = 2) -> ModelSpec:
    """Two blocks of each kind; clips of 64x32x5 have 16 tokens."""
    return ModelSpec(
        name="small-hunyuan-video",
        family="hunyuan_video",
        weights=weights,
        dtype="float32",
        dims=Dims(
            transformer=HunyuanTransformer(
                num_layers=2,
                num_single_layers=2,
                num_refiner_layers=1,
                num_attention_heads=heads,
                attention_head_dim=16,
                in_channels=4,
                out_channels=4,
                text_embed_dim=32,
                pooled_projection_dim=32,
                rope_axes_dim=(4, 6, 6),
            ),
            vae=HunyuanVae(
                latent_channels=4,
                block_out_channels=(8, 8, 8, 8),
                layers_per_block=1,
                norm_num_groups=4,
            ),
            text_encoder=LlamaDims(
                vocab_size=288,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=16,
                max_tokens=MAX_TOKENS,
                template_tokens=TEMPLATE_TOKENS,
            ),
            text_encoder_2=ClipDims(
                vocab_size=288,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                eos_token_id=1,
            ),
        ),
        request_defaults=video_defaults(BUCKET, sigma_shift=7.0),
    )


def save(folder: Path, spec: ModelSpec) -> Path:
    torch.manual_seed(0)
    dims = spec.dims
    llama = LlamaConfig(**stored_dims(dims.text_encoder), **dims.text_encoder.random_extras())
    HunyuanVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**stored_dims(dims.scheduler)),
        vae=AutoencoderKLHunyuanVideo(**stored_dims(dims.vae)),
        text_encoder=LlamaModel(llama),
        tokenizer=byte_tokenizer(288),
        text_encoder_2=CLIPTextModel(CLIPTextConfig(**stored_dims(dims.text_encoder_2))),
        tokenizer_2=byte_tokenizer(288),
        transformer=HunyuanVideoTransformer3DModel(**stored_dims(dims.transformer)),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def pipeline(spec: ModelSpec) -> Any:
    return HunyuanVideoPipeline.from_pretrained(
        spec.weights_folder, dtype=torch.float32, local_files_only=True
    )


def arguments(pipeline: Any, row: Request) -> dict[str, Any]:
    return {
        "guidance_scale": row.guidance_scale,
        "true_cfg_scale": row.true_cfg_scale,
        "prompt_template": {"template": TEMPLATE, "crop_start": TEMPLATE_TOKENS},
        "max_sequence_length": MAX_TOKENS,
    }


def changes(number: int) -> dict[str, Any]:
    """Of many embedded guidances; some with a second branch."""
    return {
        "guidance_scale": (6.0, 1.0, 2.5)[number % 3],
        "true_cfg_scale": (1.0, 3.0, 1.0, 2.0)[number % 4],
    }


HUNYUAN_VIDEO = VideoToy(
    "hunyuan_video",
    spec,
    save,
    pipeline,
    arguments,
    changes,
    BUCKET,
    (
        f"model.text_encoder.max_tokens={MAX_TOKENS}",
        f"model.text_encoder.template_tokens={TEMPLATE_TOKENS}",
    ),
)
