"""A fake Slurm and a user in front of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_calls import make_job_folder
from fake_slurm import FakeSlurm
from login_node import LoginNode

from batchgen.scheduler import commands as scheduler


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "fake")
    for name, value in fake.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(scheduler, "PATIENCE_S", 3.0)
    monkeypatch.setattr(scheduler, "ORDER_PATIENCE_S", 3.0)
    monkeypatch.setattr(scheduler, "RETRY_S", 0.02)
    return fake


@pytest.fixture
def login_node(fake: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> LoginNode:
    return LoginNode(make_job_folder(tmp_path, 4), fake, capsys)
