"""What is kept of each block of rows: one line of `samples.jsonl`, so that a run which was cut off
goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from batchgen.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Sample:
    """One row, compared with itself drawn without a cache."""

    row: int
    psnr: float  # dB, of decoded uint8 frames
    ssim: float
    score: float | None  # the judge's, in [0, 1]
    computed: float  # transformer evaluations over both branches
    total: int
    equal: bool  # to the bit


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of rows that were drawn together, and how many evaluations they computed."""

    in_flight: int
    denoise: float  # wall seconds of the steps
    wall: float  # of everything, decoding included
    thread: float  # CPU seconds of the drawing thread: moved less by what else runs
    steps: float


@dataclass(frozen=True, slots=True)
class Pair:
    """Rows under a policy, and the same rows without a cache shortly before."""

    plain: Speed
    cached: Speed


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows under one policy and ratio."""

    policy: str
    ratio: float
    block: int
    threshold: float | None  # of an adaptive policy
    alone: Pair  # of the first row, by itself
    packed: Pair  # of all of them
    same_alone: bool  # whether the first row's frames are then the same
    samples: tuple[Sample, ...]


class Samples:
    """The file: a first line that says what was asked for, then a line a block."""

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        """Begins it, or reads what it has; ConfigError where that answers another question."""
        self.path, self.asked = path, dict(asked)
        self.blocks: list[Block] = []
        if path.exists():
            self._read()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.asked) + "\n")

    def _read(self) -> None:
        try:
            first, *lines = map(json.loads, self.path.read_text().splitlines())
            self.blocks = [_block(line) for line in lines]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{self.path}: not samples of this bench ({error})") from error
        if first != self.asked:
            raise ConfigError(
                f"{self.path}: holds measurements of {first}, asked for are {self.asked}; "
                "give another --out"
            )

    def add(self, block: Block) -> None:
        """Keep it."""
        self.blocks.append(block)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(block)) + "\n")

    def of(self, policy: str, ratio: float) -> list[Block]:
        """In the order in which they were drawn."""
        return [b for b in self.blocks if (b.policy, b.ratio) == (policy, ratio)]

    def has(self, policy: str, ratio: float, block: int) -> bool:
        return any(b.block == block for b in self.of(policy, ratio))

    def threshold(self, policy: str, ratio: float) -> float | None:
        """The one that the policy was drawn with, if it was."""
        return next((b.threshold for b in self.of(policy, ratio)), None)


def _block(found: dict[str, Any]) -> Block:
    alone, packed = (_pair(found.pop(name)) for name in ("alone", "packed"))
    samples = tuple(Sample(**each) for each in found.pop("samples"))
    return Block(**found, alone=alone, packed=packed, samples=samples)


def _pair(found: dict[str, Any]) -> Pair:
    return Pair(Speed(**found["plain"]), Speed(**found["cached"]))
