"""Small image families with random weights, their checkpoints, and diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from toy_engine import request
from transformers import PreTrainedTokenizerFast

from batchgen.config.schema import ModelSpec
from batchgen.families.autoencoders import KlVae
from batchgen.request import ModelDefaults, Request, Solver

DEFAULTS = ModelDefaults(
    width=64,
    height=64,
    num_frames=1,
    fps=1,
    num_steps=4,
    guidance_scale=1.0,
    solver="euler",
    sigma_shift=1.0,
)

SMALL_VAE = KlVae(
    block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4
)


@dataclass(frozen=True)
class Toy:
    """A small model of one family."""

    spec: Callable[..., ModelSpec]  # of a weights folder; `heads`: how many
    save: Callable[[Path, ModelSpec], Path]  # a checkpoint with torch's own initialisation
    pipeline: Callable[[ModelSpec], Any]  # diffusers', over the checkpoint
    arguments: Callable[[Request], dict[str, Any]]  # of its call, beside the common ones
    changes: Callable[[int], dict[str, Any]]  # of the n-th row, beside the common ones
    solver: Solver = "euler"
    shift: float = 1.0  # of the scheduler, where it does not depend on the size
    unread: tuple[str, ...] = ()  # columns that it does not read
    overrides: tuple[str, ...] = ()  # what its checkpoint does not say

    def row(self, number: int) -> Request:
        """Rows of mixed steps, sizes and texts of different lengths."""
        values: dict[str, Any] = {
            "prompt": ("a red cat", "the blue dog sits on a house", "sky")[number % 3],
            "negative_prompt": ("", "small tree")[number % 2],
            "num_steps": 2 + number % 4,
            "width": (64, 64, 96)[number % 3],
            "height": 64,
            "num_frames": 1,
            "solver": self.solver,
            "sigma_shift": self.shift,
            "format": "png",
        }
        return request(number, **(values | self.changes(number)))


class ImageTwin:
    """diffusers' pipeline: the plain twin of the engine."""

    def __init__(self, toy: Toy, spec: ModelSpec) -> None:
        self.toy = toy
        self.pipeline = toy.pipeline(spec)
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, row: Request) -> tuple[Tensor, np.ndarray]:
        """The latents behind the last step, and uint8 frames (1, height, width, 3)."""
        seen: list[Tensor] = []

        def note(_: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            seen.append(values["latents"])
            return values

        images = self.pipeline(
            prompt=row.prompt,
            width=row.width,
            height=row.height,
            num_inference_steps=row.num_steps,
            generator=torch.Generator().manual_seed(row.seed),
            callback_on_step_end=note,
            **self.toy.arguments(row),
        ).images
        return seen[-1], np.stack([np.asarray(image) for image in images])


def template_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """With a template for chats, as language models' have one."""
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if enable_thinking is defined and not enable_thinking %}<quick>{% endif %}<model>"
    )
    return tokenizer
