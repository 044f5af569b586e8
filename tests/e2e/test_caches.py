"""A run whose rows have step caches: told beforehand, counted in the catalog, kept by the gate."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_calls import make_job_folder, rows_of
from toy_flux import flux_spec, save_flux

from batchgen.caches.tables import Tables

STEPS = "row_defaults.num_steps=6"
CLOSED = ("system.cache.enabled=false", "system.cache.on_refused=ignore")
ROWS = [
    {"row_id": name, "prompt": "a red circle", "seed": 1, "cache_strategy": spelt, "cache_ratio": r}
    for name, spelt, r in [
        ("plain", None, None),
        ("exact", "uniform", 0.0),
        ("half", "Uniform", 0.5),
        ("more", "taylorseer", 0.3),
    ]
]


def test_rows_compute_what_was_expected_and_the_catalog_says_so(
    one_thread: None, tmp_path: Path
) -> None:
    job_folder = make_job_folder(tmp_path, ROWS)
    done = job_folder.run_here(STEPS)
    assert done.code == 0, done.err
    rows = rows_of(done.run).set_index("row_id")
    assert rows.cache_strategy.to_dict() == {
        "plain": "none",
        "exact": "uniform",
        "half": "uniform",
        "more": "taylorseer",
    }
    assert rows.steps_computed.tolist() == rows.steps_expected.tolist()
    assert rows.steps_total.tolist() == [12] * 4
    assert rows.steps_computed["half"] == 6 < rows.steps_computed["more"] < 12
    both = rows.steps_computed_cond + rows.steps_computed_uncond
    assert both.tolist() == rows.steps_computed.tolist()
    assert rows.cache_bytes["plain"] == 0 < rows.cache_bytes["half"]
    assert rows.cost_s["half"] < rows.cost_s["more"] < rows.cost_s["plain"]
    assert rows.frames_sha256["exact"] == rows.frames_sha256["plain"]
    assert rows.frames_sha256["half"] != rows.frames_sha256["plain"]
    again = job_folder.here("resume", str(done.run.root), *CLOSED)
    assert again.code == 2
    assert "system.cache.enabled" in again.err and "--rerender-changed" in again.err


def test_a_plan_says_what_caches_save_and_who_does_without(
    one_thread: None, tmp_path: Path
) -> None:
    job_folder = make_job_folder(tmp_path, ROWS)
    plan = ("plan", str(job_folder.job), STEPS)
    told = " ".join(job_folder.here(*plan).out.split())  # lines are broken anywhere
    assert "38 of 48 expected, caches save 21%" in told
    assert "uniform 0.5, 6 steps, guidance 3: 1 row, 50% computed" in told
    told = " ".join(job_folder.here(*plan, *CLOSED).out.split())
    assert "are drawn without: 2 for uniform, 1 for taylorseer" in told
    assert "caches save" not in told


def test_an_image_model_under_caches_and_what_a_pilot_measures_of_it(
    one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of each strategy that needs no coefficients, and several of some that need or use
    them, for which a pilot comes first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = save_flux(tmp_path / "flux", flux_spec())
    model = ("model=auto", f"model.weights={weights}", "model.text_encoder_2.max_tokens=32")
    size = ("row_defaults.width=64", "row_defaults.height=64", "row_defaults.num_frames=1")
    asks = (*model, *size, "row_defaults.num_steps=8")
    own = {"planned": {"cache_warmup": 1}, "seacache": {"cache_params": '{"threshold": 0.3}'}}
    free = ["none", "planned", "uniform", "taylorseer", "easycache", "seacache"]
    rows = [{"row_id": name, "cache_strategy": name} | own.get(name, {}) for name in free]
    rows += [
        {"row_id": f"{name}-{i}", "cache_strategy": name}
        for name in ("teacache", "first_block")
        for i in range(6)
    ]
    job_folder = make_job_folder(tmp_path, [row | {"prompt": row["row_id"]} for row in rows])
    refused = job_folder.run_here(*asks)
    assert refused.code == 2 and "system.cache.calibrate=true lets a pilot measure" in refused.err
    done = job_folder.run_here(*asks, "system.cache.calibrate=true")
    assert done.code == 0, done.err
    drawn = rows_of(done.run).set_index("row_id")
    assert {*drawn.status} == {"ok"}
    assert {*drawn.cache_table[free]} == {""}
    known = drawn.loc[free[:4]]
    assert known.steps_computed.tolist() == known.steps_expected.tolist() == [8, 4, 4, 4]
    fitted = drawn[drawn.cache_table != ""]
    found = {entry.digest: entry.key for entry in Tables(done.run.caches).entries}
    assert {key.bucket for key in found.values()} == {"64x64x1"}, "its schedule depends on it"
    assert fitted.cache_strategy.value_counts().to_dict() == {"teacache": 2, "first_block": 2}
    for row in fitted.itertuples():
        assert found[row.cache_table].strategy == row.cache_strategy
        assert row.steps_computed < row.steps_total
