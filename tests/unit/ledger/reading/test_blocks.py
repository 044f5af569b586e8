"""Lines that are read many at a time say what they do when read one by one."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from batchgen.ledger.events import (
    AttemptHeader,
    End,
    Phase,
    Saved,
    Start,
    Tried,
    Void,
    encode_line,
    sum_of,
)
from batchgen.ledger.intent import FencedJournal
from batchgen.ledger.reading import blocks, scan
from batchgen.ledger.reading.blocks import Block, blocks_of
from batchgen.ledger.reading.scan import scan_journal
from batchgen.records import Attempt, Commit, RankSeconds

ROWS = 12
KEYS = ("0123456789abcdef" * 4, "f" * 64, "F" * 64, "short", "", "g" * 64, "0" * 63, "0" * 80)


def line_of(random: np.random.Generator) -> bytes:
    """A line of a journal, now and then one that storage has changed."""
    row = int(random.choice([*range(ROWS), 10**9, 10**17, 10**18 - 1, 10**18]))
    name, t = str(random.choice(["a", 'say "hi"', "x\ny", "}"])), float(random.random())
    kind = int(random.choice(9, p=[0.4, 0.04, 0.34, 0.1, 0.02, 0.03, 0.03, 0.02, 0.02]))
    if kind in (0, 1):
        line = encode_line(Start(row, name, t, alone=kind == 1))
    elif kind in (2, 3, 4):
        status = ("ok", "failed", "quarantined")[kind - 2]
        key = KEYS[min(int(random.geometric(0.7)) - 1, len(KEYS) - 1)]
        place = ("s1t0r0p0", 0, "host", t, t)
        line = encode_line(Commit(row, name, key, status, *place), RankSeconds(denoise=t))
    else:
        events = (Saved(row, 3, t, t), Tried(row, t, "E", t), Void(row, "m", "r", t))
        line = encode_line((*events, Phase("load", t, t))[kind - 5])
    if random.random() < 0.02:
        at = int(random.integers(len(line) - 1))
        line = line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]
    return b"\n" if random.random() < 0.01 else line


def scanned(path: Path) -> list[object]:
    facts, lines = scan_journal(FencedJournal(path, Attempt(1, 0, 0, 0), None))
    return [facts, *((f.name, getattr(lines, f.name).tolist()) for f in fields(lines))]


@pytest.mark.parametrize("seed", range(4))
def test_many_at_a_time_or_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    random, path = np.random.default_rng(seed), tmp_path / "journal.jsonl"
    first, last = encode_line(AttemptHeader(attempt=Attempt(1, 0, 0, 0))), b'{"kind":"com'
    if seed % 2:
        last = encode_line(End(reason="done"))
    path.write_bytes(b"".join([first, *(line_of(random) for _ in range(1500)), last]))
    monkeypatch.setattr(scan, "TOGETHER", 10**9)
    plain = scanned(path)
    together = list[int]()
    take = scan._Scan._plain
    monkeypatch.setattr(scan._Scan, "_plain", lambda *given: (together.append(1), take(*given))[1])
    for least, size in ((1, 1 << 18), (1, 500), (3, 5000), (8, 1 << 18)):
        monkeypatch.setattr(scan, "TOGETHER", least)
        monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
        assert scanned(path) == plain
    assert len(together) > 1000


def test_lines_are_whole_where_their_sums_fit(tmp_path: Path) -> None:
    random, path = np.random.default_rng(0), tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(line_of(random) for _ in range(500)) + b',"crc":"00000000"}\n')
    (block,) = blocks_of(path)
    assert isinstance(block, Block)
    sums = [sum_of(block.line(place)) for place in range(len(block.ends))]
    assert block.whole.tolist() == [found is not None for found in sums]
    assert not block.whole.all() and block.whole.any()
    assert all(crc in (None, mine) for crc, mine in zip(sums, block.crc.tolist(), strict=True))
    upper = Block(0, block.line(0)[:-11] + block.line(0)[-11:-3].upper() + b'"}\n')
    assert upper.whole.tolist() == [sum_of(upper.line(0)) is not None]
