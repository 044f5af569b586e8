"""What a section of the bench says, and how it takes times."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

import torch

from batchgen.bench._figures import ROUNDS, Figure

SHORT_S = 0.02  # shorter work is done several times in a row


class NotHere(Exception):
    """A section that this device has nothing to say of, and why."""


@dataclass(slots=True)
class Kit:
    """What all sections share."""

    device: torch.device
    tiny: bool  # dimensions that a CPU can draw
    matmul_tflops: float = 0.0  # measured first
    h2d_gbs: float = 0.0
    raw: dict[str, list[float]] = field(default_factory=dict)  # seconds, by what was timed

    def needs_cuda(self) -> None:
        """Raises NotHere on a CPU."""
        if self.device.type != "cuda":
            raise NotHere("needs CUDA")

    def share_of_matmul(self, flops: float, seconds: float) -> float:
        """Percent of the rate of a large product, measured in the same process."""
        return 100 * flops / seconds / 1e12 / self.matmul_tflops

    def seconds(self, works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """The median of each over rounds that take turns, after one that is not counted."""
        taken: dict[str, list[float]] = {name: [] for name in works}
        times = {name: self._times(work) for name, work in works.items()}
        for _ in range(1 if self.tiny else ROUNDS):
            for name, work in works.items():
                taken[name].append(self._once(work, times[name]))
        self.raw |= taken
        return {name: median(each) for name, each in taken.items()}

    def _times(self, work: Callable[[], object]) -> int:
        """How often in a row, so that a clock can tell; it has run twice then."""
        self._once(work, 1)  # may compile, tune, allocate
        short = 0.0 if self.tiny else SHORT_S
        return max(1, min(20, int(short / self._once(work, 1))))

    def _once(self, work: Callable[[], object], times: int) -> float:
        self.wait()
        begin = perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return (perf_counter() - begin) / times

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def forget(self) -> None:
        """Between two sections: what one held is the next one's."""
        if self.device.type == "cuda":
            gc.collect()  # an engine is a circle
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


Section = Callable[[Kit], Iterator[Figure]]
