"""The judge: does a clip show what its prompt says?

It looks at pixels only (numpy, no network, no torch) and knows the small world of ``domain``: one
flat shape on a plain background. What a prompt does not name is not judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from batchgen.tiny.domain import (
    BACKGROUND_WORDS,
    BACKGROUNDS,
    COLOUR_WORDS,
    COLOURS,
    MOTION_WORDS,
    RGB,
    SHAPE_WORDS,
    SHAPES,
)

if TYPE_CHECKING:
    from batchgen.request import Request

Floats = npt.NDArray[np.float32]

#: Words that tell that "on a <colour>" is about the place and not about the shape.
_PLACE_WORDS: Final = frozenset({"background", "backdrop", "scene"})

#: Largest distance of a colour from its ideal (Euclidean, in unit RGB).
_COLOUR_REACH: Final = 0.33
#: Largest mismatch with the best template, as a share of the shape's area.
_SHAPE_REACH: Final = 0.6
#: Least displacement of something that moves, as a share of the shorter side.
_MOVED: Final = 0.1
#: Least ratio of last to first area of something that grows.
_GREW: Final = 1.8
#: Smallest area worth judging, as a share of the picture.
_SMALLEST: Final = 0.003


@dataclass(frozen=True)
class Attributes:
    """The four attributes of a clip or a prompt; ``None`` if unknown or not named."""

    colour: str | None = None
    shape: str | None = None
    motion: str | None = None
    background: str | None = None


@dataclass(frozen=True)
class Score:
    """Which attributes that a prompt names are right in the clip; ``None`` for those not named."""

    colour: bool | None
    shape: bool | None
    motion: bool | None
    background: bool | None

    @property
    def fraction(self) -> float | None:
        """Share of judged attributes that are right, in [0, 1]; ``None`` if none was judged."""
        judged = [
            v for v in (self.colour, self.shape, self.motion, self.background) if v is not None
        ]
        return sum(judged) / len(judged) if judged else None


def parse(prompt: str) -> Attributes:
    """The attributes that a prompt names, in any phrasing; the first mention of each counts."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"navy\s+blue", "navy", prompt.lower()))
    pairs = list(pairwise([*words, ""]))
    colours, shapes = _lookup(COLOUR_WORDS), _lookup(SHAPE_WORDS)
    backgrounds, motions = _lookup(BACKGROUND_WORDS), _lookup(MOTION_WORDS)
    named = {motions[w] for w in words if w in motions}
    return Attributes(
        colour=_first(
            colours[w] for w, after in pairs if w in colours and after not in _PLACE_WORDS
        ),
        shape=_first(shapes[w] for w in words if w in shapes),
        motion=_first(m for m in MOTION_WORDS if m in named),
        background=_first(
            backgrounds[w] for w, after in pairs if w in backgrounds and after not in shapes
        ),
    )


def _first(names: Iterable[str]) -> str | None:
    return next(iter(names), None)


def _lookup(table: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {word: name for name, words in table.items() for word in words}


def look(frames: npt.NDArray[np.uint8]) -> Attributes:
    """Say what a clip shows.

    Args:
        frames: ``(f, h, w, 3)`` uint8; a single frame has no motion.
    """
    pixels: Floats = frames.astype(np.float32) / np.float32(255)
    ground = _border_median(pixels)
    background = _nearest(ground, BACKGROUNDS)
    fill = _fill_colour(pixels, ground)
    if fill is None:
        return Attributes(background=background)
    cover = _coverage(pixels, ground, fill)
    areas = cover.sum((1, 2))
    if areas.max() < _SMALLEST * cover[0].size:
        return Attributes(background=background)
    return Attributes(
        _nearest(fill, COLOURS), _shape(cover, areas), _motion(cover, areas), background
    )


def score(frames: npt.NDArray[np.uint8], prompt: str) -> Score:
    """Judge a clip against its prompt.

    Args:
        frames: ``(f, h, w, 3)`` uint8. With one frame, motion is not judged.
        prompt: any text.
    """
    wanted, seen = parse(prompt), look(frames)
    return Score(
        _right(wanted.colour, seen.colour),
        _right(wanted.shape, seen.shape),
        _right(wanted.motion, seen.motion) if len(frames) > 1 else None,
        _right(wanted.background, seen.background),
    )


def judge(frames: npt.NDArray[np.uint8], request: Request) -> float | None:
    """A judge for `output.judges`: `Score.fraction` of the row's prompt."""
    return score(frames, request.prompt).fraction


def _right(wanted: str | None, seen: str | None) -> bool | None:
    return None if wanted is None else wanted == seen


def _border_median(pixels: Floats) -> Floats:
    """Median colour ``(3,)`` of the outermost pixels of all frames."""
    edges = (pixels[:, :2], pixels[:, -2:], pixels[:, :, :2], pixels[:, :, -2:])
    found: Floats = np.median(np.concatenate([e.reshape(-1, 3) for e in edges]), axis=0).astype(
        np.float32
    )
    return found


def _nearest(colour: Floats, table: dict[str, RGB]) -> str | None:
    distance = {
        name: float(np.linalg.norm(colour - np.asarray(ideal))) for name, ideal in table.items()
    }
    best = min(distance, key=lambda name: distance[name])
    return best if distance[best] <= _COLOUR_REACH else None


def _fill_colour(pixels: Floats, ground: Floats) -> Floats | None:
    """Median colour ``(3,)`` of the pixels that differ from the ground; ``None`` if there are
    few."""
    difference = np.abs(pixels - ground).sum(-1)
    strong = difference > 0.35
    if strong.sum() < _SMALLEST * difference.size:
        return None
    core = difference >= 0.6 * np.quantile(difference[strong], 0.9)
    found: Floats = np.median(pixels[core], axis=0).astype(np.float32)
    return found


def _coverage(pixels: Floats, ground: Floats, fill: Floats) -> Floats:
    """Share of each pixel that the shape covers, ``(f, h, w)``, by its place between the
    colours."""
    axis = fill - ground
    cover = ((pixels - ground) @ axis) / float(axis @ axis)
    found: Floats = np.where(cover < 0.15, 0, np.clip(cover, 0, 1)).astype(np.float32)
    return found


def _centre(cover: Floats) -> tuple[float, float]:
    """Centre of mass (x, y) of one frame's coverage."""
    h, w = cover.shape
    total = float(cover.sum())
    x = float((cover.sum(0) * np.arange(w)).sum()) / total
    y = float((cover.sum(1) * np.arange(h)).sum()) / total
    return x, y


def _motion(cover: Floats, areas: Floats) -> str | None:
    """The motion between the first and the last frame that show the shape."""
    visible = np.flatnonzero(areas >= _SMALLEST / 2 * cover[0].size)
    if len(visible) < 2:
        return None
    first, last = int(visible[0]), int(visible[-1])
    (x0, y0), (x1, y1) = _centre(cover[first]), _centre(cover[last])
    dx, dy = x1 - x0, y1 - y0
    limit = _MOVED * min(cover.shape[1:])
    if areas[last] / areas[first] > _GREW:
        return "growing"
    if max(abs(dx), abs(dy)) < limit:
        return "still"
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def _shape(cover: Floats, areas: Floats) -> str | None:
    """The shape whose template fits best over the frames in which the shape is large."""
    large = np.flatnonzero(areas >= 0.6 * areas.max())
    chosen = large[np.linspace(0, len(large) - 1, min(len(large), 5)).astype(int)]
    mismatch = {
        shape: float(np.mean([_mismatch(cover[i], shape) for i in chosen])) for shape in SHAPES
    }
    best = min(mismatch, key=lambda shape: mismatch[shape])
    return best if mismatch[best] <= _SHAPE_REACH else None


def _mismatch(cover: Floats, shape: str) -> float:
    """Absolute difference to the template of equal area and centre, as a share of that area."""
    area = float(cover.sum())
    x0, y0 = _centre(cover)
    h, w = cover.shape
    x = (np.arange(w)[None, :] - x0).astype(np.float32)
    y = (np.arange(h)[:, None] - y0).astype(np.float32)
    template = np.clip(0.5 - _edge_distance(shape, x, y, area), 0, 1)
    return float(np.abs(cover - template).sum()) / area


def _edge_distance(shape: str, x: Floats, y: Floats, area: float) -> Floats:
    """Signed distance to the edge of a shape of a given area about its centre of mass."""
    distance: Floats
    if shape == "circle":
        distance = np.hypot(x, y) - np.sqrt(area / np.pi)
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - np.sqrt(area) / 2
    elif shape == "ring":
        outer = np.sqrt(area / (0.75 * np.pi))
        distance = np.abs(np.hypot(x, y) - 0.75 * outer) - 0.25 * outer
    else:
        inner = np.sqrt(area / (3 * np.sqrt(3)))
        distance = np.maximum(np.sqrt(3) / 2 * np.abs(x) - y / 2, y) - inner
    return distance
