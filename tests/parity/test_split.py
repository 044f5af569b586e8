"""A forward divided over ranks against the same on one rank, for every family and layout."""

from __future__ import annotations

import re
from typing import Any

import pytest
from quick_cases import first_quick
from ranks import Ranks
from toy_split import (
    CASES,
    QUICK,
    SPECS,
    Seen,
    adapted,
    divided,
    experts,
    failing,
    further,
    kernels_keep_bits,
    partly,
    radially,
    recalled,
    takes_lora,
    three_branches,
)

from batchgen.config.degrees import Degrees
from batchgen.families.family import family_names, family_spec
from batchgen.families.sequence import sent_around_ring, sent_in_all_to_all

FLOAT = 4  # bytes
LAYOUTS = {
    f"cfg{d.cfg}-ring{d.ring}-ulysses{d.ulysses}": d
    for d in (
        *(Degrees(cfg=2), Degrees(ring=2), Degrees(ulysses=2)),
        *(Degrees(ring=4), Degrees(ulysses=4), Degrees(ring=2, ulysses=2)),
        *(Degrees(cfg=2, ulysses=2), Degrees(cfg=2, ring=2), Degrees(cfg=4)),
    )
}


# Of those of two axes one is quick, which does what `cfg` alone does; four ranks along one axis do
# what two do.
SLOW = {
    "cfg2-ring1-ulysses1",
    "cfg1-ring4-ulysses1",
    "cfg1-ring1-ulysses4",
    "cfg2-ring2-ulysses1",
    "cfg4-ring1-ulysses1",
}
SLOW |= {"cfg1-ring2-ulysses2"}
FEW = ["cfg2-ring1-ulysses2", "cfg2-ring1-ulysses1", "cfg1-ring2-ulysses1"]
assert LAYOUTS.keys() >= {*SLOW, *FEW}


def ways(way: str) -> list[Any]:
    """The names that quick tests have, and the others, which are slow."""
    return [
        pytest.param(QUICK[way], id="some"),
        pytest.param(further(way), id="further", marks=pytest.mark.slow),
    ]


def test_every_family_whose_forwards_are_divided_is_here() -> None:
    models = {spec.family for spec in SPECS.values()}
    assert models == {name for name in family_names() if not family_spec(name).OWN_ENGINE}
    assert CASES.keys() == SPECS.keys()


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param((n, False), marks=pytest.mark.slow if n in SLOW else ()) for n in LAYOUTS),
        *(pytest.param((n, True), marks=pytest.mark.slow) for n in FEW),
    ],
    ids=lambda param: f"{param[0]}{', further' * param[1]}",
)
def layout(request: pytest.FixtureRequest, ranks: Ranks) -> tuple[Degrees, list[list[Seen]]]:
    """A layout and what its ranks saw of every case, or of those that no quick test has."""
    name, more = request.param
    degrees = LAYOUTS[name]
    return degrees, ranks.run(degrees, divided, further("divided") if more else QUICK["divided"])


def test_every_rank_gets_what_one_rank_alone_draws(
    layout: tuple[Degrees, list[list[Seen]]],
) -> None:
    """Bit for bit, unless keys go around the ring or this machine's kernels do not keep bits; and
    the test of the split says which."""
    degrees, ranks = layout
    exact = degrees.ring == 1 and kernels_keep_bits()
    unequal = [seen for seen in ranks[0] if not seen.equal]
    print(degrees, "not bit-equal:", [(seen.name, seen.difference) for seen in unequal])
    for seen in (seen for rank in ranks for seen in rank):
        assert seen.difference <= 1e-5, seen
        assert seen.told == "not needed" if degrees.sequence == 1 else seen.told != "not needed"
        assert seen.equal or not exact, seen
        assert seen.equal or seen.told == "failed", seen
        assert seen.told != "failed" or not seen.equal or degrees.cfg > 1, seen


def test_a_rank_sends_what_the_formulas_say(layout: tuple[Degrees, list[list[Seen]]]) -> None:
    """On average over the ranks: where tokens do not come out even, some send one more."""
    degrees, ranks = layout
    for at, case in enumerate(ranks[0]):
        model = SPECS[case.name]
        width = family_spec(model.family).width(model)
        heads = family_spec(model.family).heads(model)
        if heads % degrees.ulysses:
            width = width // heads * -(-heads // degrees.ulysses) * degrees.ulysses
        tokens = sum(rank[at].attended for rank in ranks)
        swapped = sent_in_all_to_all(tokens, width, degrees.ulysses, degrees.ring)
        passed = sent_around_ring(tokens, width, degrees.ring, degrees.ulysses)
        sent = [rank[at].sent for rank in ranks]
        assert sum(one.get("all-to-all over ulysses", 0) for one in sent) == FLOAT * swapped
        assert sum(one.get("shift over ring", 0) for one in sent) == FLOAT * passed


@pytest.mark.parametrize("names", ways("partly"))
@pytest.mark.parametrize("name", first_quick(FEW, 1))
def test_what_ranks_keep_of_a_forward_stands_in_for_it(
    ranks: Ranks, name: str, names: tuple[str, ...]
) -> None:
    """As on one rank: to the bit where a divided forward is."""
    degrees = LAYOUTS[name]
    exact = degrees.ring == 1 and kernels_keep_bits()
    for rank in ranks.run(degrees, partly, names):
        for case, apart in rank.items():
            assert apart == 0 if exact else apart <= 1e-5, case


@pytest.mark.parametrize("degrees", [Degrees(cfg=2), Degrees(cfg=2, ulysses=2)], ids=str)
def test_a_row_of_three_branches_shares_a_pack_with_a_row_of_one(
    ranks: Ranks, degrees: Degrees
) -> None:
    assert ranks.run(degrees, three_branches) == [[True, True]] * degrees.replica


@pytest.mark.parametrize("names", ways("recalled"))
@pytest.mark.parametrize(
    "degrees",
    [Degrees(cfg=2), Degrees(ring=2), Degrees(cfg=2, ulysses=2)],
    ids=str,
)
def test_divided_forwards_are_the_same_with_what_is_recalled(
    ranks: Ranks, degrees: Degrees, names: tuple[str, ...]
) -> None:
    for apart in ranks.run(degrees, recalled, names):
        assert len(apart) == len(names) * 3 * 2
        assert max(apart) <= (0 if kernels_keep_bits() else 1e-5)


@pytest.mark.parametrize("names", ways("adapted"))
@pytest.mark.parametrize(
    "degrees",
    first_quick([Degrees(ulysses=2), Degrees(ring=2), Degrees(cfg=2)], 1),
    ids=str,
)
def test_divided_forwards_are_the_same_with_adapters(
    ranks: Ranks, degrees: Degrees, names: tuple[str, ...]
) -> None:
    """Whose factors are products of few outputs."""
    exact = degrees.ring == 1 and kernels_keep_bits()
    served = [name for name in names if takes_lora(name)]
    for found in ranks.run(degrees, adapted, served):
        assert len(found) == sum(len(experts(name)) for name in served)
        for divided_from_whole, with_from_without in found:
            assert divided_from_whole <= (0 if exact else 1e-5) < with_from_without


def test_kernels_see_all_tokens_in_order_when_those_are_divided(ranks: Ranks) -> None:
    for from_whole, from_dense in ranks.run(Degrees(ulysses=2), radially):
        assert from_whole <= (0 if kernels_keep_bits() else 1e-5) < from_dense


def test_a_failure_inside_a_divided_forward_names_rank_rows_and_collective(ranks: Ranks) -> None:
    (ok, waited), (fine, failed) = ranks.tried(Degrees(ulysses=2), failing)
    assert not ok and not fine
    assert re.search(
        "rank 1 of 2 failed in a forward of rows self-test, after its all-to-all over ulysses: "
        "ValueError: a wire fell out",
        failed,
    )
    assert "DividedForwardFailed: rank 0 of 2 failed in a forward of rows self-test" in waited
