"""Small checkpoints of the embedded model's architecture, untrained, made when a test asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline

from batchgen.tiny.export import make_scheduler
from batchgen.tiny.models import make_text_encoder, make_transformer, make_vae
from batchgen.tiny.tokenizer import make_tokenizer

BOUNDARY = 0.875  # of the 1000 training timesteps: above it the first expert draws (Wan2.2 T2V)
ODD_SIZE = {"width": 48, "height": 48, "num_frames": 9}  # 3 x 3 x 3 patches: 27 tokens


def save_tiny(folder: Path, **changes: Any) -> Path:
    """An untrained pipeline folder like `batchgen/tiny/weights`; `changes` go to WanPipeline."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    parts: dict[str, Any] = {
        "tokenizer": tokenizer,
        "text_encoder": make_text_encoder(len(tokenizer)),
        "transformer": make_transformer(),
        "vae": make_vae(),
        "scheduler": make_scheduler(),
    }
    WanPipeline(**parts, **changes).save_pretrained(folder, safe_serialization=True)
    return folder


def save_two_experts(folder: Path) -> Path:
    """Wan2.2's layout: `transformer` for high noise, `transformer_2` for low noise."""
    torch.manual_seed(1)
    return save_tiny(folder, transformer_2=make_transformer(), boundary_ratio=BOUNDARY)
