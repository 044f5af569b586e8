"""`output.geometry=pad`: the media are of the size that was asked for, whatever the model draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_calls import write_manifest

from batchgen.cli.main import main
from batchgen.media import formats
from batchgen.media.cut import cut_to
from batchgen.request import Bucket

JOB = """\
defaults: [base, {model: null-engine}, {override slurm: inline}, _self_]
manifest: rows.parquet
row_defaults: {num_steps: 1, guidance_scale: 1.0}
output: {root_dir: out, geometry: pad}
"""


def test_the_middle_and_the_beginning_are_kept() -> None:
    frames = np.arange(5 * 16 * 32 * 3, dtype=np.uint8).reshape(5, 16, 32, 3)
    cut = cut_to(frames, Bucket(20, 15, 2))
    assert np.array_equal(cut, frames[:2, 0:15, 6:26])
    assert cut.flags.c_contiguous


def test_media_have_the_size_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Odd sizes too, in every kind of media, by the row and by the job."""
    monkeypatch.chdir(tmp_path)
    sizes = [(103, 50, 2), (112, 64, 5), (97, None, 1)]
    rows = [
        {"row_id": f"r{i}", "prompt": "p", "width": w, "height": h, "num_frames": n}
        for i, (w, h, n) in enumerate(sizes)
    ]
    write_manifest(tmp_path / "rows.parquet", rows)
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    assert main(["run", str(job), "row_defaults.height=33"]) == 0
    (run,) = (tmp_path / "out").iterdir()
    frame = pd.read_parquet(run / "catalog" / "rows").sort_values("row_id")
    asked = frame[["requested_width", "requested_height", "requested_num_frames"]]
    assert asked.values.tolist() == [[103, 50, 2], [112, 64, 5], [97, 33, 1]]
    drawn = frame[["width", "height", "num_frames"]].values.tolist()
    assert drawn == [[112, 64, 2], [112, 64, 5], [112, 48, 1]], "this model takes any length"
    assert frame.media_frames.tolist() == [2, 5, 1]
    for row, (width, height, count) in zip(frame.itertuples(), asked.values, strict=True):
        media = formats.get(row.format).read(run / row.media_path)
        assert media.shape == (count, height, width, 3)
    assert main(["verify", str(run)]) == 0
