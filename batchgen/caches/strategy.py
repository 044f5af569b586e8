"""What a strategy is, and how it is found by the name of its file.

A strategy sees a row's own past, branch by branch, and says of each evaluation whether it is
computed; of one that is not, it says what stands in for it. It combines tensors by arithmetic and
owns none but what it has to remember, so its file needs no torch and planning may read it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from math import asin, sqrt
from pkgutil import iter_modules
from typing import Any, Literal, Protocol, TypeAlias, cast

from batchgen.caches.blocks import Attention, Blocks
from batchgen.errors import ConfigError, closest
from batchgen.request import Range

Tensor: TypeAlias = Any  # a torch tensor; its arithmetic is all that is used of it
Kind = Literal["planned", "adaptive", "probe", "partial"]
Reuses = Literal["path", "output", "stack", "blocks", "attention"]
# Of a family: the embedded timestep; its projection, by which blocks are modulated; the input of
# the first attention as it enters it, a grid (1, frames, rows, columns, width)
SignalKind = Literal["timestep", "projected", "embedded"]
Signal = Literal["", "latents", "timestep", "projected", "embedded"]
NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeps:
    """The most that one branch keeps from step to step, in tensors of these sizes."""

    latents: int = 0  # as the latents, float32
    streams: int = 0  # as what flows between blocks, of the model's type
    wide: int = 0  # the same in float32
    vectors: int = 0  # as one token of it
    attention: tuple[Attention, ...] = ()  # of each block the output of such an attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What holds for a strategy whatever the row.

    kind     planned: the computed steps are known before the row starts, and the row skips the
             others whole; adaptive: decides before each forward; probe: decides inside the forward;
             partial: saves inside every forward
    reuses   path: nothing, the row takes longer steps; output: a branch's velocity; stack: what all
             blocks together add to their input; blocks: some blocks; attention: its outputs
    signal   what deciding looks at; "" where the steps are known beforehand (data-free)
    """

    kind: Kind
    reuses: Reuses
    keeps: Keeps
    signal: Signal = ""
    together: bool = False  # the first branch decides for all branches of its row
    table: Literal["needed", "used", ""] = ""  # fitted coefficients of the model
    warmup: int = 5  # first steps that are computed, where nobody says how many
    cooldown: int = 5  # last ones
    params: Mapping[str, Range] = field(default_factory=dict)  # native knobs, in `cache_params`

    @property
    def data_free(self) -> bool:
        """Whether its decisions depend on no number that is computed."""
        return self.signal == "" and self.kind != "probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a strategy knows of a row before its first step."""

    ratio: float  # share of the evaluations to be saved
    warmup: int
    cooldown: int
    params: Mapping[str, float]  # the native knobs that are set
    sigmas: tuple[float, ...]  # noise at every step, and at the end
    starts: tuple[int, ...] = (0,)  # the first step of each expert; always computed
    branch: int = 0
    layers: int = 1  # blocks of one forward
    attention: tuple[float, float] = (1 / 3, 1 / 6)  # shares of self and cross in a forward's work
    # whether beside the noise s there is sqrt(1 - s^2) of the picture; else there is 1 - s
    diffusion: bool = False

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def ways(self) -> tuple[float, ...]:
        """Of every step and of the end the place along which a velocity is the latents' slope: the
        noise; of a model of diffusion its angle (https://arxiv.org/abs/2202.00512, appendix D)."""
        return tuple(map(asin, self.sigmas)) if self.diffusion else self.sigmas

    def picture(self, noise: float) -> float:
        """The share of the picture beside so much noise."""
        return sqrt(1 - noise**2) if self.diffusion else 1 - noise

    def must(self, step: int) -> bool:
        """Whether the step is computed whatever the strategy says."""
        return (
            self.ratio == 0
            or step in self.starts
            or step < self.warmup
            or step >= self.steps - self.cooldown
        )


class Look(Protocol):
    """What deciding may look at, worked out when it is asked for."""

    step: int

    @property
    def latents(self) -> Tensor:
        """(1, ...) float32, at the step."""

    @property
    def change(self) -> float:
        """Of a probe: how far what it computed lies from what `against` gave, relative to that;
        infinite where there is nothing to compare with."""

    def signal(self, kind: SignalKind) -> Tensor:
        """The family's signal of the step."""


class BranchCache(Protocol):
    """One branch of one row under a strategy that is not planned. A new one is made where the row
    begins and at each expert's first step."""

    def computes(self, look: Look) -> bool:
        """Whether the step is computed; asked once of each step, in order. Where branches decide
        together the others are not asked."""

    def note(self, step: int, latents: Tensor, value: Tensor) -> None:
        """The step was computed: `value` is what the strategy reuses."""

    def predict(self, step: int, latents: Tensor) -> Tensor:
        """What stands in for `value` at a step that is not computed."""

    def tensors(self) -> dict[str, Tensor]:
        """All that it remembers of tensors, by name."""

    def numbers(self) -> dict[str, float]:
        """All else that it remembers."""

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> None:
        """The inverse of the two."""


class BlockCache(BranchCache, Protocol):
    """A branch under a strategy that saves inside its forwards. `value` is then what its `blocks`
    keep of one: what blocks have added, a state, or by their kind the outputs of attentions."""

    def blocks(self, step: int, computed: bool) -> Blocks:
        """What the step's forward does with the blocks, as the branch has decided."""


class ProbeCache(BlockCache, Protocol):
    """A branch that decides behind the first block, by what that has added. Its `blocks` are those
    of a computed step behind the probe; at others the probe's forward has added `predict`."""

    def against(self) -> Tensor | None:
        """What the first block added at the last computed step; None before there was one."""

    def note_probe(self, added: Tensor) -> None:
        """The step is computed: what its first block has added."""


class Strategy(Protocol):
    """What the file of a strategy has."""

    FACTS: Facts

    def computed(self, row: Row, table: Mapping[str, Any] | None) -> tuple[int, ...] | None:
        """The computed steps, where they are known beforehand; None where they are not."""

    def expected(self, row: Row, table: Mapping[str, Any] | None) -> float:
        """Evaluations of one branch in units of whole ones: as they will be, or a guess."""

    def branch(self, row: Row, table: Mapping[str, Any] | None) -> BranchCache:
        """A branch at its first step. Not asked of a planned strategy."""


@cache
def names() -> tuple[str, ...]:
    """Of all strategies, without `none`."""
    folder = importlib.import_module("batchgen.caches.strategies")
    return tuple(sorted(module.name for module in iter_modules(folder.__path__)))


@cache
def strategy(name: str) -> Strategy:
    """By its name; ConfigError naming the existing ones if it is unknown."""
    if name not in names():
        listed = ", ".join((NONE, *names()))
        raise ConfigError(
            f"cache_strategy: {name!r} is not one of {listed}{closest(name, names())}"
        )
    return cast(Strategy, importlib.import_module(f"batchgen.caches.strategies.{name}"))


def computed_count(steps: int, ratio: float) -> int:
    """Steps that are computed of so many: at least the first, never more for a larger ratio."""
    return max(1, min(steps, int(steps * (1 - ratio) + 0.5 + 1e-9)))
