"""What is compared: the same rows, from text to MP4 files, each way."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

from batchgen.bench.rate.serial import draw_serially, load_pipeline, max_tokens
from batchgen.config.schema import BatchConfig, SystemConfig
from batchgen.engine.contract import Snapshot
from batchgen.engine.encoding.prompts import PromptBook
from batchgen.engine.engine import Engine
from batchgen.media.formats import mp4
from batchgen.records import Rendered, RowStats
from batchgen.request import Request
from batchgen.tiny.calibration import preset

ONE = BatchConfig(token_budget=1, max_rows_in_flight=1, window=1)


@dataclass(slots=True)
class Timed:
    """Works that say how many seconds they took; those of CPUs are kept beside."""

    raw: dict[str, list[float]]

    def seconds(self, name: str, work: Callable[[], object]) -> float:
        """Wall seconds of the work."""
        wall, cpu = perf_counter(), _cpu_seconds()
        work()
        taken = perf_counter() - wall
        self.raw.setdefault(f"{name}, CPU", []).append(_cpu_seconds() - cpu)
        return taken


def _cpu_seconds() -> float:
    """Of this process with all threads, and of its children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return process_time() + ended.ru_utime + ended.ru_stime


@dataclass(slots=True, eq=False)
class Files:
    """A source of rows and a sink that writes what comes of them."""

    left: list[Request]
    out: Path
    frames: dict[str, np.ndarray] = field(default_factory=dict)

    def take(self, room: int) -> list[Request]:
        taken, self.left = self.left[:room], self.left[room:]
        return taken

    def restore(self, request: Request) -> Snapshot | None:
        return None

    def started(self, request: Request) -> None:
        """Nobody waits for it."""

    def finished(self, rendered: Rendered) -> None:
        row = rendered.request
        self.frames[row.row_id] = rendered.frames
        path = self.out / f"{row.row_id}.mp4"
        mp4.write(rendered.frames, path, fps=row.fps, quality=row.quality)

    def failed(self, request: Request, error: Exception, stats: RowStats) -> None:
        raise error

    def saved(self, request: Request, snapshot: Snapshot) -> None:
        """A render that nothing stops saves nothing."""


def chosen() -> Engine:
    """The engine with all its own choices."""
    return Engine.load(preset(), SystemConfig(), "cpu")


def one_at_a_time() -> Engine:
    """The same engine with one row in flight, and all else as it chooses."""
    return Engine.load(preset(), SystemConfig(batch=ONE), "cpu")


def loop() -> Engine:
    """The published shape: one prompt after the other, nothing kept, nothing overlapped."""
    made = Engine.load(preset(), SystemConfig(batch=ONE), "cpu", overlap=False)
    book = PromptBook(made.family, "truncate", keep_bytes=0)
    return Engine(replace(made.replica, prompts=book))


def drawing(
    load: Callable[[], Engine], rows: Sequence[Request], out: Path, timed: Timed, name: str
) -> Callable[[], float]:
    """A work: every round has a new engine, which has seen no text and no size; loading it is not
    timed."""

    def work() -> float:
        engine, files = load(), Files(list(rows), out)
        return timed.seconds(name, lambda: engine.render(files, files))

    return work


def piping(rows: Sequence[Request], out: Path, timed: Timed, name: str) -> Callable[[], float]:
    """A work: diffusers' pipeline, loaded once."""
    pipeline, tokens = load_pipeline(preset()), max_tokens(preset())
    return lambda: timed.seconds(name, lambda: draw_serially(pipeline, rows, tokens, out))


def process(arguments: Sequence[str], cpus: int, timed: Timed, name: str) -> Callable[[], float]:
    """A work: a command of this Python, as a process of its own; what it says is said on error."""

    def call() -> None:
        subprocess.run(
            [sys.executable, "-m", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": str(cpus)},
            check=True,
            stdout=subprocess.DEVNULL,
        )

    return lambda: timed.seconds(name, call)


def frames_of(engine: Engine, row: Request, out: Path) -> np.ndarray:
    """One row as the engine draws it."""
    files = Files([row], out)
    engine.render(files, files)
    return files.frames[row.row_id]


def pipeline_frames(row: Request) -> np.ndarray:
    """And as the pipeline does."""
    from batchgen.bench.rate.serial import draw_one

    pipeline: Any = load_pipeline(preset())
    return draw_one(pipeline, row, max_tokens(preset()))
