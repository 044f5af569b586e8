"""Tables of caches: what serves a row, what is shipped, what a damaged file says."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from batchgen.caches.tables import Entry, Key, Tables, read, row_key, shipped, store, user_folder
from batchgen.errors import ConfigError
from batchgen.families.family import probe_request
from batchgen.request import Bucket

FIT = Key(
    strategy="planned",
    model="mine",
    solver="unipc",
    sigma_shift=3.0,
    num_steps=50,
    guidance_scale=3.0,
    computed=25,
)
ROW = replace(FIT, bucket="64x64x9", guidance_scale_2=3.0, true_cfg_scale=1.0)
ANY = replace(FIT, guidance_scale=None, guidance_range=(1.5, 6.0))


def entry(key: Key, number: int = 0) -> Entry:
    return Entry(key=key, content={"number": number})


def tables(folder: Path, *entries: Entry) -> Tables:
    store(folder, entries)
    return Tables(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"strategy": "teacache"},
        {"model": "another"},
        {"solver": "euler"},
        {"sigma_shift": 5.0},
        {"num_steps": 20},
        {"guidance_scale": 4.0},
        {"computed": 24},
    ],
)
def test_an_entry_serves_no_row_that_differs_in_what_it_was_made_for(
    change: dict[str, object], tmp_path: Path
) -> None:
    made = tables(tmp_path, entry(FIT))
    assert made.find(ROW) == entry(FIT)
    assert made.find(replace(ROW, **change)) is None  # type: ignore[arg-type]


def test_the_exact_guidance_is_nearer_than_a_fit_for_all(tmp_path: Path) -> None:
    made = tables(tmp_path, entry(ANY, 1), entry(FIT, 2))
    assert made.find(ROW) == entry(FIT, 2)
    for scale, found in ((1.5, True), (4.2, True), (6.0, True), (1.4, False), (6.1, False)):
        row = replace(ROW, guidance_scale=scale, guidance_scale_2=scale)
        assert (made.find(row) is not None) == found, scale
    assert made.find(replace(ROW, guidance_scale=2.0, guidance_scale_2=7.0)) is None


def test_the_first_key_and_the_first_folder_come_first(tmp_path: Path) -> None:
    by_name, by_digest = entry(FIT, 1), entry(replace(FIT, model="abc"), 2)
    store(tmp_path / "run", [by_name])
    store(tmp_path / "user", [by_digest, entry(FIT, 3)])
    made = Tables(tmp_path / "run", tmp_path / "user", tmp_path / "nowhere")
    assert made.find(replace(ROW, model="abc"), ROW) == by_digest
    assert made.find(replace(ROW, model="xyz"), ROW) == by_name


def test_the_newest_file_of_a_folder_comes_first(tmp_path: Path) -> None:
    for number in (3, 1, 2):
        os.utime(store(tmp_path, [entry(FIT, number)]), (number, number))
    found = Tables(tmp_path).find(ROW)
    assert found is not None and found.content["number"] == 3


def test_a_stored_entry_comes_back_by_its_digest(tmp_path: Path) -> None:
    made = tables(tmp_path, entry(ANY, 1), entry(FIT, 2))
    for one in (entry(ANY, 1), entry(FIT, 2)):
        assert made.by_digest(one.digest) == one
        assert len(one.digest) == 16
    assert entry(ANY, 2).digest != entry(FIT, 2).digest != entry(FIT, 1).digest
    with pytest.raises(ConfigError, match="cache_table: no table '00'"):
        made.by_digest("00")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[3]",
        '{"key": {}}',
        '[{"key": {"strategy": "planned"}, "content": {}}]',
        '[{"key": {"strategy": "planned", "model": "m", "colour": 1}, "content": {}}]',
        '[{"key": {"strategy": "planned", "model": ["m"]}, "content": {}}]',
        '[{"key": {"strategy": "planned", "model": "m"}, "content": []}]',
    ],
)
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.json: not a table of caches"):
        Tables(tmp_path)


def test_storing_twice_leaves_one_file(tmp_path: Path) -> None:
    assert store(tmp_path, [entry(FIT)]) == store(tmp_path, [entry(FIT)])
    assert len(list(tmp_path.iterdir())) == 1


def test_the_users_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_folder() == tmp_path / "batchgen" / "caches"
    store(user_folder(), [entry(FIT, 7)])
    assert Tables.usual().find(ROW) == entry(FIT, 7)


@pytest.mark.parametrize(("second", "found"), [(None, 3.0), (3.0, 3.0), (1.0, 1.0)])
def test_a_row_looks_for_what_it_is_drawn_with(second: float | None, found: float) -> None:
    """A second scale that is not given is the first."""
    one = replace(
        probe_request(Bucket(32, 32, 5)),
        solver="unipc",
        sigma_shift=3.0,
        num_steps=50,
        guidance_scale=3.0,
        guidance_scale_2=second,
    )
    key = row_key(one, "planned", "mine", 25)
    plain = {"use_dynamic_cfg": 0, "guidance_rescale": 0.0, "pixels": 1024}
    assert key == replace(ROW, bucket="32x32x5", guidance_scale_2=found, **plain)
    assert FIT.serves(key) and replace(FIT, guidance_scale_2=3.0).serves(key) == (found == 3.0)


# ----------------------------------------------------------------------------------------- shipped
def test_no_two_shipped_keys_are_equal_or_hold_the_same() -> None:
    entries = shipped().entries
    keys = Counter(one.key for one in entries)
    contents = Counter(json.dumps(dict(one.content), sort_keys=True) for one in entries)
    assert keys.total() == len(keys) == len(contents) > 0


@pytest.mark.parametrize(
    ("model", "first", "last"),
    [
        ("wan2.1-t2v-1.3b", -52186.2437, -0.0499875664),
        ("wan2.1-t2v-14b", -303318.725, -0.315583525),
        ("flux.1-dev", 498.651651, 0.264230861),
    ],
)
def test_published_polynomials_belong_to_their_models(
    model: str, first: float, last: float
) -> None:
    found = shipped().find(Key(strategy="teacache", model=model))
    assert found is not None
    assert len(found.content["polynomial"]) == 5
    assert (found.content["polynomial"][0], found.content["polynomial"][-1]) == (first, last)


@pytest.mark.parametrize(
    ("model", "count", "places"),
    [
        ("wan2.1-t2v-1.3b", 49, {0: 1.0124, 20: 0.99396, 39: 0.9741, 48: 0.81838}),
        ("wan2.1-t2v-14b", 49, {0: 1.02504, 20: 0.99271, 39: 0.97184, 48: 0.86111}),
        ("flux.1-dev", 27, {0: 1.21094, 13: 1.0, 26: 0.89062}),
    ],
)
def test_published_ratios_belong_to_their_models(
    model: str, count: int, places: dict[int, float]
) -> None:
    found = shipped().find(Key(strategy="magcache", model=model))
    assert found is not None
    ratios = found.content["ratios"]
    assert len(ratios) == count
    assert {place: ratios[place] for place in places} == places


def test_shipped_files_are_small_and_read() -> None:
    from batchgen.caches.tables import SHIPPED

    files = list(SHIPPED.glob("*.json"))
    assert sum(file.stat().st_size for file in files) < 200_000
    assert all(read(file) for file in files)
