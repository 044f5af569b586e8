"""Which fit serves a row, of several that might."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from batchgen.caches.settings import Settings
from batchgen.caches.tables import SHIPPED, Entry, Key, Tables, store
from batchgen.config.schema import JobConfig
from batchgen.planning.fits import Drawing, Fits

DRAWING = Drawing(20, 3.0, None, 1.0, "unipc", 3.0, 64, 64, 9)
EXACT = Key(strategy="planned", model="w", num_steps=20, computed=10, guidance_scale=3.0)
WIDE = replace(EXACT, guidance_scale=None, guidance_range=(1.0, 5.0))
Found = Callable[..., Entry | None]


def fit(key: Key, steps: list[int]) -> Entry:
    content = {"steps": steps, "starts": [0], "leaps": [[[1.0], [[0.0], [0.0]]]] * len(steps)}
    return Entry(key=key, content=content)


@pytest.fixture
def found(tiny_job: JobConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Found:
    """What serves such a row of the folders `own`, then `user` and what is shipped."""

    def find(warmup: int = 0, drawing: Drawing = DRAWING) -> Entry | None:
        usual = Tables(tmp_path / "user", SHIPPED)
        monkeypatch.setattr(Tables, "usual", lambda: usual)
        fits = Fits(tiny_job, "w", Tables(tmp_path / "own"))
        return fits.find("planned", fits.row(Settings("planned", 0.5, warmup), drawing), drawing)

    return find


@pytest.mark.parametrize("folder", ["own", "user"])
def test_where_the_nearest_fit_cannot_be_followed_the_next_one_is(
    found: Found, folder: str, tmp_path: Path
) -> None:
    nearest, next_one = fit(EXACT, [0, *range(2, 11)]), fit(WIDE, [*range(10)])
    store(tmp_path / "own", [nearest])
    store(tmp_path / folder, [next_one])
    assert found() == nearest
    assert found(warmup=2) == next_one  # the nearest passes the second step over
    assert found(warmup=11) is None


def test_a_size_that_nothing_shipped_serves_is_left_to_a_users_fit(
    found: Found, tmp_path: Path
) -> None:
    """What is shipped is of this very guidance, and so nearer, but not of such small frames."""
    small = replace(DRAWING, width=32, height=32)
    assert found() is not None and found(drawing=small) is None
    mine = fit(replace(WIDE, model="tiny-wan", pixels_range=(1024.0, 1024.0)), [*range(10)])
    store(tmp_path / "user", [mine])
    assert found(drawing=small) == mine
    assert found() not in (None, mine)
