"""Synthetic clips and their captions: one flat shape on a plain background, drawn with soft edges.

Everything is a pure function of a ``torch.Generator``; nothing is read from disk or downloaded.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from batchgen.tiny.domain import (
    BACKGROUND_WORDS,
    BACKGROUNDS,
    COLOUR_WORDS,
    COLOURS,
    MOTION_PHRASES,
    MOTION_VERBS,
    MOTIONS,
    PARTIAL_TEMPLATES,
    SHAPE_WORDS,
    SHAPES,
    TEMPLATES,
    is_held_out,
)

Split = Literal["train", "held_out", "all"]

_COLOUR_NAMES = tuple(COLOURS)
_MOTION_NAMES = tuple(MOTIONS)
_BACKGROUND_NAMES = tuple(BACKGROUNDS)
_SQRT3 = 3**0.5


@dataclass(frozen=True)
class Scene:
    """The four attributes of one clip, by name."""

    colour: str
    shape: str
    motion: str
    background: str


@dataclass(frozen=True)
class Motions:
    """Where ``n`` shapes start, travel and end; lengths are fractions of the canvas side.

    Attributes:
        start: centre in the first frame, ``(n, 2)`` as x, y.
        travel: shift of the centre from the first to the last frame, ``(n, 2)``.
        radius: size in the first and in the last frame, ``(n, 2)``.
    """

    start: Tensor
    travel: Tensor
    radius: Tensor


@cache
def _combinations(split: Split) -> tuple[tuple[int, int, int], ...]:
    """Index triples (colour, shape, motion) that belong to a split."""
    wanted = {"train": (False,), "held_out": (True,), "all": (False, True)}[split]
    every = itertools.product(range(len(COLOURS)), range(len(SHAPES)), range(len(MOTIONS)))
    return tuple(
        (c, s, m)
        for c, s, m in every
        if is_held_out(_COLOUR_NAMES[c], SHAPES[s], _MOTION_NAMES[m]) in wanted
    )


def sample_scenes(count: int, generator: torch.Generator, split: Split = "train") -> list[Scene]:
    """Draw ``count`` scenes uniformly from a split of the (colour, shape, motion) combinations."""
    combos = _combinations(split)
    which = torch.randint(len(combos), (count,), generator=generator).tolist()
    back = torch.randint(len(BACKGROUNDS), (count,), generator=generator).tolist()
    return [
        Scene(
            _COLOUR_NAMES[combos[i][0]],
            SHAPES[combos[i][1]],
            _MOTION_NAMES[combos[i][2]],
            _BACKGROUND_NAMES[b],
        )
        for i, b in zip(which, back, strict=True)
    ]


def sample_layout(scenes: list[Scene], generator: torch.Generator) -> Motions:
    """Draw sizes, starting points and distances so that every shape stays inside the canvas."""
    n = len(scenes)
    u = torch.rand(n, 5, generator=generator)
    direction = torch.tensor([MOTIONS[s.motion] or (0, 0) for s in scenes], dtype=torch.float32)
    grows = torch.tensor([MOTIONS[s.motion] is None for s in scenes])
    final = 0.155 + 0.075 * u[:, 0] + 0.02 * grows
    first = torch.where(grows, 0.065 + 0.02 * u[:, 4], final)
    travel = direction * (0.28 + 0.14 * u[:, 1:2])
    room = (0.5 - 1.24 * final.unsqueeze(1) - travel.abs() / 2).clamp(min=0)
    middle = 0.5 + (2 * u[:, 2:4] - 1) * torch.minimum(room, torch.tensor(0.2))
    return Motions(middle - travel / 2, travel, torch.stack([first, final], 1))


def _signed_distance(shape: str, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Distance to the edge of a shape of size ``r``, negative inside (y points down)."""
    if shape == "circle":
        return torch.hypot(x, y) - r
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.9 * r
    if shape == "ring":
        return (torch.hypot(x, y) - 0.78 * r).abs() - 0.26 * r
    return torch.maximum(_SQRT3 / 2 * x.abs() - y / 2, y) - 0.6 * r


def _coverage(scenes: list[Scene], x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Share of each pixel that the shape covers, computed shape by shape to save work."""
    out = torch.empty(torch.broadcast_shapes(x.shape, y.shape))
    for shape in SHAPES:
        rows = torch.tensor([i for i, s in enumerate(scenes) if s.shape == shape], dtype=torch.long)
        if len(rows):
            out[rows] = (0.5 - _signed_distance(shape, x[rows], y[rows], r[rows])).clamp_(0, 1)
    return out


def render(
    scenes: list[Scene], layout: Motions, times: Tensor, *, height: int = 64, width: int = 64
) -> tuple[Tensor, Tensor]:
    """Draw clips at given moments.

    Args:
        scenes: ``n`` scenes.
        layout: their layout.
        times: moments in [0, 1], ``(n, f)``: 0 is the first frame, 1 the last.
        height: pixels.
        width: pixels.

    Returns:
        Clips ``(n, 3, f, height, width)`` in [-1, 1] and the coverage ``(n, 1, f, height, width)``
        in [0, 1].
    """
    side = min(height, width)
    offset = torch.tensor([(width - side) / 2, (height - side) / 2])
    centre = (layout.start[:, None] + layout.travel[:, None] * times[..., None]) * side + offset
    radius = layout.radius[:, :1] + (layout.radius[:, 1:] - layout.radius[:, :1]) * times
    x = torch.arange(width) + 0.5 - centre[..., 0, None, None]
    y = torch.arange(height)[:, None] + 0.5 - centre[..., 1, None, None]
    alpha = _coverage(scenes, x, y, radius[..., None, None] * side).unsqueeze(1)
    fill = torch.tensor([COLOURS[s.colour] for s in scenes]).view(-1, 3, 1, 1, 1)
    back = torch.tensor([BACKGROUNDS[s.background] for s in scenes]).view(-1, 3, 1, 1, 1)
    return torch.lerp(back, fill, alpha) * 2 - 1, alpha


def frame_times(count: int, frames: int) -> Tensor:
    """Moments of evenly spaced frames, ``(count, frames)`` in [0, 1]."""
    return (
        torch.linspace(0, 1, frames).expand(count, frames) if frames > 1 else torch.zeros(count, 1)
    )


def sample_clips(
    count: int,
    generator: torch.Generator,
    *,
    split: Split = "train",
    frames: int = 9,
    height: int = 64,
    width: int = 64,
) -> tuple[Tensor, list[Scene]]:
    """Draw random clips ``(count, 3, frames, height, width)`` in [-1, 1] and their scenes."""
    scenes = sample_scenes(count, generator, split)
    layout = sample_layout(scenes, generator)
    clips, _ = render(scenes, layout, frame_times(count, frames), height=height, width=width)
    return clips, scenes


def caption(scene: Scene, generator: torch.Generator, partial: float = 0.0) -> str:
    """Say a scene in words: a random template and random synonyms.

    Args:
        scene: what to say.
        generator: source of all choices.
        partial: probability of a template that leaves attributes unnamed.
    """
    u = torch.rand(6, generator=generator).tolist()
    templates = PARTIAL_TEMPLATES if u[0] < partial else TEMPLATES
    return _pick(templates, u[1]).format(
        c=_pick(COLOUR_WORDS[scene.colour], u[2], favour_first=True),
        s=_pick(SHAPE_WORDS[scene.shape], u[3], favour_first=True),
        m=_pick(MOTION_PHRASES[scene.motion], u[4]),
        v=_pick(MOTION_VERBS[scene.motion], u[4]),
        b=_pick(BACKGROUND_WORDS[scene.background], u[5]),
    )


def _pick(options: tuple[str, ...], u: float, favour_first: bool = False) -> str:
    """Choose by a uniform number; ``favour_first`` gives the plain word half of the weight."""
    if favour_first:
        u = max(0.0, 2 * u - 1)
    return options[min(int(u * len(options)), len(options) - 1)]
