"""A run whose rows have step caches: told beforehand, counted in the catalog, kept by the gate."""

from __future__ import annotations

from pathlib import Path

from cli_calls import make_job_folder, rows_of

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
    assert "uniform 0.5, 6 steps, guidance 3: 1 rows, 50% computed" in told
    told = " ".join(job_folder.here(*plan, *CLOSED).out.split())
    assert "are drawn without: 2 for uniform, 1 for taylorseer" in told
    assert "caches save" not in told
