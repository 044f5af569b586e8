"""Small random checkpoints of pipelines that no family of their own serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)
from toy_engine import SMALL_T5
from transformers import Gemma2Config, Gemma2Model, T5Config, T5EncoderModel

from batchgen.engine.loading.random_weights import byte_tokenizer

VOCABULARY = 288
# Of both calls: they would draw a size of their lists and resize it; cleaning takes more packages.
PARAMS = {"use_resolution_binning": False, "clean_caption": False}
SET_PARAMS = tuple(f"model.params.{name}=false" for name in PARAMS)


def save_pixart(folder: Path) -> Path:
    """Images of 64x64 have 16 tokens."""
    torch.manual_seed(1)
    transformer = PixArtTransformer2DModel(
        sample_size=32,
        num_layers=2,
        patch_size=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=SMALL_T5["d_model"],
        in_channels=4,
        cross_attention_dim=32,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        scaling_factor=0.13025,
    )
    PixArtSigmaPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=DPMSolverMultistepScheduler(),
        text_encoder=T5EncoderModel(T5Config(**SMALL_T5)),
        tokenizer=byte_tokenizer(VOCABULARY),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def save_sana(folder: Path) -> Path:
    torch.manual_seed(2)
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=32,
    )
    blocks, scales = ("ResBlock", "EfficientViTBlock"), ((), (5,))
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    gemma = Gemma2Config(
        head_dim=16,
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        sliding_window=64,
        attn_implementation="eager",
    )
    SanaPipeline(
        transformer=transformer,
        vae=vae,
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        text_encoder=Gemma2Model(gemma),
        tokenizer=byte_tokenizer(VOCABULARY),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


GENERIC_TOYS: dict[str, Callable[[Path], Path]] = {"pixart": save_pixart, "sana": save_sana}


def pipeline_of(folder: Path) -> Any:
    """The checkpoint's own pipeline."""
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
