"""How many bytes of weights are on the device."""

from __future__ import annotations

from batchgen.families.family import Stage


class Gauge:
    """Counts what is said to it."""

    def __init__(self) -> None:
        self.inside = 0  # bytes now
        self.streamed = 0  # bytes of blocks that were copied to the device
        self.peaks: dict[Stage, int] = {}  # most bytes at once, of each stage that has begun
        self._stage: Stage | None = None

    def begin(self, stage: Stage) -> None:
        """Peaks are those of this stage from now on."""
        self._stage = stage
        self.add(0)

    def add(self, size: int) -> None:
        """Bytes that came to the device; negative: that left it."""
        self.inside += size
        if self._stage is not None:
            self.peaks[self._stage] = max(self.inside, self.peaks.get(self._stage, 0))

    @property
    def peak(self) -> int:
        """Most bytes at once, of all stages."""
        return max([self.inside, *self.peaks.values()])
