"""One pass over all journals of a run: an index of every commit line, and facts about each journal.

The index keeps some 46 bytes a line in arrays (row, status, key, journal, offset, length, check
sum); the lines themselves are fetched later, for one part of the plan at a time. So a run of
millions of rows is resumed and collected in little memory.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np

from batchgen.ledger.events import (
    START,
    AttemptHeader,
    Climbed,
    Device,
    End,
    Phase,
    Saved,
    Signalled,
    Tried,
    decode_line,
    spent_of,
    sum_of,
    time_of,
)
from batchgen.ledger.fold import InFlight
from batchgen.ledger.intent import FencedJournal, fenced_journals
from batchgen.paths import RunPaths
from batchgen.records import Climb, RankSeconds

STATUS_CODES = {"pending": 0, "ok": 1, "failed": 2, "quarantined": 3, "void": 4}
STATUS_NAMES = {code: name for name, code in STATUS_CODES.items()}
_STATUS_BYTES = {name.encode(): code for name, code in STATUS_CODES.items()}
# The first 64 bits of the hexadecimal row key are enough: only keys of one row are ever compared.
KEY_TYPE = "S16"
_KEY_BYTES = int(KEY_TYPE[1:])


@dataclass(slots=True)
class JournalFacts:
    """What one journal says beside its commits, on both sides of its fence."""

    journal: FencedJournal
    header: AttemptHeader | None = None  # with the device, whichever line names it
    phases: list[Phase] = field(default_factory=list)
    end: End | None = None
    starts: int = 0
    signalled: bool = False  # told to end
    climbs: list[Climb] = field(default_factory=list)
    in_flight: InFlight = field(default_factory=InFlight)  # at the end of the journal
    saved: dict[int, float] = field(default_factory=dict)  # row_index -> busy seconds carried over
    tried_s: float = 0.0  # busy seconds of tries that failed and were tried again
    whole_bytes: int = 0  # up to the end of the last line, on both sides of the fence
    first_start_t: float = 0.0
    last_t: float = 0.0  # time of the last whole line
    spent: RankSeconds | None = None  # what the attempt had spent at last_t
    bad_lines: list[int] = field(default_factory=list)  # offsets of lines with a wrong check sum
    torn_bytes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class CommitIndex:
    """All commit and void lines in the order of attempts (later ones overrule earlier ones)."""

    journals: tuple[JournalFacts, ...]
    row_index: np.ndarray  # int64
    status: np.ndarray  # int8, STATUS_CODES
    key: np.ndarray  # KEY_TYPE
    journal: np.ndarray  # int32, place in `journals`
    offset: np.ndarray  # int64, byte in the journal
    length: np.ndarray  # int32
    crc: np.ndarray  # uint32, the check sum of the line
    accepted: np.ndarray  # bool; False: behind the fence (waste)

    def submission_of(self, lines: np.ndarray) -> np.ndarray:
        """int64: the submission of each of these lines."""
        numbers = [facts.journal.attempt.submission for facts in self.journals]
        of_lines: np.ndarray = np.array(numbers, np.int64)[self.journal[lines]]
        return of_lines


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """The commit and void lines of one journal, in their order."""

    row_index: np.ndarray  # int64
    status: np.ndarray  # int8, STATUS_CODES
    key: np.ndarray  # KEY_TYPE
    offset: np.ndarray  # int64, byte in the journal
    length: np.ndarray  # int32
    crc: np.ndarray  # uint32, the check sum of the line


@dataclass(slots=True)
class _Columns:
    """Lines in arrays that grow in place, so that no line is ever there twice."""

    row_index: array[int] = field(default_factory=lambda: array("q"))
    status: array[int] = field(default_factory=lambda: array("b"))
    key: bytearray = field(default_factory=bytearray)
    offset: array[int] = field(default_factory=lambda: array("q"))
    length: array[int] = field(default_factory=lambda: array("i"))
    crc: array[int] = field(default_factory=lambda: array("I"))

    def append(self, head: re.Match[bytes], offset: int, length: int, crc: int) -> int:
        """Add a line; returns its row_index."""
        _, row, status, key = head.groups()
        row_index = int(row)
        self.row_index.append(row_index)
        self.status.append(_STATUS_BYTES[status])
        self.key += key[:_KEY_BYTES].ljust(_KEY_BYTES, b"\0")
        self.offset.append(offset)
        self.length.append(length)
        self.crc.append(crc)
        return row_index

    def extend(self, lines: Lines) -> None:
        """Add all lines of a journal."""
        for name in LINE_COLUMNS:
            data, grown = getattr(lines, name).tobytes(), getattr(self, name)
            grown.extend(data) if name == "key" else grown.frombytes(data)

    def lines(self) -> Lines:
        return Lines(
            row_index=np.frombuffer(self.row_index, np.int64),
            status=np.frombuffer(self.status, np.int8),
            key=np.frombuffer(self.key, KEY_TYPE),
            offset=np.frombuffer(self.offset, np.int64),
            length=np.frombuffer(self.length, np.int32),
            crc=np.frombuffer(self.crc, np.uint32),
        )


LINE_COLUMNS = tuple(column.name for column in fields(Lines))
Scanned = tuple[JournalFacts, Lines]


def index_commits(
    run: RunPaths, known: Callable[[FencedJournal], Scanned | None] = lambda journal: None
) -> CommitIndex:
    """Read every journal of the run once; `known` may spare a journal by what it says of it."""
    journals: list[JournalFacts] = []
    sizes: list[int] = []
    accepted, columns = bytearray(), _Columns()
    for journal in fenced_journals(run):
        facts, lines = known(journal) or scan_journal(journal)
        limit, ends = journal.limit, lines.offset + lines.length
        accepted += (ends >= 0 if limit is None else ends <= limit).tobytes()
        columns.extend(lines)
        journals.append(facts)
        sizes.append(len(ends))
    every = columns.lines()
    return CommitIndex(
        journals=tuple(journals),
        journal=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        accepted=np.frombuffer(accepted, bool),
        **{name: getattr(every, name) for name in LINE_COLUMNS},
    )


def scan_journal(journal: FencedJournal) -> Scanned:
    """What a journal says, on both sides of its fence. Each microsecond counts."""
    facts, columns = JournalFacts(journal), _Columns()
    saved, take_in = facts.saved, facts.in_flight.take_in
    offset, last = 0, b""
    with journal.path.open("rb") as file:
        for line in file:
            size = len(line)
            if not line.endswith(b"\n"):
                facts.torn_bytes = size
                break
            crc = sum_of(line)
            if crc is None:  # start lines too: a torn one may have run into a commit line
                facts.bad_lines.append(offset)
            else:
                last, found = line, take_in(line)
                if found is None:
                    if not _note(facts, line):
                        facts.bad_lines.append(offset)
                elif found.re is START:
                    facts.starts += 1
                    if facts.starts == 1:
                        facts.first_start_t = time_of(line)
                else:
                    row = columns.append(found, offset, size, crc)
                    if saved:
                        saved.pop(row, None)
            offset += size
    facts.last_t, facts.spent = time_of(last), spent_of(last)
    facts.whole_bytes = offset
    return facts, columns.lines()


def _note(facts: JournalFacts, line: bytes) -> bool:
    """Keep what a line other than a commit says; False if the line is of no known kind."""
    try:
        event = decode_line(line)
    except ValueError:
        return False
    if isinstance(event, AttemptHeader):
        facts.header = event
    elif isinstance(event, Device):
        if facts.header is not None:
            facts.header = replace(facts.header, device=event.name, device_id=event.id)
    elif isinstance(event, Phase):
        facts.phases.append(event)
    elif isinstance(event, End):
        facts.end = event
    elif isinstance(event, Signalled):
        facts.signalled = True
    elif isinstance(event, Climbed):
        facts.climbs.append(event.climb)
    elif isinstance(event, Saved):
        facts.saved[event.row_index] = event.seconds
    elif isinstance(event, Tried):
        facts.tried_s += event.seconds
        facts.saved.pop(event.row_index, None)  # the failed try includes the saved seconds
    known = AttemptHeader | Device | Phase | End | Signalled | Climbed | Saved | Tried
    return isinstance(event, known)


def fetch_lines(index: CommitIndex, lines: np.ndarray) -> list[bytes]:
    """The raw commit lines at places `lines` of the index, in that order."""
    result: list[bytes] = [b""] * len(lines)
    by_place = np.lexsort((index.offset[lines], index.journal[lines]))
    journals = index.journal[lines][by_place]
    begins = np.flatnonzero(np.diff(journals, prepend=-1)).tolist()
    for begin, end in pairwise([*begins, len(journals)]):
        places = by_place[begin:end]
        chosen = lines[places]
        path = index.journals[int(journals[begin])].journal.path
        found = _slices(path, index.offset[chosen].tolist(), index.length[chosen].tolist())
        for place, line in zip(places.tolist(), found, strict=True):
            result[place] = line
    return result


def _slices(path: Path, offsets: list[int], lengths: list[int]) -> list[bytes]:
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as view:
        return [view[o : o + n] for o, n in zip(offsets, lengths, strict=True)]
