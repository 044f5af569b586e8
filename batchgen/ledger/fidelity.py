"""How far the rows of a run moved from themselves without a cache, as summed up by a collect."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from batchgen.durable import write_bytes_atomic
from batchgen.ledger.events import from_plain
from batchgen.paths import RunPaths


@dataclass(frozen=True, slots=True)
class Spread:
    """One metric over some rows; more is better."""

    mean: float
    p5: float  # how it is at the bad end
    worst: float
    worst_row: str  # row_id

    def __str__(self) -> str:
        return f"mean {self.mean:.4g}, p5 {self.p5:.4g}, worst {self.worst:.4g} ({self.worst_row})"


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The audited rows of one strategy in one bucket."""

    strategy: str
    bucket: str
    rows: int
    psnr: Spread  # dB
    ssim: Spread

    def __str__(self) -> str:
        """A line of a summary."""
        rows = f"{self.rows} row{'s' if self.rows > 1 else ''}"
        return f"{self.strategy} {self.bucket}, {rows}: psnr {self.psnr}; ssim {self.ssim}"


def write_fidelity(run: RunPaths, found: tuple[Fidelity, ...]) -> None:
    """Replace what stands beside the catalog; no file where nothing was audited."""
    if found:
        text = json.dumps([asdict(part) for part in found])
        write_bytes_atomic(run.catalog_fidelity, text.encode())
    else:
        run.catalog_fidelity.unlink(missing_ok=True)


def read_fidelity(run: RunPaths) -> tuple[Fidelity, ...]:
    """By strategy and bucket, as last collected; nothing where the file is not there or damaged."""
    try:
        plain = json.loads(run.catalog_fidelity.read_bytes())
        return tuple(from_plain(Fidelity, part) for part in plain)
    except (OSError, ValueError, TypeError):
        return ()
