"""Small Wans that draw from images: their checkpoints, and diffusers' pipeline over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from torch import Tensor
from toy_engine import SMALL_T5, small_spec
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    UMT5Config,
    UMT5EncoderModel,
)

from batchgen.config.schema import ModelSpec
from batchgen.engine.loading.random_weights import byte_tokenizer
from batchgen.families.dims import stored_dims
from batchgen.families.vision import ClipVisionDims
from batchgen.families.wan.autoencoder import PatchedVae
from batchgen.families.wan22_i2v import spec as wan22_i2v
from batchgen.families.wan22_ti2v import spec as wan22_ti2v
from batchgen.families.wan_i2v import spec as wan_i2v
from batchgen.numerics.solver import reference_scheduler
from batchgen.request import Request

SMALL_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "hidden_act": "gelu",
}
_WIDTHS = (
    *("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim"),
    *("text_dim", "freq_dim", "rope_max_seq_len"),
)
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


def clip_spec(weights: str = "random", images: int = 1) -> ModelSpec:
    """Wan2.1 image-to-video, two layers, width 128, of so many images."""
    plain, vision = small_spec().dims, ClipVisionDims(**SMALL_CLIP)
    parts = {name: getattr(plain.transformer, name) for name in _WIDTHS}
    both = vision.tokens * images if images > 1 else None
    transformer = wan_i2v.WanI2VTransformer(
        **parts, image_dim=vision.hidden_size, added_kv_proj_dim=128, pos_embed_seq_len=both
    )
    text = replace(plain.text_encoder, max_tokens=512)
    dims = wan_i2v.Dims(
        transformer=transformer, vae=plain.vae, text_encoder=text, image_encoder=vision
    )
    return small_spec(weights, family="wan_i2v", dims=dims)


def ti2v_spec(weights: str = "random") -> ModelSpec:
    """Wan2.2 TI2V, two layers, width 128."""
    plain = small_spec().dims
    vae = PatchedVae(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=12,
        dim_mult=(1, 1, 1, 1),
        num_res_blocks=1,
        spatial_factor=16,
    )
    transformer = replace(plain.transformer, in_channels=12, out_channels=12)
    dims = wan22_ti2v.Dims(transformer=transformer, vae=vae, text_encoder=plain.text_encoder)
    return small_spec(weights, family="wan22_ti2v", dims=dims)


SMALL = {"wan22_i2v": two_experts_spec, "wan_i2v": clip_spec, "wan22_ti2v": ti2v_spec}


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
    """As the checkpoint is published."""
    return WanPipeline if family == "wan22_ti2v" else WanImageToVideoPipeline


def parts_of(spec: ModelSpec) -> dict[str, Any]:
    """What only some of them have."""
    dims: Any = spec.dims
    made = [WanTransformer3DModel(**stored_dims(dims.transformer)) for _ in range(2)]
    if spec.family == "wan22_i2v":
        experts = dict(zip(("transformer", "transformer_2"), made, strict=True))
        return {**experts, "boundary_ratio": dims.boundary}
    if spec.family == "wan22_ti2v":
        return {"transformer": made[0], "expand_timesteps": True}
    side = SMALL_CLIP["image_size"]
    return {
        "transformer": made[0],
        "image_encoder": CLIPVisionModel(CLIPVisionConfig(**SMALL_CLIP)),
        "image_processor": CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
    }


class ImageTwin:
    """diffusers' pipeline over the same folder."""

    def __init__(self, spec: ModelSpec) -> None:
        dims: Any = spec.dims
        self.max_tokens = dims.text_encoder.max_tokens
        folder = spec.weights_folder
        load = pipeline(spec.family).from_pretrained
        self.plain = load(folder, dtype=torch.float32, local_files_only=True)
        self.imaging = self.plain
        if spec.family == "wan22_ti2v":
            parts = {k: v for k, v in self.plain.components.items() if k != "transformer_2"}
            self.imaging = WanImageToVideoPipeline(**parts, expand_timesteps=True)
        for each in (self.plain, self.imaging):
            each.set_progress_bar_config(disable=True)

    def __call__(self, row: Request, output: str) -> Any:
        pipeline = self.plain if row.image is None else self.imaging
        pipeline.scheduler = reference_scheduler(row.solver, row.sigma_shift)
        names = ("image", "last_image")
        given = {n: PICTURES[digest] for n in names if (digest := getattr(row, n)) is not None}
        return pipeline(
            prompt=row.prompt,
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
            **given,
        ).frames

    def latents(self, row: Request) -> Tensor:
        return self(row, "latent")

    def frames(self, row: Request) -> np.ndarray:
        """uint8 (frames, height, width, 3)"""
        return np.stack([np.asarray(image) for image in self(row, "pil")[0]])
