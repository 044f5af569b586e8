"""Rows of one set of LoRA files come to a rank behind each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from toy_loras import save_lora

from batchgen.config.composing.compose import compose_job
from batchgen.planning.plan import make_plan
from batchgen.runner.submit import cut

JOB = Path(__file__).parents[3] / "jobs" / "demo.yaml"


def test_rows_of_one_cost_are_ordered_by_their_set(tmp_path: Path) -> None:
    """What takes longest is first, whatever it is drawn with."""
    from batchgen.tiny.models import make_transformer

    save_lora(tmp_path / "a.safetensors", make_transformer(), every=9)
    columns = {
        "prompt": [f"p{i}" for i in range(8)],
        "lora": ["", "a.safetensors@1", None, "a.safetensors@2"] * 2,
        "num_steps": [9, 9, 9, 9, 9, 50, 9, 9],
        "num_frames": [1] * 8,
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    job = compose_job(JOB, [f"manifest={tmp_path / 'rows.parquet'}", "slurm=inline"]).config
    plan = make_plan(job, tmp_path / "plan.parquet")
    order = cut(plan.path, np.arange(8), job, None).order
    assert np.argsort(order).tolist() == [5, 0, 2, 4, 6, 1, 3, 7]
