"""The second attention op: xfuser's USP where it can be loaded, on a CPU through a shim."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
from ranks import Ranks
from xfuser_shim import divided_by_xfuser

from batchgen.config.degrees import Degrees
from batchgen.engine.parallel.attention import attention_op
from batchgen.errors import ConfigError
from batchgen.request import Bucket

present = find_spec("xfuser") is not None


@pytest.mark.skipif(present, reason="xfuser is installed")
def test_it_is_refused_with_the_reason_where_it_cannot_load() -> None:
    mesh: Any = None  # it comes as far as the import
    with pytest.raises(ConfigError, match=r"cannot be loaded here \(ModuleNotFoundError"):
        attention_op("xfuser", mesh)


@pytest.fixture(scope="module")
def own_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """The shim stays in a process: these ranks are not the other tests'."""
    found = Ranks(tmp_path_factory.mktemp("xfuser"), most=4)
    yield found
    found.close()


LAYOUTS = [Degrees(ulysses=2), Degrees(ring=2), Degrees(ring=2, ulysses=2)]


@pytest.mark.skipif(not present, reason="xfuser is not installed")
@pytest.mark.parametrize("degrees", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["wan", "flux"])
def test_it_draws_what_one_rank_draws(own_ranks: Ranks, degrees: Degrees, name: str) -> None:
    bucket = Bucket(64, 64, 9 if name == "wan" else 1)
    for seen in own_ranks.run(degrees, divided_by_xfuser, name, bucket, 2)[0]:
        assert seen.difference <= 1e-5
        assert "all-to-all over ulysses" not in seen.sent  # it does its own


@pytest.mark.skipif(not present, reason="xfuser is not installed")
def test_tokens_that_do_not_come_out_even_are_refused(own_ranks: Ranks) -> None:
    answers = own_ranks.tried(Degrees(ulysses=2), divided_by_xfuser, "wan", Bucket(48, 48, 9), 1)
    for ok, error in answers:
        assert not ok
        assert "27 tokens do not over 2 ranks; attention_op=torch takes any number" in error
