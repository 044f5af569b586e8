"""What a scan has found in journals that have ended, kept beside the catalog, so that the next scan
need not read a million lines again.

A journal that has ended never grows. What is kept of it is taken only while the file has the size
and the time that it had, and the bytes of its last line; else, or if what is kept cannot be read,
the journal is read. So nothing depends on these files: `verify`, which looks for damage inside of
journals, never asks them, and a run folder without them is whole.
"""

from __future__ import annotations

import io
import json
import zipfile
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from batchgen.durable import make_folder, write_bytes_atomic
from batchgen.ledger.events import AttemptHeader, End, Phase, decode_line, encode_line
from batchgen.ledger.intent import FencedJournal
from batchgen.ledger.reading.scan import (
    LINE_COLUMNS,
    CommitIndex,
    JournalFacts,
    Lines,
    Scanned,
    index_commits,
    scan_journal,
)
from batchgen.paths import RunPaths
from batchgen.records import RankSeconds

FORMAT = 3  # raise it when what is kept changes
LEAST_LINES = 1000  # a journal of fewer is read as quickly
TAIL = 200  # bytes of a journal's end: a part of its last line, with its check sum
# What reading such a file raises where it is damaged (RuntimeError: a bit says it is encrypted).
_DAMAGE = (OSError, ValueError, KeyError, TypeError)
UNREADABLE = (*_DAMAGE, EOFError, RuntimeError, zipfile.BadZipFile)
_NUMBERS = ("starts", "signalled", "tried_s", "whole_bytes", "first_start_t", "last_t")


def index_quickly(run: RunPaths) -> CommitIndex:
    """`index_commits` by what is kept, and by reading all other journals."""
    return index_commits(run, partial(recall, run))


def scan_and_keep(run: RunPaths, journal: FencedJournal) -> Scanned:
    """What a journal says, by what is kept of it or else by reading it; then what was found is kept
    if it has ended."""
    if (known := recall(run, journal)) is not None:
        return known
    facts, lines = scan_journal(journal)
    if len(lines.offset) >= LEAST_LINES and _has_ended(facts):
        with suppress(OSError):  # the next scan is slower, and that is all
            path = run.kept_scan(journal.path)
            make_folder(path.parent, run.root)
            write_bytes_atomic(path, _encoded(facts, lines))
    return facts, lines


def _has_ended(facts: JournalFacts) -> bool:
    """By itself, with nothing odd in it: then no other fact is to be kept than `_encoded` does."""
    odd = facts.bad_lines or facts.torn_bytes or facts.saved or facts.in_flight.rows
    return facts.end is not None and facts.header is not None and not odd


def _stamp(path: Path) -> dict[str, Any]:
    """By which a journal is known again."""
    stat = path.stat()
    with path.open("rb") as file:
        file.seek(max(0, stat.st_size - TAIL))
        tail = file.read()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "tail": tail.hex()}


def _encoded(facts: JournalFacts, lines: Lines) -> bytes:
    events = [facts.header, *facts.phases, facts.end]
    head = {
        "format": FORMAT,
        "stamp": _stamp(facts.journal.path),
        "events": [encode_line(event).decode() for event in events if event is not None],
        "spent": None if facts.spent is None else asdict(facts.spent),
        **{name: getattr(facts, name) for name in _NUMBERS},
    }
    arrays = {name: getattr(lines, name) for name in LINE_COLUMNS}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, head=np.array(json.dumps(head)), **arrays)
    return buffer.getvalue()


def recall(run: RunPaths, journal: FencedJournal) -> Scanned | None:
    """What is kept of a journal; None where nothing is, or nothing that can be trusted."""
    try:
        with (
            run.kept_scan(journal.path).open("rb") as file,
            np.load(file, allow_pickle=False) as kept,
        ):
            head = json.loads(str(kept["head"]))
            if head["format"] != FORMAT or head["stamp"] != _stamp(journal.path):
                return None
            return _facts(journal, head), Lines(**{name: kept[name] for name in LINE_COLUMNS})
    except UNREADABLE:
        return None


def _facts(journal: FencedJournal, head: dict[str, Any]) -> JournalFacts:
    facts = JournalFacts(journal, **{name: head[name] for name in _NUMBERS})
    facts.spent = None if head["spent"] is None else RankSeconds(**head["spent"])
    for text in head["events"]:
        event = decode_line(text.encode())
        if isinstance(event, AttemptHeader):
            facts.header = event
        elif isinstance(event, Phase):
            facts.phases.append(event)
        elif isinstance(event, End):
            facts.end = event
    return facts
