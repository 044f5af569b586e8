"""Measures what strategies that leave out blocks are set by, on rows that are drawn uncached.

How large what all blocks add is from step to step (magcache); by which polynomial the output
changes with a signal (teacache); and for each ratio the threshold that saves it (teacache,
seacache, first_block), found by letting the strategy decide on the changes that were recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchgen.caches.blocks import PROBE, STACK
from batchgen.caches.residual import Summing, relative_change
from batchgen.caches.settings import Given, resolve
from batchgen.caches.strategies import first_block, seacache, teacache
from batchgen.caches.strategy import Row, SignalKind, computed_count
from batchgen.caches.tables import Entry, Key
from batchgen.engine.lockstep import Lockstep
from batchgen.engine.replica import Replica
from batchgen.families.family import Item
from batchgen.numerics.solver import History, step
from batchgen.request import Request

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
DEGREE = 4  # of the polynomial, as published
DIGITS = 9
HALVINGS = 40  # of the interval in which a threshold lies
HIGHEST = 100.0  # threshold


@dataclass(slots=True, eq=False)
class Recorded:
    """One branch of one row, drawn uncached. Changes are relative, from the step before."""

    ratios: list[float] = field(default_factory=list)  # of what all blocks add, but at the first
    output: list[float] = field(default_factory=list)
    embedded: list[float] = field(default_factory=list)  # of teacache's signal
    filtered: list[float] = field(default_factory=list)  # of seacache's
    first: list[Tensor] = field(default_factory=list)  # what the first block adds, on the host
    last: dict[str, Tensor] = field(default_factory=dict)  # at the step before

    def change(self, name: str, new: Tensor) -> float | None:
        """Of a tensor since the step before; it is kept for the next one."""
        old, self.last[name] = self.last.get(name), new
        return None if old is None else relative_change(new, old)


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
    *,
    model: str,
    signal: SignalKind = "projected",
    for_steps: bool = True,
    moved: Callable[[], object] = lambda: None,
) -> tuple[Entry, ...]:
    """A table of each strategy that is set by numbers of the model, from rows that share solver,
    shift, steps and number of branches. `model` is the tables' name for it; `signal`: what teacache
    looks at; `for_steps`: they serve rows of this many steps alone. `moved` is told of every
    step."""
    with torch.no_grad():
        rows = Lockstep(replica, requests, guided=False)
        facts = {name: _facts(rows, name) for name in ("teacache", "seacache", "first_block")}
        drawn = [_record(rows, row, facts["seacache"], signal, moved) for row in range(len(rows))]
    branches = [branch for row in drawn for branch in row]
    filtered = _summed(facts["seacache"], branches, "filtered", seacache.branch, {})
    contents = {
        "magcache": {"ratios": [_means(each) for each in zip(*drawn, strict=True)]},
        "teacache": _teacache(facts["teacache"], branches, signal),
        "seacache": {"thresholds": filtered},
        "first_block": {"thresholds": _first_block(facts["first_block"], branches)},
    }
    steps = len(rows.schedule) if for_steps else None
    return tuple(
        Entry(key=Key(strategy=name, model=model, num_steps=steps), content=content)
        for name, content in contents.items()
    )


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
    )


# ------------------------------------------------------------------------------------------- record
def _record(
    rows: Lockstep, row: int, facts: Row, signal: SignalKind, moved: Callable[[], object]
) -> list[Recorded]:
    """Each branch of one row."""
    x, history = rows.noise(row), History()
    found = [Recorded() for _ in rows.rows[row].conditions]
    for number, coefs in enumerate(rows.schedule.coefs):
        items = rows.items(row, x, number)
        velocities, kept = rows.replica.stacks.forward(rows.family, items, STACK, ())
        _, probed = rows.replica.stacks.forward(rows.family, items, PROBE, ())
        for place, branch in enumerate(found):
            first, added = probed[place].added, kept[place].added
            assert first is not None and added is not None
            branch.first.append(first.cpu())
            look = _Look(number, item=items[place], replica=rows.replica)
            _note(branch, look, facts, signal, added, velocities[place])
        guided = rows.combine(row, number, velocities)
        after, history = step(coefs, x.float(), guided, history)
        x = after.to(x.dtype)
        moved()
    return found


def _note(
    branch: Recorded,
    look: _Look,
    facts: Row,
    signal: SignalKind,
    added: Tensor,
    velocity: Tensor,
) -> None:
    before = branch.last.get("added")
    if before is not None:  # of each token, as published
        sizes = added.float().norm(dim=-1) / before.float().norm(dim=-1)
        branch.ratios.append(float(sizes.mean()))
    branch.last["added"] = added
    filtered = seacache.Filtered(facts, 0.0).signal(look)
    for name, changes, new in (
        ("output", branch.output, velocity.float()),
        ("embedded", branch.embedded, look.signal(signal).float()),
        ("filtered", branch.filtered, filtered),
    ):
        change = branch.change(name, new)
        if change is not None:
            changes.append(change)


# ------------------------------------------------------------------------------------------ measure
def _means(branches: Sequence[Recorded]) -> list[float]:
    """Ratios of one branch over the rows."""
    return _rounded(np.mean([branch.ratios for branch in branches], axis=0))


def _teacache(facts: Row, branches: Sequence[Recorded], signal: SignalKind) -> dict[str, Any]:
    """The polynomial from the signal's changes to the output's, and thresholds of its sums."""
    x = np.concatenate([branch.embedded for branch in branches])
    y = np.concatenate([branch.output for branch in branches])
    degree = min(DEGREE, len(np.unique(x)) - 1)
    content: dict[str, Any] = {"polynomial": _rounded(np.polyfit(x, y, degree)), "signal": signal}
    found = _summed(facts, branches, "embedded", teacache.branch, content)
    return content | {"thresholds": found}


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


def _first_block(facts: Row, branches: Sequence[Recorded]) -> list[list[float]]:
    apart = [
        [[relative_change(new, old) for old in branch.first[:at]] for at, new in enumerate(firsts)]
        for branch in branches
        if (firsts := branch.first)
    ]

    def computed(threshold: float, changes: list[list[float]]) -> int:
        made = first_block.branch(replace(facts, params={"threshold": threshold}), None)
        last, count = 0, 0
        for at in range(facts.steps):
            if made.computes(_Look(at, changes[at][last] if at else 0.0)):
                last, count = at, count + 1
        return count

    return _thresholds(
        facts.steps, lambda threshold: float(np.mean([computed(threshold, c) for c in apart]))
    )


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
    return [list(pair) for pair in zip(RATIOS, _rounded(accumulate(found, max)), strict=True)]


def _rounded(values: Any) -> list[float]:
    return [float(f"{float(value):.{DIGITS}g}") for value in values]
