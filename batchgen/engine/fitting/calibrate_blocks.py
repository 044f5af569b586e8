"""Measures what strategies that leave out blocks are set by, on rows that are drawn uncached.

How large what all blocks add is from step to step (magcache); by which polynomial the output
changes with a signal (teacache); and for each ratio the threshold that saves it (teacache,
seacache, first_block), found by letting the strategy decide on the changes that were recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchgen.caches.blocks import PROBE, STACK
from batchgen.caches.pilots import MEASURED
from batchgen.caches.residual import Summing, relative_change
from batchgen.caches.settings import Given, resolve
from batchgen.caches.strategies import first_block, seacache, teacache
from batchgen.caches.strategy import Row, SignalKind, computed_count
from batchgen.caches.tables import Entry, Key
from batchgen.engine.fitting.calibrate import Calibration, rounded
from batchgen.engine.fitting.lockstep import Lockstep
from batchgen.engine.replica import Replica
from batchgen.families.family import Item
from batchgen.numerics.solver import History, step
from batchgen.request import Request

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
DEGREE = 4  # of the polynomial, as published
HALVINGS = 40  # of the interval in which a threshold lies
HIGHEST = 100.0  # threshold
PROBED = 1024  # tokens, or fewer than twice as many, of which the first block's changes are taken


@dataclass(slots=True, eq=False)
class Recorded:
    """One branch of one row, drawn uncached. Changes are relative, from the step before."""

    ratios: list[float] = field(default_factory=list)  # of what all blocks add, but at the first
    output: list[float] = field(default_factory=list)
    embedded: list[float] = field(default_factory=list)  # of teacache's signal
    filtered: list[float] = field(default_factory=list)  # of seacache's
    # Of what the first block adds: at each step, from each step before.
    apart: list[list[float]] = field(default_factory=list)
    last: dict[str, Tensor] = field(default_factory=dict)  # at the step before
    firsts: list[Tensor] = field(default_factory=list)  # what the first block adds, on the host

    def change(self, name: str, new: Tensor) -> float | None:
        """Of a tensor since the step before; it is kept for the next one."""
        old, self.last[name] = self.last.get(name), new
        return None if old is None else relative_change(new, old)

    def probe(self, added: Tensor) -> None:
        """What the first block adds at the next step."""
        some = added[:, :: max(1, added.shape[1] // PROBED)].cpu()
        self.apart.append([relative_change(some, old) for old in self.firsts])
        self.firsts.append(some)

    def forget(self) -> None:
        """All that was kept for comparing."""
        self.last, self.firsts = {}, []


@dataclass(slots=True)
class _Look:
    """What deciding looks at: an item, or a change that was recorded."""

    step: int
    change: float = 0.0
    item: Item | None = None
    replica: Replica | None = None

    @property
    def latents(self) -> Tensor:
        assert self.item is not None
        return self.item.latents.float()

    def signal(self, kind: SignalKind) -> Tensor:
        assert self.replica is not None and self.item is not None
        return self.replica.signal(self.item, kind)


def calibrate_blocks(
    replica: Replica,
    requests: Sequence[Request],
    key: Key,
    *,
    names: Sequence[str] = MEASURED,
    signal: SignalKind = "projected",
    moved: Callable[[], object] = lambda: None,
) -> Calibration:
    """A table of each of these strategies (`names`), from rows that share solver, shift, steps and
    number of branches. `key`: what they serve, whatever its strategy; `signal`: what teacache looks
    at. `moved` is told of every step."""
    with torch.no_grad():
        begin = perf_counter()
        rows = Lockstep(replica, requests, guided=False)
        watch = _Watch(_facts(rows, "seacache"), signal, "first_block" in names)
        drawn = [_record(rows, row, watch, moved) for row in range(len(rows))]
        recorded_s = perf_counter() - begin
    branches = [branch for row, _ in drawn for branch in row]
    probes = len(branches) * len(rows.schedule) * watch.first
    measure: dict[str, Callable[[Row], dict[str, Any]]] = {
        "magcache": lambda _: {"ratios": _ratios([row for row, _ in drawn])},
        "teacache": lambda facts: _teacache(facts, branches, signal),
        "seacache": lambda facts: _seacache(facts, branches),
        "first_block": lambda facts: _first_block(facts, branches),
    }
    entries = [
        Entry(key=replace(key, strategy=name), content=measure[name](_facts(rows, name)))
        for name in names
    ]
    latents = tuple(end for _, end in drawn)
    return Calibration(tuple(entries), latents, recorded_s, probes / replica.layers)


def _facts(rows: Lockstep, strategy: str) -> Row:
    """What the strategy is told of these rows, with as many first and last steps computed as where
    nobody says how many."""
    usual = resolve(Given(strategy=strategy), Given(), len(rows.schedule))
    return Row(
        ratio=usual.ratio,
        warmup=usual.warmup,
        cooldown=usual.cooldown,
        params={},
        sigmas=tuple(map(float, rows.schedule.sigmas)),
        starts=rows.starts,
        layers=rows.replica.layers,
        diffusion=rows.schedule.diffusion,
    )


# ------------------------------------------------------------------------------------------- record
@dataclass(frozen=True, slots=True)
class _Watch:
    """What is looked at beside what all blocks add."""

    facts: Row  # of seacache
    signal: SignalKind  # teacache's
    first: bool  # what the first block adds, which takes forwards of its own


def _record(
    rows: Lockstep, row: int, watch: _Watch, moved: Callable[[], object]
) -> tuple[list[Recorded], Tensor]:
    """Each branch of one row, and its latents at the end, on the host."""
    x, history = rows.noise(row), History()
    found = [Recorded() for _ in rows.rows[row].conditions]
    draw = rows.draw(row, x)
    for number, coefs in enumerate(rows.schedule.coefs):
        items = rows.items(row, x, number)
        drawn = rows.forward(items, STACK)
        probed = rows.forward(items, PROBE) if watch.first else []
        for branch, (_, kept) in zip(found, probed, strict=False):
            assert kept.added is not None
            branch.probe(kept.added)
        for branch, item, (velocity, kept) in zip(found, items, drawn, strict=True):
            assert kept.added is not None
            look = _Look(number, item=item, replica=rows.replica)
            _note(branch, look, watch, kept.added, velocity)
        guided = rows.combine(row, number, [velocity for velocity, _ in drawn])
        after, history = step(coefs, x.float(), guided, history, draw)
        x = after.to(x.dtype)
        moved()
    for branch in found:
        branch.forget()
    return found, rows.end(row, x).cpu()


def _note(branch: Recorded, look: _Look, watch: _Watch, added: Tensor, velocity: Tensor) -> None:
    before = branch.last.get("added")
    if before is not None:  # of each token, as published
        sizes = added.float().norm(dim=-1) / before.float().norm(dim=-1)
        branch.ratios.append(float(sizes.mean()))
    branch.last["added"] = added
    filtered = seacache.Filtered(watch.facts, 0.0).signal(look)
    for name, changes, new in (
        ("output", branch.output, velocity.float()),
        ("embedded", branch.embedded, look.signal(watch.signal).float()),
        ("filtered", branch.filtered, filtered),
    ):
        change = branch.change(name, new)
        if change is not None:
            changes.append(change)


# ------------------------------------------------------------------------------------------ measure
def _ratios(rows: Sequence[Sequence[Recorded]]) -> list[list[float]]:
    """Of each branch, the mean of the rows."""
    branches = zip(*rows, strict=True)
    return [rounded(np.mean([row.ratios for row in branch], axis=0)) for branch in branches]


def _seacache(facts: Row, branches: Sequence[Recorded]) -> dict[str, Any]:
    found = _summed(facts, branches, "filtered", seacache.branch, {})
    return {"steps": facts.steps, "thresholds": found}


def _teacache(facts: Row, branches: Sequence[Recorded], signal: SignalKind) -> dict[str, Any]:
    """The polynomial from the signal's changes to the output's, and thresholds of its sums."""
    x = np.concatenate([branch.embedded for branch in branches])
    y = np.concatenate([branch.output for branch in branches])
    degree = min(DEGREE, len(np.unique(x)) - 1)
    content: dict[str, Any] = {"polynomial": rounded(np.polyfit(x, y, degree)), "signal": signal}
    found = _summed(facts, branches, "embedded", teacache.branch, content)
    return content | {"steps": facts.steps, "thresholds": found}


def _summed(
    facts: Row,
    branches: Sequence[Recorded],
    name: str,
    branch: Callable[..., Any],
    table: Mapping[str, Any],
) -> list[list[float]]:
    """Thresholds of a strategy that sums up the changes of this name."""

    def counts(threshold: float) -> Iterator[int]:
        for recorded in branches:
            made: Summing = branch(replace(facts, params={"threshold": threshold}), table)
            changes = [None, *getattr(recorded, name)]
            yield sum(made.decides(at, change) for at, change in enumerate(changes))

    return _thresholds(facts.steps, lambda threshold: float(np.mean([*counts(threshold)])))


def _first_block(facts: Row, branches: Sequence[Recorded]) -> dict[str, Any]:
    def computed(threshold: float, changes: list[list[float]]) -> int:
        made = first_block.branch(replace(facts, params={"threshold": threshold}), None)
        last, count = 0, 0
        for at in range(facts.steps):
            if made.computes(_Look(at, changes[at][last] if at else 0.0)):
                last, count = at, count + 1
        return count

    found = _thresholds(
        facts.steps,
        lambda threshold: float(np.mean([computed(threshold, b.apart) for b in branches])),
    )
    return {"steps": facts.steps, "thresholds": found}


def _thresholds(steps: int, count: Callable[[float], float]) -> list[list[float]]:
    """For each ratio the smallest threshold, as near as halving finds it, that computes no more
    steps than the ratio allows, on average; or the fewest that any does."""
    found, fewest = list[float](), count(HIGHEST)
    for ratio in RATIOS:
        low, high, most = 0.0, HIGHEST, max(fewest, computed_count(steps, ratio))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            enough = count(middle) <= most
            low, high = (low, middle) if enough else (middle, high)
        found.append(high)
    return [list(pair) for pair in zip(RATIOS, rounded(accumulate(found, max)), strict=True)]
