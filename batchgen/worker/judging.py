"""Judges at work: what they say of a row that was drawn, and whether it may be published.

They run where media are written, behind the next steps. What a judge raises is recorded and costs
no row.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchgen.config.judges import function_of
from batchgen.config.schema import JudgeConfig
from batchgen.errors import ConfigError
from batchgen.judges import Skipped
from batchgen.records import Metric
from batchgen.request import Request

log = logging.getLogger(__name__)
_LONGEST_NOTE = 500  # characters of one judge's


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all judges say of a row."""

    metrics: tuple[Metric, ...] = ()
    notes: str = ""  # a line of each judge that gave no number or rejects the row
    fails: bool = False
    retries: int | None = None  # seeds after the first that those who reject it still allow


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """One judge, imported."""

    config: JudgeConfig
    function: Callable[..., Any]

    def numbers(self, frames: np.ndarray, request: Request) -> dict[str, float]:
        """Its columns and what it says. Whatever it raises; ValueError for what is no number."""
        frames = frames.view()
        frames.flags.writeable = False  # they are published
        given = self.function(frames, request, **self.config.params)
        if given is None:
            raise Skipped("no number")
        if not isinstance(given, Mapping):
            given = {self.config.columns[0]: given}
        unknown = [name for name in given if name not in self.config.columns]
        if unknown:
            listed = ", ".join(self.config.columns)
            raise ValueError(f"it gives {unknown[0]!r}, which is none of its columns: {listed}")
        numbers = {name: float(value) for name, value in given.items() if value is not None}
        if lost := [name for name, value in numbers.items() if math.isnan(value)]:
            raise ValueError(f"it gives no number for {lost[0]}: nan")
        return numbers

    def objections(self, numbers: Mapping[str, float]) -> list[str]:
        """Bounds that the numbers are outside of; what has no number is inside."""
        low, high = self.config.at_least, self.config.at_most
        return [
            *(f"{n} {v:.6g} < {low[n]:.6g}" for n, v in numbers.items() if v < low.get(n, v)),
            *(f"{n} {v:.6g} > {high[n]:.6g}" for n, v in numbers.items() if v > high.get(n, v)),
        ]


class Judges:
    """All judges of a job."""

    def __init__(self, judges: Sequence[Judge] = ()) -> None:
        self._judges = judges

    @classmethod
    def of(cls, configs: Sequence[JudgeConfig]) -> Judges:
        """Imports them; ConfigError naming the one that is not there."""
        try:
            return cls([Judge(config, function_of(config.call)) for config in configs])
        except ImportError as error:
            raise ConfigError(f"output.judges: {error}") from error

    @property
    def most_retries(self) -> int:
        """Seeds after the first that a row may have."""
        return max((judge.config.retries for judge in self._judges), default=0)

    def __call__(self, frames: np.ndarray, request: Request) -> Verdict:
        """Ask each of them; `frames` as they are published."""
        metrics: list[Metric] = []
        notes: list[str] = []
        fails, retries = False, None
        for judge in self._judges:
            name = judge.config.call
            try:
                numbers = judge.numbers(frames, request)
            except Skipped as reason:
                notes.append(_line(name, f"skipped: {reason}"))
                continue
            except (Exception, SystemExit) as error:  # an opinion must not cost the row or the run
                log.warning("row %s: judge %s", request.row_id, name, exc_info=True)
                notes.append(_line(name, f"failed: {type(error).__name__}: {error}"))
                continue
            metrics += [Metric(column, repr(number)) for column, number in numbers.items()]
            if found := judge.objections(numbers):
                notes.append(_line(name, ", ".join(found)))
                fails |= judge.config.policy == "fail"
                if judge.config.policy == "retry":
                    allowed = judge.config.retries
                    retries = allowed if retries is None else min(retries, allowed)
        return Verdict(tuple(metrics), "\n".join(notes), fails, retries)


def seed_of_retry(seed: int, retry: int) -> int:
    """The seed with which a row of `seed` is drawn for the `retry`-th time (from 1) after its
    first: the first 63 bits of sha256 over both as decimal numbers, each with a zero byte behind
    it."""
    digest = hashlib.sha256(b"%d\0%d\0" % (seed, retry)).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _line(name: str, text: str) -> str:
    line = " ".join(f"{name}: {text}".split())
    return line if len(line) <= _LONGEST_NOTE else f"{line[:_LONGEST_NOTE]} ..."
