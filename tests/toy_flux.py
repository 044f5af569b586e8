"""A small FLUX.1 with random weights, its checkpoint, and diffusers' pipeline over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor
from toy_engine import SMALL_T5
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from batchgen.config.schema import ModelSpec
from batchgen.engine.loading.random_weights import byte_tokenizer
from batchgen.families.autoencoders import KlVae
from batchgen.families.dims import stored_dims
from batchgen.families.encoders import ClipDims
from batchgen.families.flow import FlowScheduler
from batchgen.families.flux.spec import Dims, FluxT5, FluxTransformer
from batchgen.request import ModelDefaults, Request

DEFAULTS = ModelDefaults(
    width=64,
    height=64,
    num_frames=1,
    fps=1,
    num_steps=4,
    guidance_scale=3.5,
    solver="euler",
    sigma_shift=1.0,
)


def flux_spec(weights: str = "random", *, dev: bool = True, heads: int = 2) -> ModelSpec:
    """Two blocks of each kind; images of 64x64 have 16 tokens."""
    return ModelSpec(
        name="small-flux",
        family="flux",
        weights=weights,
        dtype="float32",
        dims=Dims(
            transformer=FluxTransformer(
                num_layers=2,
                num_single_layers=2,
                num_attention_heads=heads,
                attention_head_dim=16,
                guidance_embeds=dev,
                in_channels=16,
                joint_attention_dim=32,
                pooled_projection_dim=32,
                axes_dims_rope=(4, 6, 6),
            ),
            vae=KlVae(
                block_out_channels=(8, 8, 8, 8),
                layers_per_block=1,
                latent_channels=4,
                norm_num_groups=4,
            ),
            text_encoder=ClipDims(
                vocab_size=288,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                eos_token_id=1,
            ),
            text_encoder_2=FluxT5(**SMALL_T5, max_tokens=32),
            scheduler=FlowScheduler()
            if dev
            else FlowScheduler(shift=1.0, use_dynamic_shifting=False),
        ),
        request_defaults=DEFAULTS,
    )


def save_flux(folder: Path, spec: ModelSpec) -> Path:
    """A checkpoint of `spec` with torch's own initialisation, in diffusers layout."""
    torch.manual_seed(0)
    dims = spec.dims
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**stored_dims(dims.scheduler)),
        vae=AutoencoderKL(**stored_dims(dims.vae)),
        text_encoder=CLIPTextModel(CLIPTextConfig(**stored_dims(dims.text_encoder))),
        tokenizer=byte_tokenizer(288),
        text_encoder_2=T5EncoderModel(T5Config(**stored_dims(dims.text_encoder_2))),
        tokenizer_2=byte_tokenizer(288),
        transformer=FluxTransformer2DModel(**stored_dims(dims.transformer)),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


class FluxTwin:
    """diffusers' FluxPipeline over the folder: the plain twin of the engine."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype = torch.float32) -> None:
        self.max_tokens = spec.dims.text_encoder_2.max_tokens
        self.pipeline = FluxPipeline.from_pretrained(
            spec.weights_folder, dtype=dtype, local_files_only=True
        )
        self.pipeline.tokenizer_max_length = spec.dims.text_encoder.max_position_embeddings
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, row: Request, output: str) -> Any:
        more: dict[str, Any] = {}
        if row.prompt_2 is not None:
            more["prompt_2"] = [row.prompt_2]  # else it takes an empty one for none
        if row.true_cfg_scale > 1:
            more |= {"negative_prompt": row.negative_prompt, "true_cfg_scale": row.true_cfg_scale}
            if row.negative_prompt_2 is not None:
                more["negative_prompt_2"] = [row.negative_prompt_2]
        return self.pipeline(
            row.prompt,
            width=row.width,
            height=row.height,
            num_inference_steps=row.num_steps,
            guidance_scale=row.guidance_scale,
            generator=torch.Generator().manual_seed(row.seed),
            max_sequence_length=self.max_tokens,
            output_type=output,
            **more,
        ).images

    def latents(self, row: Request) -> Tensor:
        """(1, image tokens, channels)"""
        return self(row, "latent")

    def frames(self, row: Request) -> np.ndarray:
        """uint8 (1, height, width, 3)"""
        return np.stack([np.asarray(image) for image in self(row, "pil")])
