"""A forward divided over ranks against the same on one rank."""

from __future__ import annotations

import pytest
from ranks import Ranks
from split_rig import divided

from batchgen.engine.parallel.mesh import Degrees
from batchgen.records import Bucket

LAYOUTS = [Degrees(ulysses=2), Degrees(ring=2)]


@pytest.mark.parametrize("degrees", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["wan", "wan22", "flux"])
def test_a_divided_forward_is_the_whole_one(ranks: Ranks, degrees: Degrees, name: str) -> None:
    frames = 1 if name == "flux" else 9
    for bucket, items in ((Bucket(64, 64, frames), 2), (Bucket(48, 48, frames), 1)):
        for seen in ranks.run(degrees, divided, name, bucket, items)[0]:
            assert seen.difference <= 1e-5
            assert seen.equal or degrees.ring > 1
