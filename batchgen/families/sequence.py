"""How a transformer's tokens may be divided over ranks, told without torch.

A family says where its streams of tokens enter and leave its transformers and which attentions see
all of them; the engine divides them (`engine/parallel/sequence.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from batchgen.config.schema import ModelSpec
    from batchgen.request import Bucket


@dataclass(frozen=True, slots=True)
class Cut:
    """A tensor, or several in a tuple, of which a rank keeps its share of a stream's tokens."""

    module: str  # name of a submodule, `*` for each block; "" is the transformer itself
    tensor: str | int  # an argument of its forward, or the place among its outputs
    stream: str
    dim: int  # where the tokens are


@dataclass(frozen=True, slots=True)
class Attends:
    """Attention modules that see the whole of some streams, one behind the other."""

    modules: str  # a name with `*` for the numbers of blocks
    streams: tuple[str, ...]
    masked: bool = False  # some of the last tokens are not attended to
    reused: bool = True  # by caches that leave out attentions over all tokens


@dataclass(frozen=True, slots=True)
class Crosses:
    """Attention modules whose queries are a stream's tokens, and whose keys every rank has."""

    modules: str
    stream: str


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """Where tokens are divided and where they meet again."""

    cuts: tuple[Cut, ...]
    attends: tuple[Attends, ...]
    gather: Cut  # the output that every rank gets whole
    crosses: tuple[Crosses, ...] = ()
    # Place in an item's condition of a text of any length: all of a divided forward have the same.
    text: int | None = None


@runtime_checkable
class AttendsApart(Protocol):
    """A `spec.py` of a transformer with attentions over a part of the tokens that ranks divide,
    beside those of its blocks over all of them."""

    def apart(self, model: ModelSpec, bucket: Bucket) -> tuple[int, ...]:
        """The tokens of each."""


def sent_in_all_to_all(tokens: float, width: int, ulysses: int, ring: int = 1) -> float:
    """Elements that a rank sends in one attention over `tokens` in all: queries, keys and values of
    its tokens to the ranks that have their heads, and the result back."""
    own = tokens / (ulysses * ring)
    return 4 * own * width * (ulysses - 1) / ulysses


def sent_around_ring(tokens: float, width: int, ring: int, ulysses: int = 1) -> float:
    """Elements that a rank sends in one attention over `tokens` in all: every key and value but
    those of the next rank, of its heads."""
    return 2 * tokens * (width / ulysses) * (ring - 1) / ring


MOST_RANKS = 16  # of one replica along one axis
RINGS = tuple(range(1, MOST_RANKS + 1))  # every degree is legal


def legal_ulysses(heads: int, most: int) -> tuple[int, ...]:
    """The Ulysses degrees up to `most` that divide the heads."""
    return tuple(degree for degree in range(1, most + 1) if heads % degree == 0)


def padded_heads(heads: int, ulysses: int) -> int:
    """Heads that are computed and sent where `ulysses` does not divide them: the next multiple."""
    return -(-heads // ulysses) * ulysses
