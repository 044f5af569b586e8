"""Judges that compare a row with the row of the same id in another run, the reference.

Frames whose digest is the reference's are equal, whatever the file format. Others are compared with
the frames that the reference's file holds: in a format with losses (mp4, gif, jpeg, webp below
quality 10) these losses count as differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from batchgen.judges.skipped import Skipped
from batchgen.ledger.upkeep.pieces import parts_of, pieces
from batchgen.media import formats
from batchgen.media.publish import digest_frames
from batchgen.media.quality import exact_psnr, ssim
from batchgen.paths import RunPaths, at_home
from batchgen.planfile import reading
from batchgen.request import Request

_COLUMNS = ("row_id", "status", "media_path", "frames_sha256")
_PIECE_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class AgainstReference:
    """A judge with the parameter `run`: the folder of the reference, which has a catalog."""

    measure: Callable[[np.ndarray, np.ndarray], float]
    equal: float  # what `measure` gives for equal clips

    def __call__(self, frames: np.ndarray, request: Request, *, run: str) -> float:
        """`frames` are uint8 (frames, height, width, 3). Skipped where the reference has no such
        row, or one of another shape."""
        row = _row(run, request.row_id)
        if row["frames_sha256"] == digest_frames(frames):
            return self.equal
        file = Path(run, row["media_path"])
        reference = _frames(file)
        if reference.shape != frames.shape:
            raise Skipped(f"{file} has frames of {reference.shape}, the row of {frames.shape}")
        return self.measure(frames, reference)

    def resolve(self, *, run: str) -> dict[str, Any]:
        """The folder as an absolute path. ValueError if it has no catalog."""
        folder = at_home(run).absolute()
        if not folder.is_dir():
            raise ValueError(f"run: {folder} is not a folder; it takes the path of a run's")
        if not parts_of(RunPaths(folder).catalog_rows):
            raise ValueError(f"run: {folder} has no catalog; make it: batchgen collect {run}")
        return {"run": str(folder)}


reference_psnr = AgainstReference(exact_psnr, math.inf)  # dB
reference_ssim = AgainstReference(ssim, 1.0)


def _row(run: str, row_id: str) -> dict[str, Any]:
    rows = _catalog(run)
    at = pc.index(rows["row_id"], pa.scalar(row_id, rows["row_id"].type)).as_py()
    if at < 0:
        raise Skipped(f"{run} has no finished row {row_id!r}")
    found: dict[str, Any] = rows.slice(at, 1).to_pylist()[0]
    return found


@lru_cache(maxsize=4)
def _catalog(run: str) -> pa.Table:
    """The ok rows of the reference, as they were when they were first asked for."""
    parts = parts_of(RunPaths(Path(run)).catalog_rows)
    with reading(RunPaths(Path(run)).catalog_rows, "catalog"):
        ok = [
            table.filter(pc.equal(table["status"], "ok"))
            for table in pieces(parts, _PIECE_ROWS, _COLUMNS)
        ]
    return pa.concat_tables(ok).combine_chunks()


@lru_cache(maxsize=1)
def _frames(file: Path) -> np.ndarray:
    """Decoded once where several judges ask."""
    return formats.by_extension(file.suffix).read(file)
