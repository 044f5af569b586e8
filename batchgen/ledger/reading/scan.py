"""One pass over all journals of a run: an index of every commit line, and facts about each journal.

The index keeps some 34 bytes a line in arrays (row, status, key, journal, offset, length, check
sum); the lines themselves are fetched later, for one part of the plan at a time. So a run of
millions of rows is resumed and collected in little memory, and a larger one in `bands`.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator
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
    time_of,
)
from batchgen.ledger.intent import FencedJournal, fenced_journals
from batchgen.ledger.reading.blocks import Block, Plain, blocks_of
from batchgen.ledger.reading.fold import InFlight
from batchgen.ledger.reading.keys import KEY_TYPE, key_number
from batchgen.paths import RunPaths
from batchgen.records import Climb, RankSeconds

STATUS_CODES = {"pending": 0, "ok": 1, "failed": 2, "quarantined": 3, "void": 4}
STATUS_NAMES = {code: name for name, code in STATUS_CODES.items()}
_STATUS_BYTES = {name.encode(): code for name, code in STATUS_CODES.items()}
MOST_ROW = 2**31 - 1  # no plan has it: a line that names a higher one is of no row, either
TOGETHER = 32  # plain lines that are taken in one by one where they are fewer: it is quicker


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
    rendered: int = 0  # its ok lines before the fence


@dataclass(frozen=True, slots=True, eq=False)
class CommitIndex:
    """All commit and void lines in the order of attempts (later ones overrule earlier ones)."""

    journals: tuple[JournalFacts, ...]
    row_index: np.ndarray  # int32, at most MOST_ROW
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

    row_index: np.ndarray  # int32, at most MOST_ROW
    status: np.ndarray  # int8, STATUS_CODES
    key: np.ndarray  # KEY_TYPE
    offset: np.ndarray  # int64, byte in the journal
    length: np.ndarray  # int32
    crc: np.ndarray  # uint32, the check sum of the line


@dataclass(slots=True)
class _Columns:
    """Lines in arrays that grow in place, so that no line is ever there twice."""

    row_index: array[int] = field(default_factory=lambda: array("i"))
    status: array[int] = field(default_factory=lambda: array("b"))
    key: array[int] = field(default_factory=lambda: array("Q"))
    offset: array[int] = field(default_factory=lambda: array("q"))
    length: array[int] = field(default_factory=lambda: array("i"))
    crc: array[int] = field(default_factory=lambda: array("I"))

    def append(self, head: re.Match[bytes], offset: int, length: int, crc: int) -> int:
        """Add a line; returns its row_index."""
        _, row, status, key = head.groups()
        row_index = int(row)
        self.row_index.append(min(row_index, MOST_ROW))
        self.status.append(_STATUS_BYTES[status])
        self.key.append(key_number(key))
        self.offset.append(offset)
        self.length.append(length)
        self.crc.append(crc)
        return row_index

    def extend(self, lines: Lines) -> None:
        """Add all lines of a journal."""
        for name in LINE_COLUMNS:
            getattr(self, name).frombytes(getattr(lines, name).tobytes())

    def lines(self) -> Lines:
        return Lines(
            row_index=np.frombuffer(self.row_index, np.int32),
            status=np.frombuffer(self.status, np.int8),
            key=np.frombuffer(self.key, KEY_TYPE),
            offset=np.frombuffer(self.offset, np.int64),
            length=np.frombuffer(self.length, np.int32),
            crc=np.frombuffer(self.crc, np.uint32),
        )


LINE_COLUMNS = tuple(column.name for column in fields(Lines))
Scanned = tuple[JournalFacts, Lines]
Known = Callable[[FencedJournal], Scanned | None]  # what is known of a journal, to spare reading it


def index_commits(run: RunPaths, known: Known = lambda journal: None) -> CommitIndex:
    """Read every journal of the run once; `known` may spare a journal by what it says of it."""
    journals: list[JournalFacts] = []
    sizes: list[int] = []
    accepted, columns = bytearray(), _Columns()
    for facts, lines in scan_all(run, known):
        accepted += accepted_of(facts, lines).tobytes()
        columns.extend(lines)
        journals.append(facts)
        sizes.append(len(lines.offset))
    every = columns.lines()
    return CommitIndex(
        journals=tuple(journals),
        journal=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        accepted=np.frombuffer(accepted, bool),
        **{name: getattr(every, name) for name in LINE_COLUMNS},
    )


def scan_all(run: RunPaths, known: Known) -> Iterator[Scanned]:
    """What each journal of the run says, in the order of attempts."""
    for journal in fenced_journals(run):
        facts, lines = known(journal) or scan_journal(journal)
        ok = lines.status == STATUS_CODES["ok"]
        facts.rendered = int((accepted_of(facts, lines) & ok).sum())
        yield facts, lines


def accepted_of(facts: JournalFacts, lines: Lines) -> np.ndarray:
    """bool, one for each line of a journal: it is before the fence."""
    limit, ends = facts.journal.limit, lines.offset + lines.length
    before: np.ndarray = ends >= 0 if limit is None else ends <= limit
    return before


def scan_journal(journal: FencedJournal) -> Scanned:
    """What a journal says, on both sides of its fence."""
    scan = _Scan(JournalFacts(journal))
    for block in blocks_of(journal.path):
        if isinstance(block, Block):
            scan.take_in(block)
        else:
            scan.facts.torn_bytes = len(block)
    return scan.found()


class _Scan:
    """Takes in a journal, block by block. Each microsecond a line counts: plain lines that stand
    together are taken in together."""

    def __init__(self, facts: JournalFacts) -> None:
        self.facts, self._columns, self._last = facts, _Columns(), b""

    def found(self) -> Scanned:
        """What all blocks say."""
        self.facts.last_t, self.facts.spent = time_of(self._last), spent_of(self._last)
        return self.facts, self._columns.lines()

    def take_in(self, block: Block) -> None:
        """Take in the next block."""
        lines = _PlainLines.of(block)
        odd = np.ones(len(block.ends), bool)
        odd[lines.starts.places] = odd[lines.commits.places] = False
        whole, sums, begin = block.whole.tolist(), block.crc.tolist(), 0
        for end in [*np.flatnonzero(odd).tolist(), len(odd)]:
            if end - begin >= TOGETHER:
                self._plain(block, lines.between(begin, end))
                begin = end
            for place in range(begin, min(end + 1, len(odd))):
                offset = block.offset + int(block.begins[place])
                if whole[place]:
                    self._line(block.line(place), offset, sums[place])
                else:  # start lines too: a torn one may have run into a commit line
                    self.facts.bad_lines.append(offset)
            begin = end + 1
        self.facts.whole_bytes = block.offset + int(block.ends[-1])

    def _plain(self, block: Block, lines: _PlainLines) -> None:
        facts, starts, places = self.facts, lines.starts, lines.commits.places
        begins, rows = block.begins[places], lines.commits.row_index
        self._columns.extend(
            Lines(
                row_index=np.minimum(rows, MOST_ROW).astype(np.int32),
                status=lines.status,
                key=lines.key,
                offset=block.offset + begins,
                length=(block.ends[places] - begins).astype(np.int32),
                crc=block.crc[places],
            )
        )
        for row in rows.tolist() if facts.saved else ():
            facts.saved.pop(row, None)
        facts.in_flight.take_in_all(*lines.in_order())
        if len(starts.places) and not facts.starts:
            facts.first_start_t = time_of(block.line(int(starts.places[0])))
        facts.starts += len(starts.places)
        self._last = block.line(lines.last)

    def _line(self, line: bytes, offset: int, crc: int) -> None:
        facts = self.facts
        self._last, found = line, facts.in_flight.take_in(line)
        if found is None:
            if not _note(facts, line):
                facts.bad_lines.append(offset)
        elif found.re is START:
            facts.starts += 1
            if facts.starts == 1:
                facts.first_start_t = time_of(line)
        else:
            facts.saved.pop(self._columns.append(found, offset, len(line), crc), None)


@dataclass(frozen=True, slots=True, eq=False)
class _PlainLines:
    """Plain lines of a block."""

    starts: Plain
    commits: Plain
    status: np.ndarray  # int8, STATUS_CODES, of the commits
    key: np.ndarray  # KEY_TYPE, of the commits

    @classmethod
    def of(cls, block: Block) -> _PlainLines:
        """All of a block."""
        found = [(STATUS_CODES[name], *block.commits(name.encode())) for name in ("ok", "failed")]
        places = np.concatenate([plain.places for _, plain, _ in found])
        order = np.argsort(places, kind="stable")
        rows = np.concatenate([plain.row_index for _, plain, _ in found])
        status = np.concatenate([np.full(len(keys), code, np.int8) for code, _, keys in found])
        key = np.concatenate([keys for *_, keys in found])
        return cls(block.starts(), Plain(places[order], rows[order]), status[order], key[order])

    @property
    def last(self) -> int:
        """Place of the last one."""
        return int(max([*self.starts.places[-1:], *self.commits.places[-1:]]))

    def between(self, begin: int, end: int) -> _PlainLines:
        """Those at the places from `begin` to `end`."""
        starts, commits = (
            slice(*np.searchsorted(plain.places, [begin, end]))
            for plain in (self.starts, self.commits)
        )
        status, key = self.status[commits], self.key[commits]
        return _PlainLines(self.starts.at(starts), self.commits.at(commits), status, key)

    def in_order(self) -> tuple[list[int], list[bool]]:
        """row_index of each line, and whether it is a start."""
        order = np.argsort(np.concatenate([self.starts.places, self.commits.places]))
        rows = np.concatenate([self.starts.row_index, self.commits.row_index])
        return rows[order].tolist(), (order < len(self.starts.places)).tolist()


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
