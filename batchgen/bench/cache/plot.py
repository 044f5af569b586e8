"""The picture: error over work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from batchgen.bench.cache.figures import Figures
from batchgen.bench.cache.policies import FEWER, OURS

WIDTH, HEIGHT, MARGIN = 1500, 760, 70  # pixels
LEGEND = 330
INK, GRID = "#222222", "#dddddd"
STEP = 10.0  # dB and evaluations between two lines of the grid
# of distinct lightness, too: Okabe and Ito's, and four more
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c2d04"),
    *("#3f007d", "#4d9221", "#a50f15", "#b2abd2", "#525252", "#01665e"),
)


@dataclass(frozen=True, slots=True)
class Panel:
    """A field with its scales: `left` to `right` pixels, evaluations along, dB up."""

    left: int
    right: int
    along: tuple[float, float]
    up: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        across = (x - self.along[0]) / (self.along[1] - self.along[0])
        high = (y - self.up[0]) / (self.up[1] - self.up[0])
        bottom, top = HEIGHT - MARGIN, MARGIN
        return self.left + across * (self.right - self.left), bottom - high * (bottom - top)


@dataclass(frozen=True, slots=True)
class Style:
    """Of a policy's line."""

    colour: str
    width: int
    hollow: bool

    def point(self, pen: ImageDraw.ImageDraw, place: tuple[float, float]) -> None:
        inside = "white" if self.hollow else self.colour
        pen.circle(place, 4 + self.width // 2, inside, self.colour, 2)


def plot(found: Sequence[Figures], path: Path) -> None:
    """Mean and 10th percentile of PSNR over the evaluations of a row, a line a policy."""
    drawn = [each for each in found if each.ratio > 0]
    names = sorted({each.policy for each in drawn}, key=lambda name: -_best(drawn, name))
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    room = (WIDTH - LEGEND) // 2
    along = _bounds([each.computed for each in drawn])
    up = _bounds([y for each in drawn for y in (each.quality.mean, each.quality.p10)])
    for number, part in enumerate(("mean", "p10")):
        panel = Panel(number * room + MARGIN, (number + 1) * room - 20, along, up)
        title = {"mean": "mean over rows", "p10": "10th percentile of rows"}[part]
        _axes(pen, panel, title, f"evaluations computed of {drawn[0].total:.0f}")
        for name in reversed(names):  # the best on top
            points = [(e.computed, getattr(e.quality, part)) for e in drawn if e.policy == name]
            _line(pen, panel, sorted(points), _style(names, name))
    _legend(pen, names)
    image.save(path)


def _best(drawn: Sequence[Figures], name: str) -> float:
    return max(each.quality.mean for each in drawn if each.policy == name)


def _style(names: Sequence[str], name: str) -> Style:
    """Variants of a policy share its colour, and have hollow points."""
    plain = list(dict.fromkeys(map(_plain, names)))
    colour = COLOURS[plain.index(_plain(name)) % len(COLOURS)]
    return Style(colour, 5 if name in (OURS, FEWER) else 2, hollow=name != _plain(name))


def _plain(name: str) -> str:
    return name.partition(",")[0]


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """Lines of the grid around all of them."""
    low, high = min(values) // STEP * STEP, -(-max(values) // STEP) * STEP
    return low, max(high, low + STEP)


def _axes(pen: ImageDraw.ImageDraw, panel: Panel, title: str, below: str) -> None:
    font, middle = _font(18), (panel.left + panel.right) / 2
    for x in _ticks(panel.along):
        pen.line([panel.at(x, panel.up[0]), panel.at(x, panel.up[1])], GRID)
        left, bottom = panel.at(x, panel.up[0])
        pen.text((left, bottom + 6), f"{x:g}", INK, font, "ma")
    for y in _ticks(panel.up):
        pen.line([panel.at(panel.along[0], y), panel.at(panel.along[1], y)], GRID)
        left, height = panel.at(panel.along[0], y)
        pen.text((left - 8, height), f"{y:g}", INK, font, "rm")
    pen.text((middle, HEIGHT - 12), below, INK, font, "md")
    pen.text((middle, 14), f"PSNR (dB), {title}", INK, _font(22), "ma")


def _line(
    pen: ImageDraw.ImageDraw, panel: Panel, points: Sequence[tuple[float, float]], style: Style
) -> None:
    places = [panel.at(*point) for point in points]
    pen.line(places, style.colour, style.width)
    for place in places:
        style.point(pen, place)


def _legend(pen: ImageDraw.ImageDraw, names: Sequence[str]) -> None:
    """Best policy first."""
    left = WIDTH - LEGEND + 20
    for place, name in enumerate(names):
        style = _style(names, name)
        y = MARGIN + 10 + place * 34
        pen.line([(left, y), (left + 40, y)], style.colour, style.width)
        style.point(pen, (left + 20, y))
        pen.text((left + 52, y), name, INK, _font(18), "lm")


def _ticks(bounds: tuple[float, float]) -> list[float]:
    low, high = bounds
    return [low + STEP * i for i in range(round((high - low) / STEP) + 1)]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
