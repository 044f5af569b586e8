"""Catalogs of finished and running jobs as pandas frames.

from batchgen import catalog

frame = catalog.open_runs("outputs/demo-20260101-120000-abcdef")
catalog.throughput_by_bucket(frame)
"""

from __future__ import annotations

from batchgen.catalog.frames import (
    failures,
    open_media,
    open_runs,
    snapshot,
    stage_shares,
    throughput_by_bucket,
    waste,
)

__all__ = [
    "failures",
    "open_media",
    "open_runs",
    "snapshot",
    "stage_shares",
    "throughput_by_bucket",
    "waste",
]
