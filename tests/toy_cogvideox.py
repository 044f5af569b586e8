"""Small CogVideoX: 2b (places added, DDIM), 5b (rotary, SDE), 1.5 (tokens of two frames)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from toy_engine import SMALL_T5
from toy_videos import VideoToy, video_defaults
from transformers import T5Config, T5EncoderModel

from batchgen.config.schema import ModelSpec
from batchgen.engine.loading.random_weights import byte_tokenizer
from batchgen.families.cogvideox.spec import CogScheduler, CogT5, CogTransformer, Dims
from batchgen.families.cogvideox.vae import CogVae
from batchgen.families.dims import stored_dims
from batchgen.request import Bucket, Request, Solver

BUCKET = Bucket(64, 32, 9)
TEXT = 32


@dataclass(frozen=True)
class Kind:
    rotary: bool = True
    depth: int | None = None
    solver: Solver = "sde"


def spec(weights: str = "random", *, heads: int = 2, kind: Kind = Kind()) -> ModelSpec:
    """Two blocks; clips of 64x32x9 have 24 tokens, or 16 of two frames."""
    return ModelSpec(
        name="small-cogvideox",
        family="cogvideox",
        weights=weights,
        dtype="float32",
        dims=Dims(
            transformer=CogTransformer(
                num_layers=2,
                num_attention_heads=heads,
                attention_head_dim=16,
                time_embed_dim=32,
                text_embed_dim=32,
                max_text_seq_length=TEXT,
                in_channels=4,
                out_channels=4,
                patch_size_t=kind.depth,
                sample_width=12,
                sample_height=8,
                sample_frames=9,
                use_rotary_positional_embeddings=kind.rotary,
            ),
            vae=CogVae(
                latent_channels=4,
                block_out_channels=(8, 8, 8, 8),
                layers_per_block=1,
                norm_num_groups=4,
            ),
            text_encoder=CogT5(**SMALL_T5),
            scheduler=CogScheduler(snr_shift_scale=3.0 if kind.solver == "ddim" else 1.0),
        ),
        request_defaults=video_defaults(BUCKET, solver=kind.solver),
    )


def save(folder: Path, spec: ModelSpec) -> Path:
    torch.manual_seed(0)
    dims, solver = spec.dims, spec.request_defaults.solver
    kind = CogVideoXDDIMScheduler if solver == "ddim" else CogVideoXDPMScheduler
    CogVideoXPipeline(
        scheduler=kind(**stored_dims(dims.scheduler)),
        vae=AutoencoderKLCogVideoX(**stored_dims(dims.vae)),
        text_encoder=T5EncoderModel(T5Config(**stored_dims(dims.text_encoder))),
        tokenizer=byte_tokenizer(288),
        transformer=CogVideoXTransformer3DModel(**stored_dims(dims.transformer)),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def pipeline(spec: ModelSpec) -> Any:
    return CogVideoXPipeline.from_pretrained(
        spec.weights_folder, dtype=torch.float32, local_files_only=True
    )


def arguments(pipeline: Any, row: Request) -> dict[str, Any]:
    return {
        "guidance_scale": row.guidance_scale,
        "use_dynamic_cfg": bool(row.use_dynamic_cfg),
        "max_sequence_length": TEXT,
    }


def changes(number: int, solver: Solver = "sde") -> dict[str, Any]:
    """Guided and not, with scales that follow the timestep."""
    return {
        "guidance_scale": (6.0, 1.0, 2.5, 3.0)[number % 4],
        "use_dynamic_cfg": int(number % 3 == 2),
        "solver": solver,
    }


COGVIDEOX = VideoToy("cogvideox", spec, save, pipeline, arguments, changes, BUCKET)
COGVIDEOX_2B = replace(
    COGVIDEOX,
    spec=partial(spec, kind=Kind(rotary=False, solver="ddim")),
    changes=partial(changes, solver="ddim"),
)
COGVIDEOX_NEWER = replace(COGVIDEOX, spec=partial(spec, kind=Kind(depth=2)))
