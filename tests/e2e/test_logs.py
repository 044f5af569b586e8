"""What a run notes about itself: who started it, what its ranks did, and under which name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from quick_cases import first_quick

from batchgen.config.composing.compose import compose_job
from batchgen.errors import ConfigError
from batchgen.paths import RunPaths
from batchgen.records import Attempt
from batchgen.runner import create

NULL = ("model=null-engine", "row_defaults.num_steps=2")
TWO_RANKS = (*NULL, "slurm.executor=local", "slurm.ranks_per_node=2")


def run_logs(run: RunPaths) -> list[Path]:
    return sorted(run.logs.rglob("run-*.log"))


@pytest.mark.parametrize(
    ("overrides", "ranks"),
    first_quick(
        [
            (("output.log_ranks=[0,1]",), [0, 1]),
            ((), [0]),
            (("output.log_ranks=[1]",), [1]),
            (("output.enable_run_log=false", "output.log_ranks=[0,1]"), []),
        ],
        1,
    ),
)
def test_the_ranks_that_are_asked_for_write_a_log(
    new_job_folder, overrides, ranks: list[int]
) -> None:
    work = new_job_folder(6)
    done = work.run(*TWO_RANKS, *overrides)
    assert done.code == 0, done.err
    assert run_logs(done.run) == [done.run.run_log(Attempt(1, 0, 0, rank)) for rank in ranks]
    for file, rank in zip(run_logs(done.run), ranks, strict=True):
        text = file.read_text()
        assert f"rank {rank} of 2, shard of 6 rows" in text and "ended: done" in text
    shown = work.here("logs", str(done.run.root)).out
    assert [f"run-s1t0r0p{rank}.log" in shown for rank in (0, 1)] == [n in ranks for n in (0, 1)]


def test_the_launch_log_has_what_was_asked_for_and_when(new_job_folder) -> None:
    """Every start of the run, also those that add nothing."""
    work = new_job_folder(3)
    wanted = "output.enable_launch_log=true"
    done = work.run_here(*NULL, wanted)
    assert done.code == 0, done.err
    log, name = done.run.logs / "launch.log", str(done.run.root)
    assert work.here("retry", name, "--rows", "row-001", "slurm.row_retries=2").code == 0
    assert work.here("resume", name, "slurm.watchdog_s=9").code == 0
    lines = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (run|retry|resume) ", x) for x in lines)
    ours = " ".join((str(work.job), *NULL, wanted))
    assert [line[20:] for line in lines] == [
        f"run {ours}", "retry --rows row-001 slurm.row_retries=2", "resume slurm.watchdog_s=9",
    ]  # fmt: skip
    assert work.here("resume", name, "output.enable_launch_log=false").code == 0
    assert log.read_text().splitlines() == lines


def test_without_being_asked_for_there_is_no_launch_log(new_job_folder) -> None:
    done = new_job_folder(1).run_here(*NULL)
    assert done.code == 0, done.err
    assert not (done.run.logs / "launch.log").exists()


@pytest.mark.parametrize(("override", "name"), [((), "job"), (("tag=night.2",), "night.2")])
def test_a_run_folder_begins_with_its_tag_or_its_job(new_job_folder, override, name: str) -> None:
    done = new_job_folder(1).run_here(*NULL, *override)
    assert done.code == 0, done.err
    assert re.fullmatch(rf"{re.escape(name)}-\d{{8}}-\d{{6}}-[0-9a-f]{{6}}", done.run.root.name)


def test_two_starts_in_one_second_never_share_a_folder(
    new_job_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if they draw the same number: the second one ends, the first is as it was."""
    composed = compose_job(new_job_folder(1).job, NULL)
    monkeypatch.setattr(create.time, "strftime", lambda form: "20260101-000000")
    roots = [create.create_run(composed).root for _ in range(5)]
    assert len({*roots}) == 5
    monkeypatch.setattr(create.secrets, "token_hex", lambda size: roots[0].name[-6:])
    before = (roots[0] / "run.json").read_bytes()
    with pytest.raises(ConfigError, match="not empty"):
        create.create_run(composed)
    assert (roots[0] / "run.json").read_bytes() == before
    assert sorted(roots[0].parent.iterdir()) == sorted(roots)
