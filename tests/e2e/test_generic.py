"""Runs of pipelines that have no family, from their checkpoints alone."""

from __future__ import annotations

import hashlib
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_calls import make_job_folder, recorded, rows_of
from PIL import Image
from quick_cases import first_quick
from toy_engine import save_small
from toy_generic import GENERIC_TOYS, PARAMS, SET_PARAMS, pipeline_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers'
ROWS = [
    {
        "row_id": f"row-{i}",
        "prompt": f"a red cat {i}",
        "negative_prompt": (None, "tree")[i % 2],
        "seed": i,
        "width": 64,
        "height": 64,
        "num_frames": 1,
        "num_steps": 3 + i,
    }
    for i in range(3)
]


@pytest.mark.parametrize("name", first_quick(sorted(GENERIC_TOYS), 1))
def test_images_of_a_pipeline_without_a_family(one_thread: None, tmp_path: Path, name: str) -> None:
    folder = GENERIC_TOYS[name](tmp_path / "model")
    job_folder = make_job_folder(tmp_path, ROWS)
    given = ("model=auto", f"model.weights={folder}", *SET_PARAMS, "row_defaults.num_frames=1")
    done = job_folder.run_here(*given)
    assert done.code == 0, done.err
    rows, pipeline = rows_of(done.run), pipeline_of(folder)
    assert list(rows.status) == ["ok"] * 3
    for row in rows.itertuples():
        (image,) = pipeline(
            row.prompt,
            negative_prompt=row.negative_prompt,
            width=64,
            height=64,
            num_inference_steps=row.num_steps,
            guidance_scale=4.5,  # the call's own default
            generator=torch.Generator().manual_seed(row.seed),
            **PARAMS,
        ).images
        assert row.frames_sha256 == hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
        assert row.media_path.endswith(".png")
        drawn = np.asarray(Image.open(done.run.root / row.media_path))
        assert np.array_equal(drawn, np.asarray(image))
        assert (row.steps_computed, row.batch_size_mean) == (row.num_steps, 1.0)
        assert row.denoise_s > 0 and row.decode_s == 0
    planned = job_folder.here("plan", str(job_folder.job), *given, "--json")
    assert planned.json["forecast"]["basis"].startswith("measured: 3 rows")


@pytest.mark.slow
def test_clips_are_mp4_and_a_killed_run_goes_on_with_what_is_left(
    one_thread: None, tmp_path: Path
) -> None:
    """A rank dies at its second commit: the first row is not drawn again."""
    folder, clips = save_small(tmp_path / "model"), [row | {"num_frames": 5} for row in ROWS]
    given = ("model=generic", f"model.weights={folder}")
    whole, cut = (
        make_job_folder(made, clips)
        for made in (tmp_path / "whole", tmp_path / "cut")
        if not made.mkdir()
    )
    done = whole.run_here(*given)
    assert done.code == 0, done.err
    killed = cut.run(
        *given, "slurm.max_attempts=1", env={"BATCHGEN_FAILPOINT": "journal.before_append:2:kill"}
    )
    assert killed.code == -signal.SIGKILL
    resumed = cut.here("resume", "latest", "--root", str(cut.root), "--json")
    assert resumed.code == 0, resumed.err
    assert recorded(resumed.run) == recorded(done.run)
    rows = rows_of(resumed.run)
    assert all(path.endswith(".mp4") for path in rows.media_path)
    assert rows.attempt.nunique() == 2
    attempts = pd.read_parquet(resumed.run.root / "catalog" / "runs.parquet")
    assert attempts.forwards.sum() == sum(rows.num_steps[rows.attempt == rows.attempt.max()])
