"""A run folder as a large run leaves it: several hosts and submissions, failures, caches, scores.

`python tests/report_run.py FOLDER ROWS` makes one to look at.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from run_folder import RunFolder, make_run_folder, render

from batchgen.durable import write_json
from batchgen.ledger.events import AttemptHeader, Device, End, Event, Phase, encode_line
from batchgen.media.publish import write_media
from batchgen.records import Attempt, Audit, Commit, Media, Metric, RowStats, StageSeconds
from batchgen.runfile import read_run

SUBJECTS = (
    "a lighthouse in a storm",
    "two foxes in snow",
    "an old tram at night",
    "a glass of tea",
)
LOOKS = ("35 mm film, soft light", "slow pan to the left", "long exposure", "seen from above")
CONFIG = {
    "name": "shots",
    "model": {"name": "wan2.1-t2v-1.3b", "weights": "/checkpoints/wan"},
    "slurm": {"executor": "slurm"},
}
# What a prompt, a tag or an error must not be able to do.
HOSTILE = (
    "</script><script>window.hit=1</script><img src=x onerror=window.hit=1>"
    '" onload="window.hit=1\u2028&amp;'
)
MEDIA = 8  # files that all rows share
RANK_ROWS = 700  # rows of one attempt
FIRST_S, PAUSE_S = 40.0, 100_000.0  # loading; between the two submissions


def make_large_run(root: Path, rows: int) -> RunFolder:
    """A run of `rows` rows in two submissions, some three in a thousand of which failed."""
    tags = [("hero,night", "hero", "b-roll", None)[row % 4] for row in range(rows)]
    folder = make_run_folder(root, rows, extra=_plan_columns(rows) | {"tags": tags})
    header = replace(read_run(folder.run), config=CONFIG, tag="autumn", cost_s_total=77.0 * rows)
    write_json(folder.run.run_json, header.to_json())
    drawn = folder.requests[:MEDIA]
    media = [write_media(render(r), folder.run, Attempt(1, 0, 0, 0), rows) for r in drawn]
    dice, began = np.random.default_rng(7), time.time() - 300_000
    for number, part in ((1, range(rows * 3 // 4)), (2, range(rows * 3 // 4, rows))):
        folder.submit([*part])
        tasks = max(2, len(part) // RANK_ROWS)
        for task in range(tasks):
            _attempt(folder, Attempt(number, task, 0, 0), part[task::tasks], media, dice, began)
        began += PAUSE_S
    return folder


def _plan_columns(rows: int) -> dict[str, Sequence[object]]:
    small = np.arange(rows) % 5 == 0
    return {
        "bucket": np.where(small, "480x320x16", "832x480x81").tolist(),
        "prompt": [f"{SUBJECTS[n % 4]}, {LOOKS[n // 4 % 4]}, take {n}" for n in range(rows)],
        "cost_s": np.where(small, 6.0, 95.0).tolist(),
        "width": np.where(small, 480, 832).tolist(),
        "height": np.where(small, 320, 480).tolist(),
        "cache_strategy": ["planned" if n % 3 else "none" for n in range(rows)],
        "cache_ratio": [0.5 if n % 3 else 0.0 for n in range(rows)],
    }


def _attempt(
    folder: RunFolder,
    attempt: Attempt,
    part: Sequence[int],
    media: Sequence[Media],
    dice: np.random.Generator,
    began: float,
) -> None:
    """The journal of an attempt that came to its end, with commits one after the other."""
    host, now = f"node{attempt.task % 12:02d}", began + FIRST_S
    slow = 1.35 if host == "node01" else 1.0
    lines: list[Event] = [AttemptHeader(attempt=attempt, host=host, t=began)]
    lines += [Device("NVIDIA H200", began), Phase("load", FIRST_S, now)]
    busy = 0.0
    for row in part:
        seconds = float((6.0 if row % 5 == 0 else 95.0) * slow * dice.lognormal(-0.05, 0.12))
        stages = StageSeconds(encode=0.02 * seconds, denoise=0.9 * seconds, decode=0.08 * seconds)
        lines.append(_commit(folder, attempt, row, media[row % MEDIA], stages, now, host))
        now, busy = now + seconds, busy + 0.92 * seconds
    clock = {"busy_s": busy, "load_s": FIRST_S, "idle_s": now - began - FIRST_S - busy}
    lines.append(End(reason="done", **clock, t=now))
    path = folder.run.journal(attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(encode_line, lines)))


def _rung(row: int) -> str:
    """Of the memory ladder: most rows have had room."""
    return {7: "smaller", 8: "model"}.get(row % 100, "")


def _commit(
    folder: RunFolder,
    attempt: Attempt,
    row: int,
    media: Media,
    stages: StageSeconds,
    now: float,
    host: str,
) -> Commit:
    seconds = stages.encode + stages.denoise + stages.decode
    audit = Audit(psnr=30.0 + row % 17, ssim=0.95, steps=8.0) if row % 50 == 1 else None
    computed = 4.0 if row % 3 else 8.0
    request = folder.requests[row]
    done = Commit(
        row_index=row,
        row_id=request.row_id,
        row_key=request.row_key,
        status="ok",
        attempt=attempt.tag,
        shard=attempt.task,
        host=host,
        started=now,
        ended=now + seconds,
        media=media,
        metrics=(Metric("score", repr((row * 37 % 100) / 100)),),
        stats=RowStats(
            stages, 8, computed, device="NVIDIA H200", audit=audit, memory_rung=_rung(row)
        ),
    )
    if row % 331 != 5:
        return done
    kind = "OutOfMemory" if row % 2 else "NonFiniteOutput"
    message = f"latents of {request.row_id!r} at step {row % 40} are not finite"
    trace = f'Traceback (most recent call last):\n  File "engine.py", line 7\n{kind}: {message}'
    told = {"error_type": kind, "error": message, "traceback": trace}
    return replace(done, status="failed", media=None, metrics=(), **told)


if __name__ == "__main__":
    make_large_run(Path(sys.argv[1]), int(sys.argv[2]))
