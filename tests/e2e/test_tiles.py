"""A run that decodes tile by tile: its own keys, the same frames."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from cli_calls import recorded, rows_of

from batchgen.ledger.status import read_status
from batchgen.paths import RunPaths

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


TWO = ("slurm.executor=local", "slurm.ranks_per_node=2", "system.parallel.ulysses=2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "said", "rung"),
    [("kill", "ReplicaFailed", ""), ("oom", "ReplicaOutOfMemory", "model")],
)
def test_a_rank_that_ends_in_a_decode_loses_no_row(
    new_job_folder, ends: str, said: str, rung: str
) -> None:
    """The one that follows, in the second row's: dead, or out of memory, so that the next attempt
    has one component at a time on its devices. The frames are those of one rank."""
    work = new_job_folder(3)
    plan = work.here("plan", str(work.job), *FRAMES, *TILED, *TWO).out
    assert "its 2 ranks share the 3 tiles of a decode" in " ".join(plan.split())
    ended = work.run(
        *FRAMES, *TILED, *TWO, "slurm.max_attempts=1",
        env={"BATCHGEN_FAILPOINT": f"decode.1:2:{ends}"},
    )  # fmt: skip
    assert ended.code == 1, ended.err
    run = RunPaths(next(work.root.glob("job-*")))
    (attempt,) = read_status(run).attempts
    assert (attempt.ended, attempt.memory_rung) == (said, rung)
    assert "rank 1 of 2 on" in attempt.error and "decoding row row-00" in attempt.error
    done = work.call("resume", str(run.root), "--json")
    assert done.code == 0, done.err
    assert recorded(run) == recorded(work.run(*FRAMES, *TILED).run)
    catalog = rows_of(run)
    assert {*catalog.memory_rung} <= {"", rung}
    spent = pd.read_parquet(run.catalog_runs)
    assert (spent.shared_decode_s > 0).all()
    assert sorted(catalog.steps_restored > 0) == [False, True, True]  # had all steps behind them
