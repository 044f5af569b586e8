"""Journals as ranks leave them, written without drawing: at a commit's pace a million rows would
take hours, and nothing that reads them would see a difference.

Lines are made of one that the ledger's own encoder wrote, with the values of each row put in; the
first and the last of a journal are read back by its decoder. Media are one small PNG with the row's
key behind its pixels, so that no two have the same digest; of more than MEDIA_ROWS rows there are
none.
"""

from __future__ import annotations

import hashlib
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq

from batchgen.ledger.counts import Counts, read_counters
from batchgen.ledger.events import (
    AttemptHeader,
    End,
    Start,
    decode_line,
    encode_line,
    to_plain,
)
from batchgen.ledger.journal import JournalWriter
from batchgen.media.formats import png
from batchgen.paths import RunPaths, media_fan_out
from batchgen.processes import ProcessId
from batchgen.records import Attempt, Commit, Media, RankSeconds, RowStats, StageSeconds

RANK_ROWS = 50_000  # of one journal
MEDIA_ROWS = 1_000_000  # a file takes 4 KiB
# stand for those of a row
ROW, NAME, KEY, FOLDER, DIGEST = 987_654_321, "@name@", "@key@", "@folder@", "@digest@"
PUT_IN = [str(each).encode() for each in (ROW, NAME, KEY, FOLDER, DIGEST)]
KEY_BYTES, END_BYTES = 64, 12  # of a row's key; of the last chunk of a PNG
ROW_S = 0.9
CRC_BYTES = len(',"crc":"01234567"}\n')


def fill(run: RunPaths, wanted: Callable[[int], bool], submission: int = 1) -> int:
    """Commit the rows of the plan whose row_index is `wanted`, as attempts that ended; returns how
    many."""
    started, done = sum(1 for _ in run.journals.rglob("*.jsonl")), 0
    plan = pq.ParquetFile(run.plan)
    media = _Pictures(run, plan.metadata.num_rows)
    rows = (row for row in _rows(plan) if wanted(row[0]))
    while group := list(islice(rows, RANK_ROWS)):
        _journal(run, Attempt(submission, 0, 0, started), group, media)
        started, done = started + 1, done + len(group)
    return done


class _Pictures:
    """The media of rows."""

    def __init__(self, run: RunPaths, rows: int) -> None:
        self._run, self._rows, self._written = run, rows, rows <= MEDIA_ROWS
        with TemporaryDirectory() as folder:
            path = Path(folder) / "one.png"
            png.write(np.zeros((1, 8, 8, 3), np.uint8), path, fps=1.0, quality=8)
            whole = path.read_bytes()
        self._head, self._end = whole[:-END_BYTES], whole[-END_BYTES:]
        self.size = len(self._of(KEY_BYTES * b"0"))

    def _of(self, key: bytes) -> bytes:
        text = b"tEXtkey\0" + key
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        return self._head + chunk + self._end

    def place(self, row: int, name: str, key: str) -> tuple[str, str]:
        """Write that of a row. Its folder below `media/`, with a slash, and the sha256."""
        data = self._of(key.encode())
        folder = media_fan_out(row, self._rows)
        if self._written:
            path = self._run.media / folder / name
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder and folder + "/", hashlib.sha256(data).hexdigest()


def _rows(file: pq.ParquetFile) -> Iterator[tuple[int, str, str]]:
    """(row_index, row_id, row_key) of all rows."""
    columns = ["row_index", "row_id", "row_key"]
    for batch in file.iter_batches(columns=columns):
        yield from zip(*(batch[name].to_pylist() for name in columns), strict=True)


def _journal(
    run: RunPaths, attempt: Attempt, rows: Sequence[tuple[int, str, str]], media: _Pictures
) -> None:
    """Begun and ended by the ledger's writer; its lines are put in between."""
    here = ProcessId.current("bench")
    header = AttemptHeader(attempt=attempt, host="bench", device="cpu", process=here)
    with JournalWriter.open(run, header) as journal:
        journal.phase("load", 1.0)
    start, commit = _templates(attempt, media.size)
    now = time.time()
    lines: list[bytes] = []
    for number, name, key in rows:
        placed = media.place(number, f"{name}-{attempt.tag}.png", key)
        given = [text.encode() for text in (str(number), name, key, *placed)]
        lines += (_line(start, given), _line(commit, given))
    for line in (lines[0], lines[-1]):
        decode_line(line)
    spent = ROW_S * len(rows)
    ended = End(reason="done", busy_s=spent, load_s=1.0, denoise_s=spent, t=now)
    with Path(journal.path).open("ab") as file:
        file.writelines(lines)
        file.write(encode_line(ended))
    _count(run, attempt, Path(journal.path).stat().st_size, len(rows))


def _count(run: RunPaths, attempt: Attempt, size: int, count: int) -> None:
    """The counters that the rank would have left."""
    path = run.counters(attempt)
    counters = read_counters(path)
    assert counters is not None  # the writer has just left some
    known = replace(counters, offset=size, synced=size, commits=count, changes=Counts(ok=count))
    path.write_text(json.dumps(to_plain(replace(known, phase="render", ended="done"))))


def _templates(attempt: Attempt, size: int) -> tuple[bytes, bytes]:
    """Lines of a start and of a commit, without their check sums."""
    path = f"media/{FOLDER}{NAME}-{attempt.tag}.png"
    media = Media(path, DIGEST, size, KEY, 1)  # digests do not pack
    stats = RowStats(
        StageSeconds(denoise=ROW_S, write=0.01), steps_total=3, steps_computed=3.0, device="cpu"
    )
    now = time.time()
    commit = Commit(
        row_index=ROW,
        row_id=NAME,
        row_key=KEY,
        status="ok",
        attempt=attempt.tag,
        shard=attempt.task,
        host="bench",
        started=now - 1,
        ended=now,
        media=media,
        stats=stats,
    )
    lines = (encode_line(Start(ROW, NAME, now)), encode_line(commit, RankSeconds(denoise=ROW_S)))
    start, done = (line[:-CRC_BYTES] for line in lines)
    return start, done


def _line(template: bytes, given: Sequence[bytes]) -> bytes:
    """Of a row, with what stands for PUT_IN."""
    body = template
    for name, value in zip(PUT_IN, given, strict=True):
        body = body.replace(name, value)
    return body + b',"crc":"%08x"}\n' % zlib.crc32(body)
