"""Who holds which tokens, items and heads."""

from __future__ import annotations

import pytest

from batchgen.config.degrees import Degrees
from batchgen.engine.parallel.cross import short_end
from batchgen.engine.parallel.mesh import place_in
from batchgen.engine.parallel.shares import Joint, shares
from batchgen.engine.parallel.split import even, part
from batchgen.families.sequence import legal_ulysses, padded_heads


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("total", [1, 3, 16, 27, 48, 66, 1001])
def test_every_token_is_one_ranks_own(total: int, ranks: int) -> None:
    held = shares(total, ranks)
    own = [place for share in held for place in share.tokens[: share.own]]
    assert own == list(range(total))
    assert max(share.own for share in held) - min(share.own for share in held) <= 1
    for share in held:
        assert len(share.tokens) == share.held >= min(16, total)
        assert set(share.tokens) <= set(range(total))


def test_a_share_has_as_many_rows_as_keep_the_bits_of_the_whole() -> None:
    assert [share.held for share in shares(16, 2)] == [16, 16]
    assert [share.held for share in shares(8, 2)] == [8, 8]  # alone it is a product of 8 rows
    assert [share.held for share in shares(66, 4)] == [17, 17, 16, 16]


def test_streams_are_put_back_into_the_order_of_one_process() -> None:
    joint = Joint((5, 4), ranks=2)  # text, image: 3 + 2 and 2 + 2 of each rank
    assert joint.positions(range(2)) == [0, 1, 2, 5, 6, 3, 4, 7, 8]
    assert [joint.own(rank) for rank in range(2)] == [5, 4]
    # Each rank holds 5 of the text and 4 of the image: copies stand behind each stream.
    assert joint.kept(0) == [0, 1, 2, 5, 6]
    assert joint.restored(0) == [0, 1, 2, 0, 0, 3, 4, 3, 3]
    assert joint.kept(1) == [0, 1, 5, 6]


def test_items_are_divided_and_every_rank_draws_as_many() -> None:
    items = list("abcde")
    assert [list(even(items, 2, place)) for place in range(2)] == [["a", "b", "c"], ["d", "e"]]
    assert [part(items, 2, place) for place in range(2)] == [list("abc"), list("dee")]
    assert [part(items[:1], 4, place) for place in range(4)] == [["a"]] * 4


def test_ulysses_is_innermost_and_cfg_outermost() -> None:
    degrees = Degrees(cfg=2, ring=2, ulysses=2)
    assert [place_in(degrees, rank) for rank in (0, 1, 2, 4)] == [
        (0, 0, 0),
        (0, 0, 1),
        (0, 1, 0),
        (1, 0, 0),
    ]


def test_heads_are_divided_or_padded() -> None:
    assert legal_ulysses(6, 8) == (1, 2, 3, 6)
    assert legal_ulysses(40, 8) == (1, 2, 4, 5, 8)
    assert [padded_heads(6, degree) for degree in (2, 4, 8)] == [6, 8, 8]


def test_the_last_block_of_queries_is_short_where_one_to_three_are_left() -> None:
    assert [short_end(total) for total in (3, 32, 33, 35, 36, 66)] == [0, 0, 1, 3, 0, 2]
    assert [short_end(total) for total in (195, 225, 770, 32_760)] == [3, 0, 2, 0]
