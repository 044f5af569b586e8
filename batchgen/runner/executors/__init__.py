"""Executors by name: one module each with `launch`, `is_alive` and `cancel`."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Protocol, cast

from batchgen.config.schema import SlurmConfig
from batchgen.errors import ConfigError
from batchgen.paths import RunPaths
from batchgen.processes import ProcessId


@dataclass(frozen=True, slots=True)
class Job:
    """One started task as its executor knows it."""

    executor: str
    job_id: str
    task: int
    process: ProcessId | None = None  # the local controller; None where a scheduler knows


class Executor(Protocol):
    """What an executor module offers."""

    def launch(self, run: RunPaths, submission: int, shards: int, slurm: SlurmConfig) -> list[Job]:
        """Start one task per shard and return; `inline` returns when they have ended."""

    def is_alive(self, job: Job) -> bool:
        """Whether the job may still commit rows."""

    def cancel(self, jobs: list[Job]) -> None:
        """Ask the jobs to drain; returns at once."""


ONE_MACHINE = ("inline", "local")


def executor_named(name: str) -> Executor:
    """The executor module `name`; raises ConfigError naming those there are."""
    there = sorted(m.name for m in pkgutil.iter_modules(__path__))
    if name not in there:
        raise ConfigError(
            f"slurm.executor: {name!r} is not served by this version; served: {', '.join(there)}"
        )
    return cast(Executor, importlib.import_module(f"{__name__}.{name}"))


def executor_for(slurm: SlurmConfig) -> Executor:
    """The profile's executor; raises ConfigError for what it cannot start."""
    executor = executor_named(slurm.executor)
    if slurm.executor in ONE_MACHINE and slurm.nodes != 1:
        raise ConfigError(
            f"slurm.nodes: {slurm.nodes} nodes with slurm.executor={slurm.executor}, which starts "
            "ranks on this machine alone; legal: 1"
        )
    if slurm.executor == "inline" and slurm.ranks_per_node != 1:
        raise ConfigError(
            f"slurm.ranks_per_node: {slurm.ranks_per_node} ranks with slurm.executor=inline, which "
            "renders in this one process; legal: 1 (or slurm.executor=local)"
        )
    return executor
