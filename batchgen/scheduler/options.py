"""Further options for sbatch: the profile's `extra`, and SBATCH_* variables of the person who
submits."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from batchgen.errors import ConfigError

# In Slurm's file names a backslash disables every `%` and is dropped. A line of a batch script
# cannot hold a line break or NUL, and the script is UTF-8.
_NO_SLURM_PATH = re.compile(r"[\\\n\r\0\ud800-\udfff]")
_NO_SUBMITIT_PATH = re.compile(r"%[jtaA]")  # submitit replaces these; there is no escape
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")  # they name a cluster, not a job
# Defaults of a site or a user: they apply where the profile has no value.
DEFAULTS = {
    f"SBATCH_{option.upper()}": option
    for option in ("account", "partition", "qos", "reservation", "constraint")
}
# Options of sbatch that have a key of their own in the profile.
_OWN_KEYS = {
    "nodes": "nodes",
    "ntasks": "ranks_per_node",
    "ntasks-per-node": "ranks_per_node",
    "gpus-per-node": "gpus_per_node",
    "gres": "gres",
    "cpus-per-task": "cpus_per_rank",
    "mem": "mem_gb",
    "time": "timeout_min",
    "signal": "signal_delay_s",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "exclude": "exclude",
}
_LOGS = "`batchgen logs` has to find what the tasks print"
_REQUEUE = "elements that lose their node come back by --requeue, which is always asked for"
_REFUSED = {
    "array": "the shards of a run make its arrays",
    "clusters": "set the variable SLURM_CLUSTERS, which squeue and scancel see too",
    "depend": "write it out: dependency",
    "error": _LOGS,
    "job-name": "the jobs of a run are found by the names that batchgen gives them",
    "no-requeue": _REQUEUE,
    "open-mode": _LOGS,
    "output": _LOGS,
    "requeue": _REQUEUE,
    "test-only": "`batchgen submit --dry-run` shows the batch scripts and submits nothing",
    "wait": "a submit returns at once; `batchgen run` waits",
    "wrap": "batchgen writes the batch script",
}


def check_extra(extra: Mapping[str, object]) -> None:
    """Raise ConfigError for an option that would break what runs on Slurm need."""
    for key, value in extra.items():
        option = key.replace("_", "-")
        if option in _OWN_KEYS:
            raise ConfigError(
                f"slurm.extra.{key}: this has a key of its own: slurm.{_OWN_KEYS[option]}"
            )
        if option in _REFUSED:
            raise ConfigError(f"slurm.extra.{key}: cannot be set, {_REFUSED[option]}")
        if option == "dependency" and "?" in str(value):
            raise ConfigError(
                f"slurm.extra.{key}: {value!r} has a `?`, which cannot be joined with what arrays "
                "of one run wait for; use `,` (all of them)"
            )


def check_folder(executor: str, folder: Path) -> None:
    """Raise ConfigError if the executor cannot start ranks for a run in this folder."""
    refused = {"slurm": _NO_SLURM_PATH, "local": _NO_SUBMITIT_PATH}.get(executor)
    if refused is not None and (wrong := refused.search(str(folder))):
        named = "a backslash" if wrong[0] == "\\" else repr(wrong[0])
        raise ConfigError(
            f"{folder}: slurm.executor={executor} cannot start a run below a path with {named} "
            f"in it; put the run elsewhere: output.root_dir=<folder>"
        )


def as_pattern(folder: Path) -> str:
    """The folder escaped for file name patterns of sbatch and srun, where `%j` would be the job's
    id."""
    return str(folder).replace("%", "%%")


@contextmanager
def outside_any_job(given: Collection[str]) -> Iterator[None]:
    """Hide the variables that sbatch would obey: those of the job in which this process may itself
    run (a steward, an salloc), and SBATCH_*, which win over the script. A variable with a default
    of the site or user stays unless its option is in `given`, the options of the script."""
    prefixes = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "BATCHGEN_JOB_", "SBATCH_")
    kept = {*KEPT, *(name for name, option in DEFAULTS.items() if option not in given)}
    hidden = {k: v for k, v in os.environ.items() if k.startswith(prefixes) and k not in kept}
    for key in hidden:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(hidden)


def export_defaults() -> list[str]:
    """Shell lines that export the defaults of this process to a job that will submit others (also
    defaults that were hidden when this process was submitted)."""
    return [f"export {k}={shlex.quote(os.environ[k])}" for k in DEFAULTS if k in os.environ]
