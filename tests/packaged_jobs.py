"""The jobs that come with the project, as a test plans them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from batchgen.config.composing.compose import compose_job
from batchgen.config.schema import JobConfig

JOBS = Path(__file__).parents[1] / "jobs"


@cache
def job_of(*overrides: str, name: str = "demo") -> JobConfig:
    """One of `jobs/`, composed once in a process."""
    return compose_job(JOBS / f"{name}.yaml", overrides).config
