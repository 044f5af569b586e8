"""`batchgen run JOB --preview N`: some rows at fewer steps, in a run of their own."""

from __future__ import annotations

import pyarrow as pa
from cli_calls import JobFolder, rows_of

from batchgen.planning.preview import spread

NULL = ("model=null-engine", "row_defaults.num_frames=1")
ROWS = [
    {"prompt": f"p{i % 11}", "num_steps": 2 + i, "width": 16 if i < 9 else 32, "height": 16,
     "tags": "rare" if i == 5 else None, "shot": i}
    for i in range(12)
]  # fmt: skip


def test_a_preview_is_a_run_of_its_own(new_job_folder) -> None:
    work: JobFolder = new_job_folder(ROWS)
    options = (*NULL, "carry_columns=[shot]", "locked=[num_steps]", "row_defaults.num_steps=30")
    plain = [{k: v for k, v in row.items() if k != "num_steps"} for row in ROWS]
    work = new_job_folder(plain)
    done = work.run_here(*options, "--preview", "3")
    assert done.code == 0, done.err
    seen = rows_of(done.run)
    assert done.run.root.name.startswith("job-preview-")
    assert list(seen.num_steps) == [10] * 3
    assert {*seen.bucket} == {"16x16x1", "32x16x1"} and "rare" in {*seen.tags}
    whole = work.run_here(*options, "row_defaults.num_steps=1")
    assert whole.code == 0 and len(rows_of(whole.run)) == 12
    both = rows_of(whole.run).set_index("row_id").loc[seen.row_id]
    assert list(both.seed) == list(seen.seed) and list(both["shot"]) == list(seen["shot"])
    assert (both.attempt == "s1t0r0p0").all()


def test_short_rows_keep_their_steps_and_caches_are_left_out(new_job_folder) -> None:
    work: JobFolder = new_job_folder(ROWS)
    cached = ("row_defaults.cache_strategy=uniform", "row_defaults.cache_ratio=0.5")
    done = work.run_here("carry_columns=[shot]", *NULL, *cached, "--preview", "99")
    assert done.code == 0, done.err
    seen = rows_of(done.run)
    assert len(seen) == 12 and (seen.cache_strategy == "none").all()
    steps = {row: (min(2 + row, max(4, -(-(2 + row) // 3)))) for row in range(12)}
    assert dict(zip(seen["shot"], seen.num_steps, strict=True)) == steps


def test_a_count_of_none_is_refused(new_job_folder) -> None:
    work: JobFolder = new_job_folder(2)
    done = work.here("run", str(work.job), *NULL, "--preview", "0")
    assert done.code == 2 and "--preview: 0 is not above 0" in done.err
    assert not work.root.exists()


def test_each_group_is_met_before_any_is_met_twice() -> None:
    plan = pa.table({
        "bucket": ["a"] * 90 + ["b"] * 6 + ["c"] * 4,
        "tags": [None] * 95 + ["x"] * 5,
        "alias_of": pa.array([None] * 99 + ["row"], pa.string()),
    })  # fmt: skip
    assert spread(plan, 4) == [0, 90, 95, 96]
    assert spread(plan, 6) == [0, 45, 90, 92, 95, 96]
    assert spread(plan, 200) == list(range(99))
