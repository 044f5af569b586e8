"""A run that decodes tile by tile: its own keys, the same frames."""

from __future__ import annotations

import numpy as np
import pytest
from cli_calls import rows_of

FRAMES = (
    "output.format=npy",
    *(f"row_defaults.{name}" for name in ("width=64", "height=160", "num_frames=5", "num_steps=2")),
)
TILED = ("system.vae.tiled=true", "system.vae.stride=64")


@pytest.mark.slow
def test_tiles_are_in_the_key_and_show_no_seam(new_job_folder) -> None:
    work = new_job_folder(2)
    whole, tiled = work.run_here(*FRAMES), work.run_here(*FRAMES, *TILED)
    assert (whole.code, tiled.code) == (0, 0), whole.err + tiled.err
    there, here = rows_of(whole.run), rows_of(tiled.run)
    assert set(there.row_key).isdisjoint(here.row_key)
    for a, b in zip(there.media_path, here.media_path, strict=True):
        frames = [
            np.load(done.run.root / path).astype(int) for done, path in ((whole, a), (tiled, b))
        ]
        assert np.abs(frames[0] - frames[1]).max() <= 1
    said = work.here("plan", str(work.job), *FRAMES, *TILED).out
    assert "changes pixels" in said and "tile=208, stride=64" in " ".join(said.split())
