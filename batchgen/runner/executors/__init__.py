"""Executors by name: one module each, with what `Executor` lists."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from batchgen.config.schema import ONE_MACHINE, SlurmConfig
from batchgen.errors import ConfigError
from batchgen.paths import RunPaths
from batchgen.processes import ProcessId
from batchgen.scheduler.options import check_extra


@dataclass(frozen=True, slots=True)
class Job:
    """One started task, or an array of tasks, as its executor knows it."""

    executor: str
    job_id: str
    task: int  # of an array: its first task
    process: ProcessId | None = None  # the local controller; None under a scheduler
    stride: int = 1  # step from the task of one element to that of the next

    def holds(self, task: int) -> bool:
        """Whether the task is one of this job's."""
        return task >= self.task and (task - self.task) % self.stride == 0


class Executor(Protocol):
    """What an executor module offers."""

    POLL_S: float  # seconds between two calls of `is_alive`
    NEEDS_DRIVER: bool  # the waiting process submits what is left, as there is no steward job

    def launch(
        self,
        run: RunPaths,
        submission: int,
        shards: int,
        slurm: SlurmConfig,
        patience_s: float = 0.0,
    ) -> list[Job]:
        """Start one task per shard and return (`inline`: when they have ended). A scheduler may
        refuse for `patience_s`."""

    def is_alive(self, run: RunPaths, submission: int, jobs: Sequence[Job]) -> bool:
        """Whether the submission may still commit rows."""

    def drain(self, run: RunPaths, submission: int, jobs: Sequence[Job]) -> None:
        """Ask the jobs to drain and return at once."""

    def kill(self, run: RunPaths, submission: int, jobs: Sequence[Job]) -> None:
        """End the jobs that did not drain in time."""


# Keys of a profile that only a scheduler obeys.
_SCHEDULERS = (
    "gres", "mem_gb", "partition", "account", "qos", "constraint", "exclude", "python",
    "srun_args", "steward_partition", "steward_python", "extra", "array_parallelism",
)  # fmt: skip


def executor_named(name: str) -> Executor:
    """The executor module `name`; ConfigError naming the existing ones."""
    _refuse_unknown(name)
    return cast(Executor, importlib.import_module(f"{__name__}.{name}"))


def _refuse_unknown(name: str) -> None:
    there = sorted(m.name for m in pkgutil.iter_modules(__path__))
    if name not in there:
        raise ConfigError(
            f"slurm.executor: {name!r} is not served by this version; served: {', '.join(there)}"
        )


def executor_for(slurm: SlurmConfig) -> Executor:
    """The profile's executor; ConfigError if it cannot start the profile from here."""
    check_profile(slurm)
    if slurm.executor == "slurm":
        _refuse_without_slurm()
    return executor_named(slurm.executor)


def check_profile(slurm: SlurmConfig) -> None:
    """ConfigError for keys of a profile that do not go together, wherever the job is to run. A plan
    calls this too, so nothing that starts jobs is imported."""
    _refuse_unknown(slurm.executor)
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
    _refuse_unheard(slurm)
    if slurm.executor == "slurm":
        check_extra(slurm.extra)
        _refuse_line_breaks(slurm)
        _refuse_early_signal(slurm)


def _refuse_unheard(slurm: SlurmConfig) -> None:
    """Keys that only a scheduler obeys are an error elsewhere, and not silently ignored."""
    unheard = {
        "slurm": (),
        "local": _SCHEDULERS,
        "inline": (*_SCHEDULERS, "setup", "cpus_per_rank"),
    }
    for key in unheard[slurm.executor]:
        value, default = getattr(slurm, key), getattr(SlurmConfig(), key)
        if value != default:
            given = list(value) if isinstance(value, tuple) else value
            raise ConfigError(
                f"slurm.{key}: {given!r} is for Slurm and means nothing to slurm.executor="
                f"{slurm.executor}; leave it out (slurm={slurm.executor} has none of these keys), "
                "or choose a profile with executor: slurm"
            )


def _refuse_line_breaks(slurm: SlurmConfig) -> None:
    """A value in a line of a batch script must not contain a line break."""
    wishes = {f"slurm.{key}": getattr(slurm, key) for key in _SCHEDULERS}
    wishes |= {f"slurm.extra.{key}": value for key, value in slurm.extra.items()}
    for key, value in wishes.items():
        if isinstance(value, str) and len(value.splitlines()) > 1:
            raise ConfigError(f"{key}: {value!r} has a line break, which sbatch does not take")


def _refuse_early_signal(slurm: SlurmConfig) -> None:
    wall_s = 60 * slurm.timeout_min
    if slurm.signal_delay_s >= wall_s:
        raise ConfigError(
            f"slurm.signal_delay_s: {slurm.signal_delay_s} s before the end are no later than the "
            f"start, since slurm.timeout_min is {slurm.timeout_min}: ranks would stop before their "
            f"first row; legal: < {wall_s}"
        )


def _refuse_without_slurm() -> None:
    from batchgen.scheduler import commands as scheduler

    if not scheduler.is_there():
        raise ConfigError(
            "slurm.executor: 'slurm' needs Slurm's commands (sbatch, squeue) on this machine; "
            "submit from a login node, or render here with slurm=local"
        )
