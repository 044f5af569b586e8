"""A device that is out of memory: what the run says of it, and where later attempts start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli_calls import make_job_folder, recorded, rows_of
from toy_engine import PACKED

from batchgen.ledger.climbs import climbs_before
from batchgen.ledger.intent import read_intent
from batchgen.ledger.status import read_status
from batchgen.paths import RunPaths
from batchgen.records import Attempt, Climb

ROWS = [{"row_id": f"row-{n}", "prompt": f"a red circle {n}", "seed": n} | PACKED for n in range(4)]
NO_RETRY = "slurm.row_retries=0"
TWO = ("slurm.executor=local", "slurm.ranks_per_node=2", "system.parallel.ulysses=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[Any, ...]]:
    """What a device with room makes of the rows."""
    return recorded(make_job_folder(tmp_path_factory.mktemp("whole"), ROWS).run_here().run)


def attempts(run: RunPaths) -> pd.DataFrame:
    return pd.read_parquet(run.catalog_runs).sort_values("attempt").reset_index(drop=True)


def points(name: str, *passes: int) -> str:
    return ",".join(f"memory.{name}:{n}:oom" for n in passes)


def slow(short: str, rung: str) -> Any:
    return pytest.param(short, rung, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("short", "rung"),
    [
        slow(points("move", 1, 2), "model"),  # while loading
        slow(points("move", 1, 2, 3, 4), "stream"),  # and again for its first stage
        slow(points("encode", 1, 2), "model"),
        slow(points("encode", 1, 2, 3), "stream"),
        slow(points("denoise", 1), "free"),
        slow(points("denoise", 1, 2), "smaller"),
        slow(points("denoise", *range(1, 9)), "model"),  # 8 items, 4, 2, 1: two tries each
        (points("denoise", *range(1, 10)), "stream"),
        slow(points("decode", 1, 2), "model"),
    ],
)
def test_every_rung_draws_the_same_rows(
    new_job_folder, fail_at, whole: set[tuple[Any, ...]], short: str, rung: str
) -> None:
    work = new_job_folder(ROWS)
    fail_at(short)
    done = work.run_here()
    assert done.code == 0, done.err
    assert recorded(done.run) == whole
    rows = rows_of(done.run)
    assert rung in {*rows.memory_rung} <= {rung, "", "free"}
    assert attempts(done.run).memory_rung.tolist() == [rung]
    told = f"short of memory: {rung}"
    assert (told in work.here("status", str(done.run.root)).out) is (rung != "free")


def test_a_row_that_fits_nowhere_fails_and_a_later_attempt_starts_on_the_last_rung(
    new_job_folder, fail_at, whole: set[tuple[Any, ...]]
) -> None:
    """Ten tries: of eight items, four, two and one, twice each, then on the two last rungs."""
    work = new_job_folder(ROWS)
    fail_at(points("denoise", *range(1, 11)))
    done = work.run_here(NO_RETRY)
    assert done.code == 1
    rows = rows_of(done.run)
    assert rows.status.tolist() == ["failed", "ok", "ok", "ok"]
    failed = rows.iloc[0]
    assert failed.error_type == "OutOfMemory"
    assert failed.error == (
        "denoise: the device is out of memory, tried free, smaller, model, stream: "
        "failpoint memory.denoise"
    )
    assert "in failpoint" in failed.traceback
    assert {*rows.memory_rung} == {"stream"}
    log = work.here("logs", str(done.run.root)).out
    assert "out of device memory at denoise: memory is model from now on" in log
    assert "at most 1 items a forward of 64x64x1 from now on" in log
    fail_at("none:1:oom")
    again = work.here("retry", str(done.run.root), "--json")
    assert again.code == 0, again.err
    assert recorded(done.run) == whole
    intent = read_intent(done.run, 2)
    assert intent is not None
    assert {*intent.climbs["cpu"]} == {
        Climb("smaller", "denoise", "64x64x1", 1),
        Climb("model", "denoise"),
        Climb("stream", "denoise"),
    }
    assert climbs_before(done.run, Attempt(2, 0, 0, 0), "other device") == ()
    assert rows_of(done.run).memory_rung.tolist() == ["stream"] * len(ROWS)
    assert attempts(done.run).streamed_gib.iloc[1] > 0


@pytest.mark.slow
def test_ranks_that_share_a_forward_end_and_the_next_attempt_takes_less(
    new_job_folder, whole: set[tuple[Any, ...]]
) -> None:
    """The follower has no room: its leader says so, blames no row, and the next submission starts
    there."""
    work = new_job_folder(ROWS)
    one = "system.batch.token_budget=1"
    ended = work.run(
        *TWO, one, "slurm.max_attempts=1", env={"BATCHGEN_FAILPOINT": "forward.1:2:oom"}
    )
    assert ended.code == 1, ended.err
    run = RunPaths(next(Path(work.root).glob("job-*")))
    (attempt,) = read_status(run).attempts
    assert attempt.ended == "ReplicaOutOfMemory" and "rank 1 of 2" in attempt.error
    assert attempt.memory_rung == "model"
    assert read_status(run).suspects == 0
    done = work.call("resume", str(run.root), "--json")
    assert done.code == 0, done.err
    assert recorded(run) == whole
    assert {*rows_of(run).memory_rung} == {"model"}
