"""Writes trained parts as a folder in the layout of a diffusers text-to-video checkpoint."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from torch import Tensor
from transformers import UMT5EncoderModel

from batchgen.tiny.tokenizer import make_tokenizer

FLOW_SHIFT = 3.0

ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)


def make_scheduler() -> UniPCMultistepScheduler:
    """Wan2.1's own scheduler, with the shift used in training."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        num_train_timesteps=1000,
        flow_shift=FLOW_SHIFT,
    )


def _halve(module: ModuleT) -> ModuleT:
    """Round all weights to float16; ``to`` would warn about modules kept in float32."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to("cpu", torch.float16)
    return module


def export(
    path: Path,
    vae: AutoencoderKLWan,
    transformer: WanTransformer3DModel,
    text_encoder: UMT5EncoderModel,
    latents_mean: Tensor,
    latents_std: Tensor,
) -> None:
    """Replace ``path`` by a pipeline folder; an interrupted export leaves the old one whole.

    Autoencoder and transformer are stored in float16, which keeps three more bits than bfloat16;
    no weight here is small enough to vanish. The small text encoder stays in float32.

    Args:
        path: folder to write.
        vae: trained autoencoder.
        transformer: trained denoiser.
        text_encoder: trained text encoder.
        latents_mean: mean of each latent channel, ``(c,)``.
        latents_std: standard deviation of each latent channel, ``(c,)``.
    """
    vae.register_to_config(
        latents_mean=[round(v, 6) for v in latents_mean.tolist()],
        latents_std=[round(v, 6) for v in latents_std.tolist()],
    )
    pipeline = WanPipeline(
        tokenizer=make_tokenizer(),
        text_encoder=text_encoder.to("cpu", torch.float32),
        vae=_halve(vae),
        transformer=_halve(transformer),
        scheduler=make_scheduler(),
    )
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    old = path.with_name(f".{path.name}.old.{os.getpid()}")
    pipeline.save_pretrained(fresh, safe_serialization=True)
    for file in fresh.rglob("*.safetensors"):
        file.chmod(0o644)
    if path.exists():
        path.rename(old)
    fresh.rename(path)
    shutil.rmtree(old, ignore_errors=True)
