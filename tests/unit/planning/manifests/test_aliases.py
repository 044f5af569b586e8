"""Aliases found in sorted runs, and ids found twice, are those that a dictionary finds."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from batchgen.planning.manifests import rowids
from batchgen.planning.manifests.problems import Problems
from batchgen.planning.manifests.rowids import Aliases, RowIds


@pytest.mark.parametrize("seed", range(3))
def test_the_first_row_with_a_key_is_found(seed: int) -> None:
    """In batches of any length, so that runs are merged, with many equal keys and few."""
    random = np.random.default_rng(seed)
    aliases, seen, first = Aliases(), dict[bytes, int](), 0
    for _ in range(20):
        numbers = random.integers(0, 100 * 10**seed, int(random.integers(0, 50))).tolist()
        digests = [hashlib.sha256(b"%d" % number).digest() for number in numbers]
        plain = [seen.setdefault(digest, row) for row, digest in enumerate(digests, first)]
        assert aliases.originals(first, digests).tolist() == plain
        assert aliases.unique == len(seen)
        first += len(digests)
    assert 0 < len(seen) < first
    assert all(aliases._parts), "keys of all parts"


def test_keys_that_share_a_half_are_told_apart() -> None:
    keys = [high * 8 + low * 8 for high in (b"a", b"b") for low in (b"x", b"y")]
    aliases = Aliases()
    assert aliases.originals(0, [key + bytes(16) for key in keys]).tolist() == [0, 1, 2, 3]
    assert aliases.originals(4, [keys[0] + bytes(16)]).tolist() == [0]


def test_all_ids_twice_in_many_small_pieces() -> None:
    ids, problems = RowIds(), Problems()
    for first in (*range(0, 90, 3), *range(0, 90, 3)):
        ids.add(pa.array([f"row-{first + i}" for i in range(3)]))
    ids.add(pa.array(["alone"]))
    ids.report_duplicates(problems)
    assert problems.count == 90


@pytest.mark.parametrize("same", [False, True])
def test_ids_found_twice(same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the hashes of different ids are the `same`."""
    if same:
        monkeypatch.setattr(rowids, "hash", len, raising=False)
    ids, problems = RowIds(), Problems()
    for batch in (["a", "b"], [], ["c", "b", "d"], ["a", "e"]):
        ids.add(pa.array(batch, pa.string()))
    ids.report_duplicates(problems)
    told = [(problem.row, problem.reason) for problem in problems.first]
    assert told == [(3, "row 1 has it already"), (5, "row 0 has it already")]
    assert problems.count == 2
    none = Problems()
    RowIds().report_duplicates(none)
    assert none.count == 0
