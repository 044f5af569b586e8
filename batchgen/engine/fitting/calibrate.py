"""Fits the planned strategy: renders a spread of rows uncached, finds the steps that are worth
computing, and fits the leaps between them.

Rows that agree in guidance are fitted on the velocity of each branch, for that guidance alone; rows
that differ are fitted on the guided velocity, for all guidances between theirs. The fit is closed
loop: each leap is fitted to the states at which the leaps before it arrive, so its rows compute the
chosen steps once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchgen.caches.fitting import (
    REACH,
    Course,
    decibels,
    local_errors,
    search,
    solve,
    weights,
)
from batchgen.caches.strategy import computed_count
from batchgen.caches.tables import RANGES, SCALES, Entry, Key, row_key
from batchgen.engine.fitting.lockstep import Lockstep
from batchgen.engine.replica import Replica
from batchgen.numerics.solver import DEPTH, History, Leap, LeapCoefs, as_leap, leap, step, terms
from batchgen.request import Request

# From latents of rows without a cache, and of the same rows with one, to what a table says of it.
Judge = Callable[[Sequence[Tensor], Sequence[Tensor]], Mapping[str, Any]]
CHUNK = 1 << 16  # numbers of each tensor that are multiplied at once
DIGITS = 9  # as many as float32 has


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What a pilot leaves: a table for every ratio, and its rows' denoised latents, in order and on
    the host, from which their media can be made."""

    entries: tuple[Entry, ...]
    latents: tuple[Tensor, ...]
    recorded_s: float  # seconds of drawing the rows; all else went into the fits
    evaluations: float  # of the fits


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """One row, drawn uncached: the latents at every step and at the end, on the host."""

    states: tuple[Tensor, ...]
    gram: np.ndarray  # mean products of its states and velocities, ordered as in `fitting`


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A schedule with its leaps, and how far rows ended from their uncached selves, squared."""

    steps: tuple[int, ...]
    leaps: tuple[LeapCoefs, ...]
    errors: np.ndarray  # of the rows that it was fitted on
    latents: tuple[Tensor, ...]  # of every row at the end, on the host


def calibrate(
    replica: Replica,
    requests: Sequence[Request],
    ratios: Sequence[float],
    *,
    model: str,
    sized: bool = False,
    audited: int = 0,
    judge: Judge = lambda whole, near: {},
    moved: Callable[[], object] = lambda: None,
) -> Calibration:
    """Draw the rows, which share solver, shift, steps and number of branches, and fit a table for
    each ratio. `model` is the tables' name for it; `sized`: its schedule depends on the size, so
    the rows are of one. The last `audited` rows enter no fit; `judge` is shown their latents at the
    end, without and with each fit, and what it says goes into the table. `moved` is told of every
    step."""
    with torch.no_grad():
        begin = perf_counter()
        rows = Lockstep(replica, requests, guided=mixed(requests))
        recorded = record(rows, moved)
        recorded_s, fitted = perf_counter() - begin, len(recorded) - audited
        course = Course(len(rows.schedule), rows.branches, rows.starts, rows.starts)
        counts = sorted({computed_count(course.steps, ratio) for ratio in ratios})
        counts = [count for count in counts if len(course.must) <= count < course.steps]
        grams = np.stack([row.gram for row in recorded[:fitted]])
        reach = max([REACH, *(3 * course.steps // count for count in counts)])
        errors = local_errors(course, grams, reach)
        ways = [steps for count in counts if (steps := search(course, errors, count))]
        fits = [close_loop(rows, recorded, fitted, steps, moved) for steps in ways]
        whole = _ends(rows, [row.states[-1] for row in recorded])
        told = [judge(whole[fitted:], _ends(rows, fit.latents)[fitted:]) for fit in fits]
    key = key_of(requests, model, sized)
    spent = len(rows) * len(rows.rows[0].conditions) * sum(len(steps) for steps in ways)
    pairs = zip(fits, told, strict=True)
    entries = tuple(_entry(key, course, fit, fitted, more) for fit, more in pairs)
    return Calibration(entries, whole, recorded_s, spent)


def _ends(rows: Lockstep, latents: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of every row, as it is decoded."""
    return tuple(rows.end(number, one) for number, one in enumerate(latents))


def key_of(requests: Sequence[Request], model: str, sized: bool) -> Key:
    """What a fit on these rows serves, but for the number of computed steps."""
    key = row_key(requests[0], "planned", model)
    others = [row_key(request, "planned", model) for request in requests]
    sizes = [float(other.pixels) for other in others if other.pixels is not None]
    key = replace(key, pixels=None)
    if not sized:
        key = replace(key, bucket=None, pixels_range=(min(sizes), max(sizes)))
    if not mixed(requests):
        return key
    seen = {name: [getattr(other, name) for other in others] for name in SCALES}
    differ: dict[str, Any] = {name: None for name, each in seen.items() if len(set(each)) > 1}
    for name, scales in RANGES.items():
        if name == "guidance_range" or differ.keys() & {*scales}:
            values = [value for scale in scales for value in seen[scale]]
            differ[name] = min(values), max(values)
    return replace(key, **differ)


def mixed(requests: Sequence[Request]) -> bool:
    """Whether rows differ in guidance."""
    keys = [row_key(request, "", "") for request in requests]
    return len({tuple(getattr(key, name) for name in SCALES) for key in keys}) > 1


# ------------------------------------------------------------------------------------------- record
def record(rows: Lockstep, moved: Callable[[], object]) -> list[Recorded]:
    """Every row uncached, as many at once as share a forward: only their latents are kept."""
    return [
        row
        for first in range(0, len(rows), rows.together)
        for row in _record(rows, range(len(rows))[first : first + rows.together], moved)
    ]


def _record(rows: Lockstep, some: Sequence[int], moved: Callable[[], object]) -> list[Recorded]:
    xs = [rows.noise(row) for row in some]
    histories = [History() for _ in some]
    draws = [rows.draw(row, x) for row, x in zip(some, xs, strict=True)]
    states: list[list[Tensor]] = [[x.cpu()] for x in xs]
    answers: list[list[tuple[Tensor, ...]]] = [[] for _ in some]
    for number, coefs in enumerate(rows.schedule.coefs):
        velocities = rows.velocities(some, xs, number)
        for place, branches in enumerate(velocities):
            guided = rows.combine(some[place], number, branches)
            history, draw = histories[place], draws[place]
            after, histories[place] = step(coefs, xs[place].float(), guided, history, draw)
            xs[place] = after.to(xs[place].dtype)
            states[place].append(xs[place].cpu())
            kept = rows.fitted(some[place], number, branches)
            answers[place].append(tuple(velocity.float().cpu() for velocity in kept))
        moved()
    return [
        Recorded(tuple(path), products([*path, *(v for b in zip(*given, strict=True) for v in b)]))
        for path, given in zip(states, answers, strict=True)
    ]


def products(tensors: Sequence[Tensor]) -> np.ndarray:
    """Mean products of any two, in float64; a part of each tensor at a time."""
    flat = [tensor.flatten() for tensor in tensors]
    size = flat[0].numel()
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=flat[0].device)
    for first in range(0, size, CHUNK):
        part = torch.stack([tensor[first : first + CHUNK] for tensor in flat]).double()
        total += part @ part.T
    found: np.ndarray = (total / size).cpu().numpy()
    return found


# ---------------------------------------------------------------------------------------------- fit
def close_loop(
    rows: Lockstep,
    recorded: Sequence[Recorded],
    fitted: int,
    steps: tuple[int, ...],
    moved: Callable[[], object],
) -> Fit:
    """Fit leap after leap, each on the first `fitted` rows as the leaps before it left them; the
    others come along."""
    flown = [_Flown(rows.noise(row)) for row in range(len(rows))]
    leaps: list[LeapCoefs] = []
    depth = 0
    for number, onward in zip(steps, [*steps[1:], len(rows.schedule)], strict=True):
        depth = 1 if number in rows.starts else min(depth + 1, DEPTH)
        answers = rows.velocities(range(len(rows)), [row.x for row in flown], number)
        for place, row in enumerate(flown):
            row.answer = rows.fitted(place, number, answers[place])
            row.target = recorded[place].states[onward].to(row.x.device).float()
        grams = np.stack([row.products(depth) for row in flown[:fitted]])
        off = np.array([row.error for row in flown[:fitted]])
        leaps.append(_coefs(grams, weights(off), depth))
        made = as_leap(leaps[-1])
        for row in flown:
            row.move(made)
        moved()
    off = np.array([row.error for row in flown[:fitted]])
    return Fit(steps, tuple(leaps), off, tuple(row.x.cpu() for row in flown))


@dataclass(slots=True, eq=False)
class _Flown:
    """A row on its way through the leaps that are fitted."""

    x: Tensor
    history: History = field(default_factory=History)
    answer: tuple[Tensor, ...] = ()
    target: Tensor = field(default_factory=lambda: torch.zeros(()))
    error: float = 0.0  # mean square, at the step it has come to

    def products(self, depth: int) -> np.ndarray:
        """Of what the next leap is a sum of, and last of its target."""
        return products([*terms(depth, self.x.float(), self.answer, self.history), self.target])

    def move(self, coefs: Leap) -> None:
        after, self.history = leap(coefs, self.x.float(), self.answer, self.history)
        self.error = float((after - self.target).double().square().mean())
        self.x = after.to(self.x.dtype)


def _coefs(grams: np.ndarray, rows: np.ndarray, depth: int) -> LeapCoefs:
    """Least squares over the rows; the last of each row's tensors is the target."""
    gram = np.tensordot(rows / len(rows), grams, 1)
    found = rounded(solve(gram[:-1, :-1], gram[:-1, -1]))
    ages = np.array(found[depth:]).reshape(depth, -1)
    return tuple(found[:depth]), tuple(tuple(age) for age in ages.tolist())


def rounded(values: Iterable[Any]) -> list[float]:
    """As tables have them."""
    return [float(f"{float(value):.{DIGITS}g}") for value in values]


def _entry(key: Key, course: Course, fit: Fit, rows: int, more: Mapping[str, Any]) -> Entry:
    near = decibels(fit.errors)
    content: dict[str, Any] = {
        "branches": course.branches,
        "starts": list(course.starts),
        "steps": list(fit.steps),
        "leaps": fit.leaps,
        "rows": rows,
        "latents_db": [round(float(np.mean(near)), 1), round(min(near), 1)],  # mean and worst row
        **more,
    }
    return Entry(key=replace(key, computed=len(fit.steps)), content=content)
