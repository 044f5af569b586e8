"""Drafts of processes that were killed go when they are old; those of processes at work stay."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from planned_run import plan_run
from run_folder import RunFolder

from batchgen.catalog.collect import collect
from batchgen.ledger.upkeep import leftovers
from batchgen.paths import RunPaths
from batchgen.runner.resume import prepare_resume

NAMES = [
    ".plan-123.parquet", ".run.json.0a1b2c.tmp", "catalog/.runs.parquet.0a.tmp",
    "catalog/.rows-1-0a/part-00000.parquet", "journal/0001/.0-r1.accept.json.0a.tmp",
    "submissions/0001/.intent.json.0a.tmp", "submissions/0001/queues/0/.0-r0.json.0a.tmp",
    "submissions/0001/slurm/0/.submission-0a.sh", "counters/0001/9-r0-0.tmp",
    "counters/0001/9-r0-0.reserve", "state/rows/00/.7.safetensors.0a.tmp",
]  # fmt: skip
DRAFTS = [name.removesuffix("/part-00000.parquet") for name in NAMES]


def leave(run: RunPaths, age_s: float) -> None:
    for name in NAMES:
        path = run.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half a")
    for name in DRAFTS:
        make_old(run.root / name, age_s)


def make_old(path: Path, age_s: float) -> None:
    then = time.time() - age_s
    os.utime(path, (then, then))


def there(run: RunPaths) -> list[str]:
    return [name for name in DRAFTS if (run.root / name).exists()]


@pytest.mark.parametrize(("age_s", "stay"), [(3500, DRAFTS), (3700, [])], ids=["new", "old"])
def test_a_collect_sweeps_what_is_old(
    make_run_folder: Callable[..., RunFolder], age_s: float, stay: list[str]
) -> None:
    run_folder = make_run_folder(1)
    with run_folder.journal(run_folder.submit()) as journal:
        run_folder.render(journal, 0)
    before = {path for path in run_folder.run.root.rglob("*") if path.is_file()}
    leave(run_folder.run, age_s)
    assert collect(run_folder.run).ok == 1
    assert there(run_folder.run) == stay
    assert all(path.exists() for path in before)


def test_the_room_that_an_attempt_at_work_keeps_stays(
    make_run_folder: Callable[..., RunFolder],
) -> None:
    """It was written when the attempt began; the heartbeat beside it is new."""
    run_folder = make_run_folder(1)
    journal = run_folder.journal(run_folder.submit())
    (reserve,) = run_folder.run.counters_dir.glob("*/*.reserve")
    make_old(reserve, 7 * leftovers.LEFTOVER_S)
    collect(run_folder.run)
    assert reserve.exists()
    make_old(reserve.with_suffix(".json"), 2 * leftovers.LEFTOVER_S)
    collect(run_folder.run)
    assert not reserve.exists()
    journal.close()


def test_a_resume_sweeps_and_a_new_run_sweeps_unfinished_ones(tmp_path: Path) -> None:
    planned_run = plan_run(tmp_path, [1])
    leave(planned_run.run, 3700)
    (planned_run.run.root / "journal" / "0001" / ".0-r1.accept.json.0a.tmp").parent.rename(
        tmp_path / "no-journals"
    )
    prepare_resume(planned_run.run, [], rerender_changed=False)
    assert there(planned_run.run) == []
    root = planned_run.run.root.parent
    for name, draft_s, plan_s in (("dead", 90_000, 90_000), ("busy", 90_000, 60)):
        draft = root / f".{name}.draft"
        draft.mkdir()
        (draft / "plan.parquet").touch()
        make_old(draft / "plan.parquet", plan_s)
        make_old(draft, draft_s)
    plan_run(tmp_path, [1])
    assert [path.name for path in root.glob(".*")] == [".busy.draft"]
