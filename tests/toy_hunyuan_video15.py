"""A small HunyuanVideo 1.5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from toy_engine import SMALL_T5
from toy_videos import PROMPTS, VideoToy, video_defaults
from transformers import (
    ByT5Tokenizer,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    T5Config,
    T5EncoderModel,
)

from batchgen.config.schema import ModelSpec
from batchgen.engine.loading.random_weights import CHAT, byte_tokenizer
from batchgen.families.dims import stored_dims
from batchgen.families.hunyuan_video15.model import SYSTEM
from batchgen.families.hunyuan_video15.spec import (
    Byt5Dims,
    Dims,
    Hunyuan15Transformer,
    QwenTextDims,
)
from batchgen.families.hunyuan_video15.vae import Hunyuan15Vae
from batchgen.request import Bucket, Request

BUCKET = Bucket(24, 16, 5)
TEXT, GLYPHS, IMAGE = 48, 32, 16
TEMPLATE_TOKENS = len(f"<system>{SYSTEM}<user>".encode())  # a token a byte


def spec(weights: str = "random", *, heads: int = 2) -> ModelSpec:
    """Two blocks; clips of 24x16x5 have 72 tokens."""
    return ModelSpec(
        name="small-hunyuan-video-1.5",
        family="hunyuan_video15",
        weights=weights,
        dtype="float32",
        dims=Dims(
            transformer=Hunyuan15Transformer(
                num_layers=2,
                num_refiner_layers=1,
                num_attention_heads=heads,
                attention_head_dim=16,
                in_channels=9,
                out_channels=4,
                text_embed_dim=32,
                text_embed_2_dim=32,
                image_embed_dim=32,
                rope_axes_dim=(4, 6, 6),
                image_tokens=IMAGE,
            ),
            vae=Hunyuan15Vae(
                latent_channels=4,
                block_out_channels=(16, 16),
                layers_per_block=1,
                spatial_factor=4,
                temporal_factor=2,
                downsample_match_channel=False,
                upsample_match_channel=False,
            ),
            text_encoder=QwenTextDims(
                vocab_size=288,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_tokens=TEXT,
                template_tokens=TEMPLATE_TOKENS,
            ),
            text_encoder_2=Byt5Dims(**SMALL_T5 | {"vocab_size": 384}, max_tokens=GLYPHS),
        ),
        request_defaults=video_defaults(BUCKET, sigma_shift=5.0),
    )


def save(folder: Path, spec: ModelSpec) -> Path:
    torch.manual_seed(0)
    dims, tokenizer = spec.dims, byte_tokenizer(288)
    tokenizer.chat_template = CHAT
    text = dims.text_encoder
    language = Qwen2_5_VLTextConfig(**stored_dims(text), **text.random_extras())
    HunyuanVideo15Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**stored_dims(dims.scheduler)),
        vae=AutoencoderKLHunyuanVideo15(**stored_dims(dims.vae)),
        text_encoder=Qwen2_5_VLTextModel(language),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(T5Config(**stored_dims(dims.text_encoder_2))),
        tokenizer_2=ByT5Tokenizer(),
        transformer=HunyuanVideo15Transformer3DModel(**stored_dims(dims.transformer)),
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def pipeline(spec: ModelSpec) -> Any:
    made = HunyuanVideo15Pipeline.from_pretrained(
        spec.weights_folder, dtype=torch.float32, local_files_only=True
    )
    made.tokenizer_max_length, made.tokenizer_2_max_length = TEXT, GLYPHS
    made.vision_num_semantic_tokens = IMAGE
    made.prompt_template_encode_start_idx = TEMPLATE_TOKENS
    return made


def arguments(pipeline: Any, row: Request) -> dict[str, Any]:
    """The scales are a component's, not arguments."""
    pipeline.guider = pipeline.guider.new(
        guidance_scale=row.guidance_scale, guidance_rescale=row.guidance_rescale
    )
    return {}


def changes(number: int) -> dict[str, Any]:
    """Guided and not, below 1 too; some with words in quotes."""
    return {
        "prompt": PROMPTS[number % 3] + ' "big house"' * (number % 2),
        "guidance_scale": (6.0, 1.0, 0.5, 2.5)[number % 4],
        "guidance_rescale": (0.0, 0.7, 0.0)[number % 3],
    }


HUNYUAN_VIDEO15 = VideoToy(
    "hunyuan_video15",
    spec,
    save,
    pipeline,
    arguments,
    changes,
    BUCKET,
    (
        f"model.text_encoder.max_tokens={TEXT}",
        f"model.text_encoder.template_tokens={TEMPLATE_TOKENS}",
        f"model.text_encoder_2.max_tokens={GLYPHS}",
        f"model.transformer.image_tokens={IMAGE}",
    ),
)
