"""A small Stable Diffusion 3.5 and 3."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from toy_engine import SMALL_T5
from toy_images import DEFAULTS, SMALL_VAE, Toy
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from batchgen.config.schema import ModelSpec
from batchgen.engine.loading.random_weights import byte_tokenizer
from batchgen.families.dims import stored_dims
from batchgen.families.encoders import ProjectedClipDims
from batchgen.families.sd3.spec import Dims, Sd3T5, Sd3Transformer
from batchgen.request import Request

SMALL_CLIP = ProjectedClipDims(
    vocab_size=288,
    hidden_size=16,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    eos_token_id=1,
    projection_dim=16,
    max_position_embeddings=20,
)


def spec(weights: str = "random", *, heads: int = 2, newer: bool = True) -> ModelSpec:
    """Two blocks, the first with a second attention (3.5); images of 64x64 have 16 tokens."""
    return ModelSpec(
        name="small-sd3",
        family="sd3",
        weights=weights,
        dtype="float32",
        dims=Dims(
            transformer=Sd3Transformer(
                num_layers=2,
                num_attention_heads=heads,
                attention_head_dim=16,
                in_channels=4,
                out_channels=4,
                joint_attention_dim=32,
                caption_projection_dim=16 * heads,
                pooled_projection_dim=32,
                pos_embed_max_size=24,
                sample_size=16,
                dual_attention_layers=(0,) if newer else (),
                qk_norm="rms_norm" if newer else None,
            ),
            vae=replace(SMALL_VAE, scaling_factor=1.5305, shift_factor=0.0609),
            text_encoder=SMALL_CLIP,
            text_encoder_2=replace(SMALL_CLIP, hidden_act="gelu"),
            text_encoder_3=Sd3T5(**SMALL_T5, max_tokens=32),
        ),
        request_defaults=replace(DEFAULTS, guidance_scale=4.0, sigma_shift=3.0),
    )


def save(folder: Path, spec: ModelSpec) -> Path:
    torch.manual_seed(0)
    dims = spec.dims
    clips = [
        CLIPTextModelWithProjection(CLIPTextConfig(**stored_dims(one)))
        for one in (dims.text_encoder, dims.text_encoder_2)
    ]
    StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**stored_dims(dims.scheduler)),
        vae=AutoencoderKL(**stored_dims(dims.vae)),
        text_encoder=clips[0],
        tokenizer=byte_tokenizer(288),
        text_encoder_2=clips[1],
        tokenizer_2=byte_tokenizer(288),
        text_encoder_3=T5EncoderModel(T5Config(**stored_dims(dims.text_encoder_3))),
        tokenizer_3=byte_tokenizer(288),
        transformer=SD3Transformer2DModel(**stored_dims(dims.transformer)),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def pipeline(spec: ModelSpec) -> Any:
    made = StableDiffusion3Pipeline.from_pretrained(
        spec.weights_folder, dtype=torch.float32, local_files_only=True
    )
    made.tokenizer_max_length = SMALL_CLIP.max_position_embeddings
    return made


def arguments(row: Request) -> dict[str, Any]:
    """Texts in lists, since of others the pipeline takes an empty one for none."""
    names = ("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3")
    texts = {name: getattr(row, name) for name in names}
    return {
        **{name: [text] for name, text in texts.items() if text is not None},
        "negative_prompt": row.negative_prompt,
        "guidance_scale": row.guidance_scale,
        "max_sequence_length": 32,
    }


def changes(number: int) -> dict[str, Any]:
    return {
        "guidance_scale": (4.0, 1.0, 2.5)[number % 3],
        "prompt_2": (None, "", "a house", None)[number % 4],
        "prompt_3": (None, "two dogs", "", "the long sky over it", None)[number % 5],
        "negative_prompt_2": (None, "", "blurry")[(number + number // 3) % 3],
        "negative_prompt_3": ("", None)[number % 2],
    }


MOST = "model.text_encoder_3.max_tokens=32"
SD3 = Toy(spec, save, pipeline, arguments, changes, shift=3.0, overrides=(MOST,))
