"""Small Wans that draw from images: their checkpoints, and diffusers' pipeline over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image
from torch import Tensor
from toy_engine import SMALL_T5, small_spec
from transformers import UMT5Config, UMT5EncoderModel

from batchgen.config.schema import ModelSpec
from batchgen.engine.loading.random_weights import byte_tokenizer
from batchgen.families.dims import stored_dims
from batchgen.families.wan22_i2v import spec as wan22_i2v
from batchgen.numerics.solver import reference_scheduler
from batchgen.request import Request

SHAPE = {"width": 64, "height": 32, "num_frames": 5}  # 16 tokens


def picture(number: int) -> Image.Image:
    """A coarse one, of a size that no row has."""
    coarse = np.random.default_rng(number).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((48, 40))


PICTURES: Mapping[str, Image.Image] = {f"{i:064x}": picture(i) for i in range(4)}


def digests() -> list[str]:
    return list(PICTURES)


def two_experts_spec(weights: str = "random") -> ModelSpec:
    """Wan2.2 image-to-video, two layers, width 128."""
    plain = small_spec().dims
    parts = {f.name: getattr(plain, f.name) for f in fields(plain)}
    transformer = replace(plain.transformer, in_channels=36)
    dims = wan22_i2v.Dims(**(parts | {"transformer": transformer}))
    return small_spec(weights, family="wan22_i2v", dims=dims)


def save(spec: ModelSpec, folder: Path) -> ModelSpec:
    """The spec over a checkpoint with torch's own initialisation."""
    torch.manual_seed(0)
    dims: Any = spec.dims
    pipeline(spec.family)(
        tokenizer=byte_tokenizer(SMALL_T5["vocab_size"]),
        text_encoder=UMT5EncoderModel(UMT5Config(**stored_dims(dims.text_encoder))),
        vae=AutoencoderKLWan(**stored_dims(dims.vae), **dims.vae.random_extras()),
        scheduler=reference_scheduler("unipc", 3.0),
        **parts_of(spec),
    ).save_pretrained(folder, safe_serialization=True)
    return replace(spec, weights=str(folder))


def pipeline(family: str) -> Any:
    return WanImageToVideoPipeline


def parts_of(spec: ModelSpec) -> dict[str, Any]:
    """What only some of them have."""
    dims: Any = spec.dims
    made = [WanTransformer3DModel(**stored_dims(dims.transformer)) for _ in range(2)]
    if spec.family == "wan22_i2v":
        experts = dict(zip(("transformer", "transformer_2"), made, strict=True))
        return {**experts, "boundary_ratio": dims.boundary}
    return {"transformer": made[0]}


class ImageTwin:
    """diffusers' pipeline over the same folder."""

    def __init__(self, spec: ModelSpec) -> None:
        dims: Any = spec.dims
        self.max_tokens = dims.text_encoder.max_tokens
        folder = spec.weights_folder
        self.pipeline = WanImageToVideoPipeline.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, row: Request, output: str) -> Any:
        self.pipeline.scheduler = reference_scheduler(row.solver, row.sigma_shift)
        last = {} if row.last_image is None else {"last_image": PICTURES[row.last_image]}
        assert row.image is not None
        return self.pipeline(
            PICTURES[row.image],
            row.prompt,
            negative_prompt=row.negative_prompt,
            width=row.width,
            height=row.height,
            num_frames=row.num_frames,
            num_inference_steps=row.num_steps,
            guidance_scale=row.guidance_scale,
            guidance_scale_2=row.guidance_scale_2,
            generator=torch.Generator().manual_seed(row.seed),
            max_sequence_length=self.max_tokens,
            output_type=output,
            **last,
        ).frames

    def latents(self, row: Request) -> Tensor:
        return self(row, "latent")

    def frames(self, row: Request) -> np.ndarray:
        """uint8 (frames, height, width, 3)"""
        return np.stack([np.asarray(image) for image in self(row, "pil")[0]])
