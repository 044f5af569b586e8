"""A journal in blocks of whole lines, thousands at a time.

Nearly all lines of a long journal are starts and commits, byte for byte in the form that
`events.encode_line` gives them. These plain lines are taken in here together; any other is left to
whoever reads line by line, who would read the plain ones to the same effect.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from batchgen.ledger.reading.keys import HEX, numbers_of_digits

BLOCK_BYTES = 1 << 18  # as much as a CPU keeps near itself
ROW_DIGITS = 18  # most of a row_index in a plain line
KEY_DIGITS = 64  # of a whole row key
_CRC, _CLOSE = b',"crc":"', b'"}\n'
_TAIL = len(_CRC) + 8 + len(_CLOSE)
_START = b'{"kind":"start","row_index":', b',"alone":false,'
_COMMIT = b'{"kind":"commit","row_index":', b',"status":"%b","row_key":"'
_HEAD = len(b"".join(_COMMIT)) + ROW_DIGITS + KEY_DIGITS + 20  # most bytes that are looked at


@dataclass(frozen=True, slots=True, eq=False)
class Plain:
    """Lines of one kind, by their places in the block, ascending."""

    places: np.ndarray  # int64
    row_index: np.ndarray  # int64

    def at(self, chosen: slice) -> Plain:
        """Some of them."""
        return Plain(self.places[chosen], self.row_index[chosen])


class Block:
    """Some whole lines of a journal."""

    def __init__(self, offset: int, data: bytes) -> None:
        """`offset`: of the first byte in the journal; `data` ends with a newline."""
        self.offset, self._data = offset, data
        # zeros behind the end, so that every line has a head
        self._bytes = np.frombuffer(data + bytes(_HEAD), np.uint8)
        self.ends = np.flatnonzero(self._bytes == ord("\n")) + 1  # int64, bytes in the block
        self.begins = np.concatenate([[0], self.ends[:-1]])
        self._edges = [0, *self.ends.tolist()]
        bounds = zip(self._edges, np.maximum(self.begins, self.ends - _TAIL).tolist(), strict=False)
        self.crc = np.array([crc32(data[begin:end]) for begin, end in bounds], np.uint32)

    def line(self, place: int) -> bytes:
        """A line, with its newline."""
        return self._data[self._edges[place] : self._edges[place + 1]]

    @cached_property
    def whole(self) -> np.ndarray:
        """bool, one a line: the check sum fits."""
        at = np.maximum(self.ends - _TAIL, 0)
        tails = sliding_window_view(self._bytes, _TAIL)[at]
        digits = HEX[tails[:, len(_CRC) : -len(_CLOSE)]]
        sums = digits @ (16 ** np.arange(7, -1, -1, dtype=np.uint64))
        found = (self.ends - self.begins >= _TAIL) & (digits < 16).all(1) & (sums == self.crc)
        found &= _equal(tails, 0, _CRC) & _equal(tails, _TAIL - len(_CLOSE), _CLOSE)
        return np.asarray(found)

    @cached_property
    def _heads(self) -> np.ndarray:
        heads: np.ndarray = sliding_window_view(self._bytes, _HEAD)[self.begins]
        return heads

    def starts(self) -> Plain:
        """Whole lines of rows that join others in flight."""
        found, rows, _ = self._numbered(*_START)
        return Plain(found, rows)

    def commits(self, status: bytes) -> tuple[Plain, np.ndarray]:
        """Whole lines of rows of that status, and their keys (KEY_TYPE)."""
        found, rows, behind = self._numbered(_COMMIT[0], _COMMIT[1] % status)
        keys = sliding_window_view(self._bytes, KEY_DIGITS + 1)[self.begins[found] + behind]
        digits = HEX[keys[:, :-1]]
        fits = (digits < 16).all(1) & (keys[:, -1] == ord('"'))
        return Plain(found[fits], rows[fits]), numbers_of_digits(digits[fits])

    def _numbered(self, before: bytes, after: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Whole lines that begin with `before`, a number and `after`: places, numbers, and the byte
        of the line that comes next."""
        places = np.flatnonzero(self.whole & _equal(self._heads, 0, before))
        heads = self._heads[places]
        digits = heads[:, len(before) : len(before) + ROW_DIGITS + 1] - ord(
            "0"
        )  # others wrap around
        counts = (digits > 9).argmax(1)  # 0 also where there are too many
        numbers, fits = np.zeros(len(places), np.int64), np.zeros(len(places), bool)
        for count in np.unique(counts[counts > 0]).tolist():
            mine = np.flatnonzero(counts == count)
            numbers[mine] = digits[mine, :count] @ 10 ** np.arange(count - 1, -1, -1)
            fits[mine] = _equal(heads[mine], len(before) + count, after)
        return places[fits], numbers[fits], len(before) + counts[fits] + len(after)


def _equal(rows: np.ndarray, begin: int, text: bytes) -> np.ndarray:
    """bool, one a row (uint8, contiguous): it has this text from byte `begin` on."""
    size = f"S{len(text)}"
    found: np.ndarray = np.ndarray(len(rows), size, rows, begin, rows.strides[:1]) == text
    return found


def blocks_of(path: Path) -> Iterator[Block | bytes]:
    """The blocks of a journal, and at last, if there are any, the bytes behind its last newline."""
    offset, held = 0, list[bytes]()  # joined once, however long a line is
    with path.open("rb") as file:
        while more := file.read(BLOCK_BYTES):
            if end := more.rfind(b"\n") + 1:
                data = b"".join([*held, more[:end]])
                yield Block(offset, data)
                offset, held = offset + len(data), []
            held.append(more[end:])
    if rest := b"".join(held):
        yield rest
