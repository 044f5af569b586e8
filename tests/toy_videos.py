"""Small video families with random weights, their checkpoints, and diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from toy_engine import Keeper, request

from batchgen.config.schema import ModelSpec
from batchgen.request import Bucket, ModelDefaults, Request

PROMPTS = ("a red cat runs", "the blue dog sits on a big house", "sky")


def video_defaults(bucket: Bucket, **changes: Any) -> ModelDefaults:
    values: dict[str, Any] = {
        "width": bucket.width,
        "height": bucket.height,
        "num_frames": bucket.num_frames,
        "fps": 8,
        "num_steps": 3,
        "guidance_scale": 3.0,
        "solver": "euler",
        "sigma_shift": 1.0,
    }
    return ModelDefaults(**(values | changes))


@dataclass(frozen=True)
class VideoToy:
    """A small model of one family."""

    family: str
    spec: Callable[..., ModelSpec]  # of a weights folder; `heads`: how many
    save: Callable[[Path, ModelSpec], Path]  # a checkpoint with torch's own initialisation
    pipeline: Callable[[ModelSpec], Any]  # diffusers', over the checkpoint
    arguments: Callable[[Any, Request], dict[str, Any]]  # of its call, beside the common ones
    changes: Callable[[int], dict[str, Any]]  # of the n-th row, beside the common ones
    bucket: Bucket
    overrides: tuple[str, ...] = ()  # what its checkpoint does not say

    def row(self, number: int) -> Request:
        """Rows of mixed steps and texts of different lengths."""
        values: dict[str, Any] = {
            "prompt": PROMPTS[number % 3],
            "negative_prompt": ("", "small tree")[number % 2],
            "num_steps": 2 + number % 3,
            "width": self.bucket.width,
            "height": self.bucket.height,
            "num_frames": self.bucket.num_frames,
            "solver": "euler",
            "sigma_shift": self.spec().request_defaults.sigma_shift,
        }
        return request(number, **(values | self.changes(number)))


class VideoTwin:
    """diffusers' pipeline: the plain twin of the engine."""

    def __init__(self, toy: VideoToy, spec: ModelSpec) -> None:
        self.toy = toy
        self.pipeline = toy.pipeline(spec)
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, row: Request) -> tuple[Tensor, np.ndarray]:
        """Latents of the last step, and frames as uint8 (frames, height, width, 3)."""
        torch.manual_seed(row.seed)  # layers of some decoders draw from the global generator
        scheduler, kept = self.pipeline.scheduler, list[Tensor]()
        step = MethodType(type(scheduler).step, scheduler)

        @wraps(step)  # pipelines look at what it takes
        def spying(*args: Any, **kwargs: Any) -> Any:
            found = step(*args, **kwargs)
            kept[:] = [found[0]]
            return found

        scheduler.step = spying
        clips = self.pipeline(
            prompt=row.prompt,
            negative_prompt=row.negative_prompt,
            width=row.width,
            height=row.height,
            num_frames=row.num_frames,
            num_inference_steps=row.num_steps,
            generator=torch.Generator().manual_seed(row.seed),
            output_type="pil",
            **self.toy.arguments(self.pipeline, row),
        ).frames
        return kept[0], np.stack([np.asarray(image) for image in clips[0]])

    def keep(self, rows: Iterable[Request]) -> Keeper:
        """What it draws of rows."""
        kept = Keeper()
        for row in rows:
            kept.latents[row.row_id], kept.frames[row.row_id] = self(row)
        return kept
