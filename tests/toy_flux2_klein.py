"""A small FLUX.2 klein."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from toy_images import DEFAULTS, Toy, template_tokenizer
from toy_z_image import SMALL_LLM
from transformers import Qwen3Config, Qwen3ForCausalLM

from batchgen.config.schema import ModelSpec
from batchgen.engine.loading.random_weights import byte_tokenizer
from batchgen.families.dims import stored_dims
from batchgen.families.flux2_klein.spec import Dims, Flux2Llm, Flux2Transformer, Flux2Vae
from batchgen.request import Request

LAYERS = (1, 2, 3)


def spec(weights: str = "random", *, heads: int = 2, distilled: bool = False) -> ModelSpec:
    """Two blocks of each kind; images of 64x64 have 16 tokens."""
    return ModelSpec(
        name="small-klein",
        family="flux2_klein",
        weights=weights,
        dtype="float32",
        dims=Dims(
            transformer=Flux2Transformer(
                num_layers=2,
                num_single_layers=2,
                num_attention_heads=heads,
                attention_head_dim=16,
                in_channels=16,
                joint_attention_dim=96,
                axes_dims_rope=(4, 4, 4, 4),
            ),
            vae=Flux2Vae(
                block_out_channels=(8, 8, 8, 8),
                layers_per_block=1,
                latent_channels=4,
                norm_num_groups=4,
            ),
            text_encoder=Flux2Llm(**SMALL_LLM, max_tokens=40, out_layers=LAYERS),
            distilled=distilled,
        ),
        request_defaults=DEFAULTS,
    )


def save(folder: Path, spec: ModelSpec) -> Path:
    torch.manual_seed(0)
    dims = spec.dims
    vae = AutoencoderKLFlux2(**stored_dims(dims.vae))
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    encoder = stored_dims(dims.text_encoder) | dims.text_encoder.random_extras()
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**stored_dims(dims.scheduler)),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**encoder)),
        tokenizer=template_tokenizer(byte_tokenizer(288)),
        transformer=Flux2Transformer2DModel(**stored_dims(dims.transformer)),
        is_distilled=dims.distilled,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def pipeline(spec: ModelSpec) -> Any:
    return Flux2KleinPipeline.from_pretrained(
        spec.weights_folder, dtype=torch.float32, local_files_only=True
    )


def arguments(row: Request) -> dict[str, Any]:
    return {
        "guidance_scale": row.guidance_scale,
        "max_sequence_length": 40,
        "text_encoder_out_layers": LAYERS,
    }


def changes(number: int) -> dict[str, Any]:
    return {"guidance_scale": (4.0, 1.0, 2.5)[number % 3]}


MOST = ("model.text_encoder.max_tokens=40", "model.text_encoder.out_layers=[1,2,3]")
KLEIN = Toy(spec, save, pipeline, arguments, changes, unread=("negative_prompt",), overrides=MOST)
