"""Journals as ranks leave them, written without drawing: at a commit's pace a million rows would
take hours, and nothing that reads them would see a difference.

Lines are made of one that the ledger's own encoder wrote, with the values of each row put in; the
first and the last of a journal are read back by its decoder.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

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
from batchgen.paths import RunPaths
from batchgen.processes import ProcessId
from batchgen.records import Attempt, Commit, Media, RankSeconds, RowStats, StageSeconds

RANK_ROWS = 50_000  # of one journal
ROW, NAME, KEY = 987_654_321, "@name@", "@key@"  # stand for those of a row
ROW_S = 0.9
CRC_BYTES = len(',"crc":"01234567"}\n')


def fill(run: RunPaths, wanted: Callable[[int], bool], submission: int = 1) -> int:
    """Commit the rows of the plan whose row_index is `wanted`, as attempts that ended; returns how
    many."""
    started, done = sum(1 for _ in run.journals.rglob("*.jsonl")), 0
    rows = (row for row in _rows(pq.ParquetFile(run.plan)) if wanted(row[0]))
    while group := list(islice(rows, RANK_ROWS)):
        _journal(run, Attempt(submission, 0, 0, started), group)
        started, done = started + 1, done + len(group)
    return done


def _rows(file: pq.ParquetFile) -> Iterator[tuple[int, str, str]]:
    """(row_index, row_id, row_key) of all rows."""
    columns = ["row_index", "row_id", "row_key"]
    for batch in file.iter_batches(columns=columns):
        yield from zip(*(batch[name].to_pylist() for name in columns), strict=True)


def _journal(run: RunPaths, attempt: Attempt, rows: Sequence[tuple[int, str, str]]) -> None:
    """Begun and ended by the ledger's writer; its lines are put in between."""
    here = ProcessId.current("bench")
    header = AttemptHeader(attempt=attempt, host="bench", device="cpu", process=here)
    with JournalWriter.open(run, header) as journal:
        journal.phase("load", 1.0)
    start, commit = _templates(attempt)
    now = time.time()
    lines: list[bytes] = []
    for number, name, key in rows:
        given = (b"%d" % number, name.encode(), key.encode())
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


def _templates(attempt: Attempt) -> tuple[bytes, bytes]:
    """Lines of a start and of a commit, without their check sums."""
    media = Media(f"media/{NAME}-{attempt.tag}.png", KEY, 700, KEY, 1)  # digests do not pack
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


def _line(template: bytes, given: tuple[bytes, bytes, bytes]) -> bytes:
    number, name, key = given
    body = template.replace(b"%d" % ROW, number).replace(NAME.encode(), name)
    body = body.replace(KEY.encode(), key)
    return body + b',"crc":"%08x"}\n' % zlib.crc32(body)
