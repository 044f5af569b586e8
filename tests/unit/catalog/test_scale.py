"""Resume scan, collect and verify over many rows: quick, and in memory that hardly grows with
them."""

from __future__ import annotations

import gc
import hashlib
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_folder import STAGES, make_request, render

import batchgen.catalog.verify as checks
from batchgen.catalog import parts
from batchgen.catalog.collect import collect
from batchgen.durable import write_json
from batchgen.ledger.events import AttemptHeader, Start, encode_line
from batchgen.ledger.reading import bands
from batchgen.ledger.submissions import SubmissionInfo, SubmissionRows, begin_submission
from batchgen.media.formats import png
from batchgen.paths import RunPaths
from batchgen.records import Attempt, Commit, Media, RowStats
from batchgen.regular import digest_regular
from batchgen.runfile import RunFile

MEASURE = """
import json, re, sys, time
from pathlib import Path
from batchgen.catalog.collect import collect
from batchgen.ledger.reading.left import missing_rows
from batchgen.paths import RunPaths
run = RunPaths(Path(sys.argv[1]))
clock = time.process_time()
left = len(missing_rows(run).all)
scan_s, clock = time.process_time() - clock, time.process_time()
ok = collect(run).ok
collect_s = time.process_time() - clock
# not `ru_maxrss`, which begins with the memory of whoever started this process
status = Path("/proc/self/status").read_text()
mib = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 2**10
print(json.dumps({"ok": ok, "left": left, "scan": scan_s, "collect": collect_s, "mib": mib}))
"""


def make_run(root: Path, rows: int, shards: int, picture: bytes = b"") -> RunPaths:
    """A finished run: a plan and one journal a shard. With a `picture`, which is that of all rows,
    there are media too, a hundred in each folder."""
    run = RunPaths(root)
    root.mkdir()
    first = make_request(0)
    keys = [f"{row:064x}" for row in range(rows)]
    ids = [f"row{row:08d}" for row in range(rows)]
    columns = {f.name: [getattr(first, f.name)] * rows for f in fields(first)}
    columns |= {"row_index": list(range(rows)), "row_id": ids, "row_key": keys}
    table = pa.table(columns).append_column("alias_of", pa.nulls(rows, pa.string()))
    pq.write_table(table, run.plan, row_group_size=8192)
    header = RunFile(
        name="big",
        tag="",
        created=0.0,
        rows=rows,
        unique_rows=rows,
        plan_id="p",
        plan_sha256=digest_regular(run.plan)[0],
        plan_bytes=run.plan.stat().st_size,
        manifest="m",
        manifest_digest="d",
        key_context={},
        config={},
        overrides=[],
    )
    write_json(run.run_json, header.to_json())
    index = np.arange(rows)
    begin_submission(run, SubmissionRows(index, index % shards, index), SubmissionInfo())
    stats = RowStats(stages=STAGES, steps_total=100, steps_computed=100.0, device="gpu")
    for shard in range(shards):
        attempt = Attempt(1, shard, 0, 0)
        path = run.journal(attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(encode_line(AttemptHeader(attempt=attempt)))
            for row in range(shard, rows, shards):
                media = Media(f"media/{ids[row]}-{attempt.tag}.mp4", keys[row], 9, keys[row], 81)
                if picture:
                    media = publish(
                        run, f"media/{row // 100}/{ids[row]}-{attempt.tag}.png", picture
                    )
                file.write(encode_line(Start(row, ids[row], 1.0)))
                place = (attempt.tag, shard, "n", 1.0, 2.0, 1)
                commit = Commit(row, ids[row], keys[row], "ok", *place, media, stats)
                file.write(encode_line(commit))
    return run


def publish(run: RunPaths, path: str, picture: bytes) -> Media:
    """A file of one frame."""
    digest = hashlib.sha256(picture).hexdigest()
    (run.root / path).parent.mkdir(parents=True, exist_ok=True)
    (run.root / path).write_bytes(picture)
    return Media(path, digest, len(picture), digest, 1)


def measure(run: RunPaths) -> dict[str, float]:
    command = [sys.executable, "-c", MEASURE, str(run.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_many_rows_are_scanned_and_collected_in_linear_time_and_flat_memory(tmp_path: Path) -> None:
    """Processor seconds, since the machine may be busy; 1.1 kB of journal a row. How many seconds:
    `batchgen bench scale`."""
    began = time.monotonic()
    small, large = (measure(make_run(tmp_path / str(n), n, 16)) for n in (140_000, 400_000))
    print(f"140k {small} 400k {large} in {time.monotonic() - began:.0f} s")
    assert (large["ok"], large["left"]) == (400_000, 0)
    for step in ("scan", "collect"):
        assert large[step] < 1.6 * small[step] * 400 / 140, step
    assert large["mib"] - small["mib"] < 200, "260k rows more are 290 MB of journals"


def picture_in(folder: Path) -> bytes:
    """A PNG."""
    path = folder / "one.png"
    png.write(render(make_request(0)).frames, path, fps=1.0, quality=8)
    return path.read_bytes()


def peak_of(work: Callable[[], object]) -> int:
    """Bytes of Python and numpy at the peak."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def peak_of_verify(run: RunPaths, rows: int) -> int:
    def work() -> None:
        report = checks.verify(run)
        assert (report.findings, report.files) == ((), rows)

    return peak_of(work)


def peak_of_collect(run: RunPaths, rows: int) -> int:
    def work() -> None:
        assert collect(run).ok == rows

    return peak_of(work)


def test_verify_keeps_numbers_of_rows_and_media_but_no_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger knows some 50 bytes of a line, and 16 are those of a path; as objects
    both take 2,800. Rows are read in groups of a hundred, as are journals and folders."""
    monkeypatch.setattr(checks, "GROUP_ROWS", 100)
    picture = picture_in(tmp_path)
    sizes = 400, 2000
    runs = [make_run(tmp_path / str(n), n, n // 100, picture) for n in sizes]
    peak_of_verify(runs[0], sizes[0])  # imports, and whatever is made once
    small, large = map(peak_of_verify, runs, sizes)
    assert (large - small) / (sizes[1] - sizes[0]) < 300


def test_a_collect_keeps_what_it_knows_of_lines_for_one_band_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one band it takes some 80 bytes a row here. What is left goes with journals and parts, of
    which there is one for each 500 rows, where real ones have many times as many."""
    monkeypatch.setattr(parts, "PART_ROWS", 500)
    monkeypatch.setattr(parts, "GROUP_ROWS", 250)
    monkeypatch.setattr(bands, "BAND_ROWS", 500)
    monkeypatch.setattr(bands, "PIECE", 500)
    sizes = 1000, 3000
    runs = [make_run(tmp_path / str(n), n, n // 500) for n in sizes]
    peak_of_collect(runs[0], sizes[0])  # imports, and whatever is made once
    small, large = map(peak_of_collect, runs, sizes)
    assert (large - small) / (sizes[1] - sizes[0]) < 30
