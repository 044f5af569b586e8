"""Aliases found in a table of keys, and ids found twice, are those that a dictionary finds."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from batchgen.errors import ManifestError
from batchgen.planning.manifests import rowids
from batchgen.planning.manifests.problems import Problems
from batchgen.planning.manifests.rowids import Aliases, RowIds


@pytest.mark.parametrize("seed", range(3))
def test_the_first_row_with_a_key_is_found(seed: int) -> None:
    """In batches of any length, with many equal keys and few, the table as full as it may be."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 50, 20).tolist()
    aliases, seen, first = Aliases(sum(lengths)), dict[bytes, int](), 0
    for length in lengths:
        numbers = random.integers(0, 100 * 10**seed, length).tolist()
        digests = [hashlib.sha256(b"%d" % number).digest() for number in numbers]
        plain = [seen.setdefault(digest, row) for row, digest in enumerate(digests, first)]
        assert aliases.originals(first, digests).tolist() == plain
        assert aliases.unique == len(seen)
        first += len(digests)
    assert 0 < len(seen) < first


def test_keys_that_share_a_half_are_told_apart() -> None:
    keys = [high * 8 + low * 8 for high in (b"a", b"b") for low in (b"x", b"y")]
    aliases = Aliases(5)
    assert aliases.originals(0, [key + bytes(16) for key in keys]).tolist() == [0, 1, 2, 3]
    assert aliases.originals(4, [keys[0] + bytes(16)]).tolist() == [0]


@pytest.fixture(params=["in memory", "in a file"])
def ids(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[RowIds]:
    """Of no row yet."""
    if request.param == "in a file":
        monkeypatch.setattr(rowids, "_IN_MEMORY", 1)
    monkeypatch.setattr(rowids, "_STRETCH", 7)
    with closing(RowIds(tmp_path)) as found:
        yield found


def test_more_rows_than_were_to_be_are_refused() -> None:
    """A full table would be searched for ever."""
    with pytest.raises(ManifestError, match="has grown"):
        Aliases(2).originals(0, [bytes([n]) * 32 for n in range(3)])


def test_a_row_takes_few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """22 for its key and 8 for the hash of its id; with sorted runs of keys, and hashes beside
    their sorted copy, it was 41 and the id."""
    monkeypatch.setattr(rowids, "_IN_MEMORY", 1)
    monkeypatch.setattr(rowids, "_STRETCH", 1000)
    _, small, large = map(peak_of, (1000, 20_000, 60_000))  # the first: imports
    assert (large - small) / 40_000 < 32


def peak_of(rows: int) -> int:
    """Bytes of Python and numpy while keys and ids are compared."""
    tracemalloc.start()
    try:
        with closing(RowIds()) as ids:
            aliases = Aliases(rows)
            for first in range(0, rows, 1000):
                numbers = range(first, first + 1000)
                aliases.originals(first, [hashlib.sha256(b"%d" % n).digest() for n in numbers])
                ids.add(pa.array([f"row-{number}" for number in numbers]))
            ids.report_duplicates(Problems())
        assert aliases.unique == rows
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_all_ids_twice_in_many_small_pieces(ids: RowIds) -> None:
    problems = Problems()
    for first in (*range(0, 90, 3), *range(0, 90, 3)):
        ids.add(pa.array([f"row-{first + i}" for i in range(3)]))
    ids.add(pa.array(["alone"]))
    ids.report_duplicates(problems)
    assert problems.count == 90


@pytest.mark.parametrize("same", [False, True])
def test_ids_found_twice(same: bool, ids: RowIds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the hashes of different ids are the `same`."""
    if same:
        monkeypatch.setattr(rowids, "hash", len, raising=False)
    problems = Problems()
    for batch in (["a", "b"], [], ["c", "b", "d"], ["a", "e"]):
        ids.add(pa.array(batch, pa.string()))
    ids.report_duplicates(problems)
    told = [(problem.row, problem.reason) for problem in problems.first]
    assert told == [(3, "row 1 has it already"), (5, "row 0 has it already")]
    assert problems.count == 2


def test_no_ids_are_no_duplicates(ids: RowIds) -> None:
    none = Problems()
    ids.report_duplicates(none)
    assert none.count == 0


def test_an_id_is_found_by_its_row(ids: RowIds) -> None:
    """Also in a slice of longer ones, and between rows that are added."""
    names = [f"{'x' * (row % 5)}ä{row}" for row in range(40)]
    whole = pa.array(["before", *names, "behind"])
    for begin, end in ((0, 1), (1, 30), (30, 40)):
        ids.add(whole.slice(1 + begin, end - begin))
        assert [ids.of(row) for row in range(end)] == names[:end]
    assert ids.rows == 40
