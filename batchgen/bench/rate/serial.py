"""The plain twin of a run: diffusers' WanPipeline, one prompt after the other.

`python -m batchgen.bench.rate.serial PLAN OUT` does so with the rows of a plan and the embedded
model, as a script of one's own would.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from batchgen.config.schema import ModelSpec
from batchgen.media.formats import mp4
from batchgen.numerics.solver import reference_scheduler
from batchgen.request import Request


def load_pipeline(model: ModelSpec) -> WanPipeline:
    """Of a checkpoint or the embedded model, in float32."""
    diffusers_logging.disable_progress_bar()  # the bench has its table to show
    transformers_logging.disable_progress_bar()
    pipeline = WanPipeline.from_pretrained(
        model.weights_folder, local_files_only=True, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_one(pipeline: Any, row: Request, max_tokens: int) -> np.ndarray:
    """Its frames, uint8 (frames, height, width, 3)."""
    pipeline.scheduler = reference_scheduler(row.solver, row.sigma_shift)
    found = pipeline(
        row.prompt,
        negative_prompt=row.negative_prompt,
        width=row.width,
        height=row.height,
        num_frames=row.num_frames,
        num_inference_steps=row.num_steps,
        guidance_scale=row.guidance_scale,
        generator=torch.Generator().manual_seed(row.seed),
        max_sequence_length=max_tokens,
    ).frames[0]
    pixels: np.ndarray = (np.asarray(found) * 255).round().astype(np.uint8)
    return pixels


def draw_serially(pipeline: Any, rows: Sequence[Request], max_tokens: int, out: Path) -> None:
    """Encode, denoise, decode and write each row before the next one."""
    for row in rows:
        frames = draw_one(pipeline, row, max_tokens)
        mp4.write(frames, out / f"{row.row_id}.mp4", fps=row.fps, quality=row.quality)


def main(plan: str, out: str) -> None:
    from batchgen.planning.plan import read_costs, read_requests
    from batchgen.tiny.calibration import preset

    model = preset()
    count = len(read_costs(Path(plan)).cost_s)
    rows = read_requests(Path(plan), list(range(count)))
    draw_serially(load_pipeline(model), rows, max_tokens(model), Path(out))


def max_tokens(model: ModelSpec) -> int:
    """Of a prompt."""
    dims: Any = model.dims
    tokens: int = dims.text_encoder.max_tokens
    return tokens


if __name__ == "__main__":
    main(*sys.argv[1:])
