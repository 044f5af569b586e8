"""The rows that step caches are measured on: prompts of the embedded model's own domain.

Their seeds are no calibration's, and prompts that a calibration has seen are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch

from batchgen.request import Request, Solver
from batchgen.tiny import data
from batchgen.tiny.calibration import calibration_rows, preset

GENERATORS = {"bench": 52_001, "tuning": 52_002}  # of the prompts
FIRST_SEEDS = {"bench": 520_000_000, "tuning": 530_000_000}  # of the noise, then one up each


@dataclass(frozen=True, slots=True)
class Shape:
    """What all rows of one run of the bench have in common."""

    steps: int = 50
    guidance: float = 3.0
    solver: Solver = "unipc"
    frames: int = 9
    width: int = 64  # pixels
    height: int = 64


def bench_rows(count: int, shape: Shape) -> list[Request]:
    """The measured rows: the first so many of one fixed sequence, whatever their shape."""
    return _rows("bench", count, shape)


def tuning_rows(count: int, shape: Shape) -> list[Request]:
    """Others, on which thresholds are sought."""
    return _rows("tuning", count, shape)


def _rows(use: str, count: int, shape: Shape) -> list[Request]:
    defaults = preset().request_defaults
    given = {name: getattr(defaults, name) for name in defaults.__slots__} | {
        "num_steps": shape.steps,
        "guidance_scale": shape.guidance,
        "solver": shape.solver,
        "num_frames": shape.frames,
        "width": shape.width,
        "height": shape.height,
    }
    return [
        Request(
            row_index=number,
            row_id=f"{use}-{number}",
            row_key="",
            prompt=prompt,
            seed=FIRST_SEEDS[use] + number,
            format="npy",
            quality=8,
            **given,
        )
        for number, prompt in enumerate(islice(_prompts(GENERATORS[use]), count))
    ]


def _prompts(seed: int) -> Iterator[str]:
    """Without end; none twice, and none of a calibration."""
    generator = torch.Generator().manual_seed(seed)
    seen = {row.prompt for row in calibration_rows()}
    while True:
        (scene,) = data.sample_scenes(1, generator, "all")
        prompt = data.caption(scene, generator)
        if prompt not in seen:
            seen.add(prompt)
            yield prompt
