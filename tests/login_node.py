"""A user at a login node with a fake Slurm (`fake_slurm`); what it runs are real ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from cli_calls import JobFolder, rows_of
from fake_slurm import FakeSlurm

from batchgen.cli.main import main
from batchgen.paths import RunPaths
from batchgen.scheduler.commands import job_name

# Two shards: the null engine takes 10 ms a step, and a shard has 3 start-ups of work at least.
JOB = ("model=null-engine", "row_defaults.num_steps=10", "slurm.executor=slurm")
TWO_SHARDS = ("slurm.nodes=2", "slurm.start_up_s=0.05")


@dataclass
class LoginNode:
    """A user at a login node: commands in this process, and what they printed."""

    job_folder: JobFolder
    fake: FakeSlurm
    capsys: pytest.CaptureFixture[str]
    out: str = ""
    err: str = ""

    def call(self, *argv: str) -> int:
        self.capsys.readouterr()
        code = main(argv)
        self.out, self.err = self.capsys.readouterr()
        return code

    def submit(self, *overrides: str) -> int:
        return self.call(
            "submit", str(self.job_folder.job), *JOB, *TWO_SHARDS, *overrides, "--json"
        )

    def on_run(self, verb: str, *options: str) -> int:
        return self.call(verb, str(self.run.root), *options)

    @property
    def run(self) -> RunPaths:
        (folder,) = self.job_folder.root.iterdir()
        return RunPaths(folder)

    def names(self) -> Counter[str]:
        """How many elements Slurm was ever given, by `s1`, `s1-steward`, ..."""
        prefix = job_name(self.run, 1).removesuffix("s1")
        return Counter(job["name"].removeprefix(prefix) for job in self.fake.jobs())

    def assert_every_row_once(self) -> None:
        rows = rows_of(self.run)
        assert list(rows.row_id) == [f"row-{n:03d}" for n in range(4)]
        assert list(rows.status) == ["ok"] * 4
