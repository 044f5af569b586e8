"""Everything a run is made of in one JSON object: enough to do it again, or to see what differs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from batchgen.runfile import RunFile

SCHEMA = 1
PACKAGES = (
    "batchgen", "torch", "diffusers", "transformers", "tokenizers", "safetensors", "numpy",
    "pyarrow", "hydra-core", "omegaconf", "imageio", "imageio-ffmpeg", "pillow",
)  # fmt: skip


def describe(
    header: RunFile,
    config: Mapping[str, Any],
    overrides: Sequence[str],
    submissions: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The three tiers, the job's own keys, versions, commit, hardware, digests: plain JSON.
    `config` is resolved; the configuration of each of `submissions` is in its intent."""
    return {
        "schema": SCHEMA,
        "tier_1_model": config["model"],
        "tier_2_system": {"system": config["system"], "output": config["output"]},
        "tier_3_rows": {
            "row_defaults": config["row_defaults"],
            "manifest": header.manifest,
            "manifest_digest": header.manifest_digest,
            "rows": header.rows,
            "unique_rows": header.unique_rows,
        },
        "job": {key: config[key] for key in ("name", "tag", "seed", "locked", "carry_columns")},
        "slurm": config["slurm"],
        "overrides": list(overrides),
        "submissions": list(submissions),
        "plan_id": header.plan_id,
        "digests": header.key_context,
        "versions": package_versions(),
        "git_commit": git_commit(),
        "hardware": hardware(),
    }


def package_versions() -> dict[str, str]:
    """Python and the packages that decide pixels and files; nothing is imported."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def git_commit() -> str | None:
    """Commit of the checkout that the package runs from, `-dirty` with local changes; None
    outside of one, or where git does not answer."""
    try:
        return _commit()
    except LookupError:
        return None


@cache  # of the code that this process has imported; no answer is asked for again
def _commit() -> str:
    folder = Path(__file__).parents[2]
    look = ["git", "--no-optional-locks", "-C", str(folder)]  # writes nothing into the checkout
    commit = _output([*look, "rev-parse", "HEAD"])
    changed = None if commit is None else _output([*look, "status", "--porcelain", "-uno"])
    if commit is None or changed is None:
        raise LookupError("git does not say")
    return f"{commit}-dirty" if changed else commit


def hardware() -> dict[str, Any]:
    """This machine: processor, memory, GPUs as the driver lists them."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    gpus = None
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=name,memory.total,driver_version"
        gpus = _output(["nvidia-smi", query, "--format=csv,noheader"])
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "gpus": gpus.splitlines() if gpus else [],
    }


def _cpu() -> str:
    """The processor's name, as Linux has it; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _output(command: list[str]) -> str | None:
    """Standard output of a command, or None when it cannot run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
