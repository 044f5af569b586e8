"""Catalogs as pandas frames: one or many runs, and a few summaries."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from batchgen.catalog.collect import snapshot_table
from batchgen.catalog.source import are_together
from batchgen.errors import RunStateError
from batchgen.ledger.upkeep.extent import EXTENT_KEY, Extent
from batchgen.ledger.upkeep.pieces import parts_of
from batchgen.media.stored import MediaPlace
from batchgen.paths import RunPaths, at_home
from batchgen.records import ranks_named

if TYPE_CHECKING:  # whoever imports its room (a steward, a collect) needs no pandas
    import pandas as pd

STAGES = ("encode_s", "denoise_s", "decode_s", "d2h_s", "write_s", "judge_s")
_TRIES = 20


def open_runs(*runs: str | Path) -> pd.DataFrame:
    """The catalogs of one or many run folders in one frame, with a column `run` (the folder's
    name). If the ledger of a run holds more than its catalog, `snapshot` is used. RunStateError if
    a folder is no run."""
    import pandas as pd

    if not runs:
        raise RunStateError("open_runs needs at least one run folder")
    frames = []
    for folder in map(at_home, runs):
        frame: pd.DataFrame = current_catalog(RunPaths(folder)).to_pandas()
        frame.insert(0, "run", folder.resolve().name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]


def snapshot(run: str | Path) -> pd.DataFrame:
    """What the catalog would say now, also of a run in progress, made from plan and journals.
    RunStateError if there is no plan."""
    frame: pd.DataFrame = snapshot_table(RunPaths(at_home(run))).to_pandas()
    return frame


def open_media(run: str | Path, row: Mapping[str, Any]) -> BinaryIO:
    """The media of a row of a run's frame, as an open file: also of one that is in a tar.

    `row`: a row of `open_runs(run)` or `snapshot(run)`, as `frame.loc[i]` or `to_dict("records")`
    give it. RunStateError if it has no media, or if they are a folder (format `frames`); ValueError
    if a member of a tar is not what was published."""
    if row["status"] != "ok":
        raise RunStateError(f"row {row['row_id']!r} is {row['status']}: it has no media")
    root, place = at_home(run), MediaPlace.of_row(row)
    if place.is_member:
        return io.BytesIO(place.read(root))
    if (root / place.path).is_dir():
        raise RunStateError(f"row {row['row_id']!r}: {root / place.path} is a folder of frames")
    return (root / place.path).open("rb")


def throughput_by_bucket(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows, device seconds, rows per hour and frames per second by width, height, num_frames and
    num_steps.

    `device_s` adds up the shares of encoding, denoising and decoding of rendered rows, times the
    ranks that drew the row together, and the rates are per device second. A whole run may be
    slower, since loading, waiting and lost work are left out, or faster, since decoding runs behind
    the steps of other rows.
    """
    own = _rendered(frame)
    seconds = own[["encode_s", "denoise_s", "decode_s"]].sum(axis=1)
    own = own.assign(device_s=seconds * own["layout"].map(ranks_named).astype(int))
    keys = ["width", "height", "num_frames", "num_steps"]
    out = own.groupby(keys).agg(rows=("row_id", "size"), device_s=("device_s", "sum")).reset_index()
    out["rows_per_device_hour"] = out["rows"] / out["device_s"] * 3600
    out["frames_per_device_s"] = out["rows"] * out["num_frames"] / out["device_s"]
    return out


def waste(run: str | Path) -> pd.Series:
    """Busy seconds of a run (replica seconds) that gave no result.

    `lost` went to rows cut off by a death or a drain; `retried` to failures and to rows that were
    rendered twice or too late; `fenced` is the part of `retried` spent by attempts that had been
    fenced off; `total` = lost + retried; `share` = total over all busy seconds (0 if there are
    none). Read from `catalog/runs.parquet`; RunStateError if the run was not collected yet.
    """
    import pandas as pd

    path = RunPaths(at_home(run)).catalog_runs
    if not path.is_file():
        raise RunStateError(f"{path} is not there; run `batchgen collect {run}` first")
    columns = ["lost_s", "retried_s", "fenced_s", "busy_s"]
    lost, retried, fenced, busy = pq.read_table(path, columns=columns).to_pandas().sum()
    total = lost + retried
    return pd.Series(
        {
            "lost": lost,
            "retried": retried,
            "fenced": fenced,
            "total": total,
            "share": total / busy if busy > 0 else 0.0,
        }
    )


def failures(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows that failed or were quarantined, with their errors, the most frequent error first."""
    bad = frame[frame["status"].isin(["failed", "quarantined"])]
    count = bad.groupby("error_type")["row_id"].transform("size")
    columns = [c for c in ("run", "row_id", "status", "attempt", "host") if c in bad.columns]
    bad = bad.assign(same_error=count)
    bad = bad.sort_values(["same_error", "error_type", "row_index"], ascending=[False, True, True])
    return bad[[*columns, "error_type", "error", "same_error"]].reset_index(drop=True)


def stage_shares(frame: pd.DataFrame) -> pd.Series:
    """Share of each stage in the seconds of all rendered rows; they add up to 1 (or are 0 if there
    are no rows). Device-to-host copies, writing and judging run behind the device's work."""
    stages = [stage for stage in STAGES if stage in frame]  # older catalogs have no judge_s
    seconds = _rendered(frame)[stages].sum()
    total = float(seconds.sum())
    return seconds / total if total > 0 else seconds


def _rendered(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame["status"] == "ok") & (frame["alias_of"].fillna("") == "")]


def current_catalog(run: RunPaths) -> pa.Table:
    """All parts of one collect; reads again if another collect is published in between."""
    folder = run.catalog_rows
    for _ in range(_TRIES):
        parts = parts_of(folder)
        if not parts or Extent.of(run).exceeds(_extent_of(parts[0])):
            return snapshot_table(run)
        tables = [pq.read_table(part) for part in parts]
        if are_together([table.schema.metadata for table in tables]):
            return pa.concat_tables([t.replace_schema_metadata() for t in tables])
        time.sleep(0.05)
    raise RunStateError(f"{folder}: parts of different collects; run `batchgen collect` again")


def _extent_of(part: Path) -> Extent:
    return Extent.parse(pq.read_schema(part).metadata.get(EXTENT_KEY))
