"""The contact sheet of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from cli_calls import make_job_folder

from batchgen.tiny.sheet import CAPTION, CELL, COLUMNS, FRAMES, GAP, contact_sheet


def test_a_sheet_shows_frames_apart_below_their_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": "a red circle moving left"}, {"prompt": "noise", "num_frames": 1}]
    job_folder = make_job_folder(tmp_path, rows)
    run = job_folder.run("model=null-engine").run
    sheet = np.asarray(contact_sheet(run.root)).astype(int)
    assert sheet.shape == (CAPTION + CELL, COLUMNS * FRAMES * (CELL + GAP), 3)
    clip, image = np.split(sheet, COLUMNS, axis=1)
    cells = clip[CAPTION:].reshape(CELL, FRAMES, CELL + GAP, 3)
    assert (cells[:, :, CELL:] == 255).all()  # the gaps
    assert all(cells[:, place, :CELL].std() > 20 for place in range(FRAMES))
    assert (clip[:CAPTION] < 128).any()  # the prompt
    assert image[CAPTION:, :CELL].std() > 20 and (image[CAPTION:, CELL:] == 255).all()
