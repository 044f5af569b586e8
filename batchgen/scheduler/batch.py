"""One sbatch: a job's parameters from the profile, its script made by submitit.

It runs a plain command and not a pickle. So a submit that is cut off after `sbatch` leaves an array
that works, no stale result is read, and submitit does not requeue by itself.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from batchgen.config.schema import SlurmConfig
from batchgen.scheduler import commands
from batchgen.scheduler.options import as_pattern, outside_any_job


@dataclass(frozen=True, slots=True)
class Batch:
    """One sbatch; its script is made by submitit."""

    folder: Path
    command: str
    parameters: dict[str, Any]
    elements: int = 1

    def script(self) -> str:
        """The text that sbatch gets. Only a private method of submitit starts a command instead of
        a pickle. All ranks of an element print into one file."""
        name = "%A_%a.log" if self.elements > 1 else "%j.log"
        output = f"{as_pattern(self.folder)}/{name}"
        given = dict(self.parameters)
        own = {"output": output, "error": output}
        given["additional_parameters"] = {**given["additional_parameters"], **own}
        own_args = [f"--output={output}", f"--error={output}", "--label"]
        given["srun_args"] = [*given["srun_args"], *own_args]
        given["map_count"] = self.elements if self.elements > 1 else None
        text = str(_make_sbatch_string(self.command, self.folder, **given))
        if "signal_delay_s" in self.parameters:
            return text
        return re.sub(r"^#SBATCH --signal=.*\n", "", text, flags=re.M)  # submitit always adds it

    def submit(self) -> str:
        """Job id of the array; SchedulerError if Slurm refuses it or does not answer."""
        for folder in (self.folder.parent, self.folder):  # never remakes a lost submission
            folder.mkdir(exist_ok=True)
        draft = self.folder / f".submission-{uuid.uuid4().hex}.sh"
        script = self.script()
        draft.write_text(script)
        with outside_any_job(re.findall(r"^#SBATCH --([a-z-]+)", script, re.M)):
            job_id = commands.order(draft)
        draft.rename(self.folder / f"{job_id}.sh")
        return job_id


def parameters(
    slurm: SlurmConfig, name: str, *, drains: bool = True, together: int = 1
) -> dict[str, Any]:
    """Parameters for submitit's executor, for a group of `together` nodes of the profile. `drains`:
    the processes handle the signal before the end; others would die of it."""
    minutes = slurm.timeout_min
    given: dict[str, Any] = {
        "job_name": name,
        "time": minutes,
        "nodes": together,
        "ntasks_per_node": slurm.ranks_per_node,
        "cpus_per_task": slurm.cpus_per_rank,
        "mem": None if slurm.mem_gb is None else f"{int(slurm.mem_gb * 1024)}M",
        "gpus_per_node": slurm.gpus_per_node or None,
        "gres": slurm.gres,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "exclude": slurm.exclude,
        "signal_delay_s": slurm.signal_delay_s if drains else None,
        "dependency": slurm.extra.get("dependency") or None,
        "wckey": None,
        "setup": [
            # Under --export=NONE srun would pass on nothing but Slurm's own variables.
            "export SLURM_EXPORT_ENV=ALL",
            f"export BATCHGEN_JOB_ENDS=$(( $(date +%s) + {60 * minutes} ))",
            f"export OMP_NUM_THREADS={slurm.cpus_per_rank}",
            *slurm.setup,
        ],
        # srun of Slurm 22 and later does not inherit cpus-per-task. A rank that dies must not
        # end the others.
        "srun_args": [
            f"--cpus-per-task={slurm.cpus_per_rank}",
            "--kill-on-bad-exit=0",
            "--wait=0",
            *slurm.srun_args,
        ],
        "additional_parameters": {"requeue": True, **_further(slurm)},
    }
    return {key: value for key, value in given.items() if value is not None or key == "wckey"}


def after(batch: Batch, job_ids: Sequence[str]) -> Batch:
    """The batch with a dependency: it starts once these jobs have ended, however they ended, and
    its earlier dependencies are met."""
    if not job_ids:
        return batch
    own, ours = batch.parameters.get("dependency"), f"afterany:{':'.join(job_ids)}"
    dependency = f"{own},{ours}" if own else ours
    return replace(batch, parameters={**batch.parameters, "dependency": dependency})


def _further(slurm: SlurmConfig) -> dict[str, str | bool]:
    """Options of `extra`; `true` stands for an option without a value, and options that are false
    are left out."""
    given = without(slurm.extra, "dependency")
    return {option: value for option, value in given.items() if value is not False}


def without(extra: dict[str, str | bool], option: str) -> dict[str, str | bool]:
    return {key: value for key, value in extra.items() if key != option}
