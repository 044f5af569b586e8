"""Fixtures of the tests on a real Slurm: a development cluster per test process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_calls import JobFolder, make_job_folder
from slurm.cluster import PROFILE, Cluster, ClusterUnavailable


def pytest_itemcollected(item: pytest.Item) -> None:
    """Everything in this folder needs Slurm."""
    item.add_marker("slurm")


@pytest.fixture(scope="session")
def booted() -> Iterator[Cluster]:
    """One cluster for all tests of this process; SLURM_CONF leads to it."""
    try:
        cluster = Cluster.boot(os.environ.get("PYTEST_XDIST_WORKER", "main"))
    except ClusterUnavailable as error:
        pytest.skip(f"no Slurm: {error}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", cluster.conf)
        yield cluster
    cluster.reset()


@pytest.fixture
def cluster(booted: Cluster) -> Cluster:
    """The cluster, whole and empty."""
    booted.heal()
    return booted


@pytest.fixture
def new_job_folder(
    cluster: Cluster, tmp_path: Path
) -> Callable[[int | Sequence[dict[str, Any]]], JobFolder]:
    """Makes a working folder whose job runs on the cluster: the project's own profile, which
    tests change by overrides (`slurm.nodes=2`, `model=null-engine`)."""

    def make(rows: int | Sequence[dict[str, Any]]) -> JobFolder:
        job_folder = make_job_folder(tmp_path, rows)
        (tmp_path / "slurm").mkdir()
        shutil.copy(PROFILE, tmp_path / "slurm" / PROFILE.name)
        text = job_folder.job.read_text()
        text = text.replace("slurm: {executor: inline}\n", "")
        job_folder.job.write_text(text.replace("_self_]", "_self_, {override slurm: devcluster}]"))
        return job_folder

    return make
