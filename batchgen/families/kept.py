"""What rows in flight keep on a rank's device between two steps, and how many rows there are: by
this a plan prices them, and an engine lets them join."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from batchgen.caches.strategy import NONE, Keeps, strategy
from batchgen.config.schema import Auto, ModelSpec
from batchgen.families.family import family_spec
from batchgen.request import Bucket

AUTO_ROWS = 16  # most rows in flight: what a stopped worker loses
# Of a forward, where nobody says: what a CPU has most of (`engine/packs.py`), and where an
# accelerator's search for the best size ends at the latest.
CPU_TOKENS = 1024
ACCELERATOR_TOKENS = 65_536
# Of a token, in float32: up to 128 numbers (2x2 latent cells of 16 channels are 64).
LATENT_BYTES = 4 * 128
_STATES = 4  # a row's latents, and what its solver keeps of earlier steps


def forward_tokens(budget: int | Auto, *, on_cpu: bool) -> int:
    """Most tokens of a forward, by what a job says of it."""
    if budget != "auto":
        return budget
    return CPU_TOKENS if on_cpu else ACCELERATOR_TOKENS


@dataclass(slots=True)
class TickRoom:
    """For rows that share the ticks of a replica: as many as the job says, else while a tick of all
    is about one forward; and no more than may keep something at a time. One row always has room."""

    most: int | Auto
    tokens: float  # that are left of a tick, of all ranks together
    kept: float = inf  # bytes that are left for what rows keep
    rows: int = 0  # of the tick
    resting: int = 0  # rows in flight that are not of the tick

    def takes(self, tokens: float, kept: float = 0.0) -> bool:
        """Whether there is room for one more row."""
        if self.rows + self.resting > 0 and kept > self.kept:
            return False
        if self.rows == 0:
            return True
        if self.most != "auto":
            return self.rows < self.most
        return self.rows < AUTO_ROWS and tokens <= self.tokens

    def add(self, tokens: float, kept: float = 0.0) -> None:
        """The row has joined."""
        self.rows += 1
        self.tokens -= tokens
        self.kept -= kept

    def rest(self, kept: float) -> None:
        """There is a row that is in flight, and not of the tick."""
        self.resting += 1
        self.kept -= kept

    def alike(self, tokens: float) -> int:
        """Rows of so many tokens, if there are no others."""
        if self.most != "auto":
            return self.most
        while self.takes(tokens):
            self.add(tokens)
        return self.rows


@dataclass(frozen=True, slots=True)
class RowBytes:
    """What a row in flight keeps on each rank of its replica."""

    model: ModelSpec  # in the precision in which it runs
    tables: int = 0  # of each evaluation, in place of weights: every rank has them whole
    cfg: int = 1  # ranks that share the branches
    sequence: int = 1  # and the tokens of each

    def of(self, bucket: Bucket, branches: int, steps: int, strategies: Iterable[str]) -> int:
        """At most, of a row under one of these step caches."""
        own = -(-branches // self.cfg)
        states = reserve_bytes(self.model, bucket, strategies, self.sequence)
        return own * states + branches * steps * self.tables


def kept_bytes(model: ModelSpec, bucket: Bucket, keeps: Keeps, sequence: int = 1) -> int:
    """Of one branch of a row under a step cache. Ranks that share its tokens share what flows
    between blocks; latents are on each of them."""
    family = family_spec(model.family)
    tokens, width = family.tokens(model, bucket), family.width(model)
    element = 4 if model.dtype == "float32" else 2
    streams = keeps.streams + len(keeps.attention) * family.layers(model)
    flows = tokens * width * (streams * element + keeps.wide * 4)
    whole = tokens * keeps.latents * LATENT_BYTES + keeps.vectors * width * element
    return whole + -(-flows // sequence)


def reserve_bytes(
    model: ModelSpec, bucket: Bucket, strategies: Iterable[str], sequence: int = 1
) -> int:
    """Of one branch of a row: its state, and what that one of the strategies keeps that keeps
    most."""
    state = family_spec(model.family).tokens(model, bucket) * _STATES * LATENT_BYTES
    keeps = [strategy(name).FACTS.keeps for name in strategies if name != NONE]
    return state + max((kept_bytes(model, bucket, each, sequence) for each in keeps), default=0)
