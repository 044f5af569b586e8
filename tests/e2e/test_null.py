"""A job without a model, over the whole path: two ranks, catalog, media that decode."""

from __future__ import annotations

import pandas as pd
import pytest
from cli_calls import published, rows_of

OPTIONS = (
    "model=null-engine", "slurm.executor=local", "slurm.ranks_per_node=2",
    "row_defaults.width=16", "row_defaults.height=16",
)  # fmt: skip
MANIFEST = [
    {"row_id": f"row-{i:02d}", "prompt": f"p{i}", "num_frames": 1 + i % 2 * 4, "num_steps": 5 + i}
    for i in range(12)
]


@pytest.mark.slow
def test_a_job_without_a_model_runs_twice_to_the_same_bits(new_job_folder) -> None:
    work = new_job_folder(MANIFEST)
    first = work.run(*OPTIONS)
    assert first.code == 0, first.err
    frame = rows_of(first.run)
    assert list(frame.status) == ["ok"] * 12
    assert list(frame.media_path.str.rpartition(".")[2]) == ["png", "mp4"] * 6
    # both were there; on a loaded machine one may have drawn all
    assert {*pd.read_parquet(first.run.catalog_runs).replica} == {0, 1}
    assert (frame.steps_computed == frame.num_steps).all()
    assert (frame.denoise_s > frame.num_steps * 0.0099).all()
    checked = work.here("verify", str(first.run.root), "--json")
    assert checked.code == 0, checked.out
    second = work.run(*OPTIONS, "slurm.ranks_per_node=1")
    assert published(second.run) == published(first.run)
