"""What the embedded model can draw: colours, shapes, motions, backgrounds, and the words for them.

Plain Python without torch or numpy, so that the judge, the tokenizer and the data generator share
one vocabulary.
"""

from __future__ import annotations

import hashlib
from typing import Final

RGB = tuple[float, float, float]

#: Fill colours, linear in display values, each channel in [0, 1].
COLOURS: Final[dict[str, RGB]] = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.12, 0.78, 0.20),
    "blue": (0.20, 0.32, 0.98),
    "yellow": (0.97, 0.92, 0.10),
    "purple": (0.66, 0.18, 0.82),
    "white": (0.96, 0.96, 0.96),
    "orange": (1.00, 0.54, 0.05),
    "cyan": (0.10, 0.86, 0.92),
}

#: Background colours, each channel in [0, 1].
BACKGROUNDS: Final[dict[str, RGB]] = {
    "black": (0.02, 0.02, 0.02),
    "gray": (0.45, 0.45, 0.45),
    "navy": (0.05, 0.07, 0.28),
}

SHAPES: Final[tuple[str, ...]] = ("circle", "square", "triangle", "ring")

#: Direction of travel (x to the right, y down); ``None`` for the motion that changes the size
#: instead.
MOTIONS: Final[dict[str, tuple[int, int] | None]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "growing": None,
    "still": (0, 0),
}

COLOUR_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "red": ("red", "crimson", "scarlet"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "yellow": ("yellow", "lemon"),
    "purple": ("purple", "violet"),
    "white": ("white",),
    "orange": ("orange", "tangerine"),
    "cyan": ("cyan", "turquoise"),
}

SHAPE_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "circle": ("circle", "disc", "ball", "disk", "dot"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "ring": ("ring", "hoop", "donut"),
}

#: Participle phrases, for ``{m}``.
MOTION_PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "left": (
        "moving left",
        "moving to the left",
        "sliding left",
        "drifting leftwards",
        "going left",
    ),
    "right": (
        "moving right",
        "moving to the right",
        "sliding right",
        "drifting rightwards",
        "going right",
    ),
    "up": ("moving up", "moving upwards", "rising", "floating up", "going up"),
    "down": ("moving down", "moving downwards", "falling", "sinking down", "going down"),
    "growing": ("growing", "getting bigger", "getting larger", "expanding", "growing in place"),
    "still": ("standing still", "staying still", "not moving", "motionless", "staying in place"),
}

#: Verb phrases, for ``{v}``.
MOTION_VERBS: Final[dict[str, tuple[str, ...]]] = {
    "left": ("moves left", "slides to the left", "drifts left", "goes leftwards"),
    "right": ("moves right", "slides to the right", "drifts right", "goes rightwards"),
    "up": ("moves up", "rises", "floats up", "goes upwards"),
    "down": ("moves down", "falls", "sinks", "goes downwards"),
    "growing": ("grows", "gets bigger", "gets larger", "expands"),
    "still": ("stands still", "stays still", "does not move", "stays in place"),
}

BACKGROUND_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "black": ("black",),
    "gray": ("gray", "grey"),
    "navy": ("navy", "navy blue"),
}

#: Single words by which a prompt names a motion, in order of precedence ("growing in place" grows).
MOTION_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "growing": ("growing", "grows", "grow", "expanding", "expands", "bigger", "larger"),
    "left": ("left", "leftward", "leftwards"),
    "right": ("right", "rightward", "rightwards"),
    "up": ("up", "upward", "upwards", "rising", "rises", "rise", "ascending", "ascends"),
    "down": (
        "down",
        "downward",
        "downwards",
        "falling",
        "falls",
        "fall",
        "sinking",
        "sinks",
        "descending",
        "descends",
    ),
    "still": ("still", "motionless", "static", "stationary", "place", "not"),
}

#: Caption templates: ``{c}`` colour, ``{s}`` shape, ``{m}`` or ``{v}`` motion, ``{b}`` background.
TEMPLATES: Final[tuple[str, ...]] = (
    "a {c} {s} {m} on a {b} background",
    "a {c} {s} {m} on {b}",
    "a {c} {s} {v} on a {b} background",
    "a {c} {s} that {v}, {b} background",
    "on {b}, the {c} {s} {v}",
    "a {c} {s} {m}, {b} background",
    "a {c} {s} is {m} over a {b} backdrop",
    "a {s} that is {c}, {m}, against a {b} background",
    "on a {b} background, a {c} {s} is {m}",
    "{b} background, {c} {s}, {m}",
    "{m}: a {c} {s} in front of a {b} background",
    "a video of a {c} {s} {m} against a {b} backdrop",
    "there is one {c} {s} {m} in a {b} scene",
    "the {s} is {c} and {m}, the background is {b}",
    "the background is {b} and the {c} {s} is {m}",
)

#: Captions that leave attributes out; what they do not name is free.
PARTIAL_TEMPLATES: Final[tuple[str, ...]] = (
    "a {c} {s} {m}",
    "a {c} {s}",
    "a {s} {m} on a {b} background",
    "{c} {s} on a {b} background",
    "something {c} {m}",
)

HELD_OUT_FRACTION: Final = 8


def is_held_out(colour: str, shape: str, motion: str) -> bool:
    """Whether this combination is kept out of the training (about one in eight, by hash)."""
    digest = hashlib.sha256(f"{colour}/{shape}/{motion}".encode()).digest()
    return digest[0] % HELD_OUT_FRACTION == 0
