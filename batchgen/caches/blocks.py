"""What one forward does with the blocks of a transformer, told without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Attention = Literal["self", "cross"]  # among the tokens that are drawn; to a text's


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """One for all items of a forward. Blocks are counted over all the lists of a transformer, in
    their order; as it stands, everything is computed and nothing is kept.

    start    the first block that runs; if not 0, it begins from a state kept before it
    stop     the first one that runs no more; None: none. What is kept of it and of those behind it
             is added in their place, if there is anything
    state    keep the state that enters this block
    since    keep what all blocks that run from this one on have added
    attends  keep the outputs of these attentions
    reuses   take the outputs of these attentions from those kept
    """

    start: int = 0
    stop: int | None = None
    state: int | None = None
    since: int | None = None
    attends: tuple[Attention, ...] = ()
    reuses: tuple[Attention, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether everything is computed, whatever is kept of it."""
        return self.start == 0 and self.stop is None and not self.reuses

    @property
    def empty(self) -> bool:
        """Whether no block runs."""
        return self.stop is not None and self.stop <= self.start

    @property
    def plain(self) -> bool:
        """Whether nothing is taken from before and nothing kept."""
        return self == WHOLE

    def runs(self, block: int) -> bool:
        return self.start <= block and (self.stop is None or block < self.stop)

    def ran(self, layers: int) -> int:
        """How many of so many blocks run."""
        return max(0, (layers if self.stop is None else self.stop) - self.start)


WHOLE = Blocks()
STACK = Blocks(since=0)  # all, and what they add is kept
# The first alone; where the others have added something before, that is added in their place, so
# that the forward comes to a velocity for those that the probe finds need no more.
PROBE = Blocks(stop=1, state=1, since=0)
NO_BLOCKS = Blocks(stop=0)  # none: what they have added before is added in their place
